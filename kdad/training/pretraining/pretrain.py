"""Train the compact teachers: backbones, recipes, and a folder with weights and card from one run."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdad.data.images import is_hidden
from kdad.data.preprocessing import Preprocessing
from kdad.data.sources import Source, load_source
from kdad.devices import accelerator, hardware
from kdad.errors import UserError, one_of
from kdad.files import check_output_folder, write_json, write_text
from kdad.locks import exclusive_lock
from kdad.networks.compact_vit import CompactViT
from kdad.networks.features import CompactClassifier
from kdad.networks.recipes import with_overrides
from kdad.networks.teachers.cards import teacher_card
from kdad.networks.teachers.loading import load_teacher, teacher_folder
from kdad.networks.teachers.registry import (
    CARD_FILE,
    TEACHERS,
    WEIGHTS_FILE,
    WEIGHTS_FOLDER,
    adjustable,
    default_image_size,
)
from kdad.networks.vgg import CompactVGG
from kdad.storage.history import read_history
from kdad.storage.student_folder import round_to_half
from kdad.training import loop
from kdad.training.pretraining.classification import (
    EVALUATION_BATCH,
    IMAGE_SIZE,
    PREPROCESSING,
    Classification,
    GuidedClassification,
    PretrainRecipe,
)
from kdad.training.pretraining.guide_features import Guide
from kdad.training.pretraining.unlabelled import UnlabelledDistillation

LICENCE = {
    "cifar10": "CIFAR-10 (Krizhevsky 2009) is free for research",
    "tiny-imagenet-32": "Tiny-ImageNet, from ImageNet, is free for non-commercial research",
    "imagenet-1k": "ImageNet is free for non-commercial research",
    "patterns": "the procedural data set is part of kdad (MIT)",
}
SETTINGS = "unfinished.json"
INITIALISATION_IMAGES = 5000
MIN_IMAGE_SIZE = 16  # a VGG pools four times; its last tap keeps 2×2 places
HEAD_TENSORS = 2  # weight and bias of the classifier, which may have another number of classes


@dataclass(frozen=True)
class Backbone:
    """A compact architecture: its constructor, its initialisation and its recipes."""

    build: Callable[[int, PretrainRecipe], CompactClassifier]  # number of classes, recipe -> classifier
    start: Callable[[CompactClassifier, Tensor], None]  # initialise from normalised training pixels
    recipe: PretrainRecipe
    tuned: PretrainRecipe  # from another teacher's weights
    guided: PretrainRecipe  # with an older teacher to copy
    tuned_guided: PretrainRecipe  # from another teacher's weights, with an older one to copy
    unlabelled: PretrainRecipe  # with nothing but a guide to copy


@torch.no_grad()
def whiten_and_pass_through(model: CompactClassifier, pixels: Tensor) -> None:
    """Start a VGG with a whitening first layer and identity-like others.

    Source: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv 2404.00498), section 3.
    """
    first, *others = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    patches = nn.functional.unfold(pixels, 3).transpose(1, 2).reshape(-1, 27)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values + 5e-4).sqrt()).T.flip(0)[: first.out_channels // 2].reshape(-1, 3, 3, 3)
    first.weight.copy_(torch.cat([filters, -filters]))
    for conv in others:
        nn.init.dirac_(conv.weight[: conv.in_channels])


def _keep_initialisation(model: CompactClassifier, pixels: Tensor) -> None:
    """Keep a transformer's own initialisation."""


VGG = PretrainRecipe(24, 256, "nesterov", 0.25, 5e-4)
# After 24 epochs a VGG knows CIFAR-10 by heart: more of them help only with images that change more.
TUNED_VGG = PretrainRecipe(27, 256, "nesterov", 0.1, 5e-4, warm_up=0.1, shift=4, operations=1, mix_until=0.6)
VIT = PretrainRecipe(
    250,
    512,
    "adamw",
    1e-3,
    0.05,
    warm_up=0.04,
    shift=4,
    operations=2,
    erase=0.25,
    mix_until=0.6,
    drop_path=0.1,
    average=0.9995,
)
GUIDED_VIT = PretrainRecipe(12, 128, "adamw", 1e-3, 0.05, warm_up=0.1, shift=0, squares=6, all_squares_from=0.9)
# After 14 epochs of that, a ViT that knew other pictures before knows CIFAR-10 by heart (train accuracy 91.6 %,
# validation 83.0 %); 14 more with images that change end at 83.6 %, and four like these, with all squares, at 85.4 %.
TUNED_GUIDED_VIT = PretrainRecipe(4, 128, "adamw", 2e-4, 0.05, warm_up=0.1, shift=4, operations=1)
UNLABELLED_VGG = replace(VGG, epochs=16, learning_rate=0.1, warm_up=0.1, shift=0)
UNLABELLED_VIT = replace(GUIDED_VIT, epochs=14)
BACKBONES = {
    "vgg": Backbone(
        lambda classes, _: CompactVGG(classes), whiten_and_pass_through, VGG, TUNED_VGG, VGG, TUNED_VGG, UNLABELLED_VGG
    ),
    "vit": Backbone(
        lambda classes, recipe: CompactViT(classes, recipe.drop_path), _keep_initialisation, VIT, VIT, GUIDED_VIT,
        TUNED_GUIDED_VIT, UNLABELLED_VIT,
    ),
}  # fmt: skip


def train_teacher(
    backbone: str,
    dataset: str,
    out: Path,
    *,
    start_from: str | None = None,
    distil_from: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    image_sizes: Sequence[int] | None = None,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train a compact teacher into the folder `out`; returns its card. Interrupted runs continue.

    The recipe is the backbone's `guided` with `distil_from`, its `tuned` with `start_from`, its `tuned_guided` with
    both, else its plain one; without labels, it is `unlabelled`.

    Args:
        start_from: a teacher of the same backbone whose weights to tune; its head is kept if it fits.
        distil_from: a compact teacher whose features the new one copies beside learning the labels, or a CNN of timm,
            such as `lite0-imagenet`, whose features and soft answers it learns instead of any label.
        image_sizes: of the square training images, in pixels, each for an equal share of the epochs.

    Raises:
        UserError: `out` holds a teacher already, an unfinished run with different settings or other files, is that of
            a teacher named, or another run trains there; the backbone cannot be trained at `image_sizes` or at that
            learning rate, or the teachers named do not fit.
        WorkFailed: the loss became NaN, or memory ran out.
    """
    _check_out(out, start_from, distil_from)
    chosen = BACKBONES[one_of("backbone", backbone, BACKBONES)]
    source = load_source(one_of("data set", dataset, PREPROCESSING))
    preset = _preset(chosen, start_from, distil_from)
    sizes = _image_sizes(image_sizes, backbone)
    recipe = with_overrides(
        preset, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, image_sizes=sizes
    )
    device = accelerator(device)
    settings = {
        "backbone": backbone,
        "recipe": {**asdict(recipe), "image_sizes": list(recipe.image_sizes)},
        "start_from": start_from,
        "distil_from": distil_from,
        "seed": seed,
    }
    module = _lesson(chosen, source, recipe, seed, distil_from)
    _start(module, chosen, start_from)
    labels = set() if _unlabelled(distil_from) else {dataset}
    trained_on = sorted({*labels, *_heritage(start_from), *_heritage(distil_from)})
    with exclusive_lock(out / ".lock", f"another run trains in {out}; wait for it, or use another --out"):
        _claim(out, {**settings, "dataset": dataset}, overwrite)
        module.prepare(device)
        loop.fit(module, out, epochs=recipe.epochs, seed=seed, device=device)
        card = _card(module, out, settings, trained_on, device)
        _save(module, out, card)
    return card


def _save(module: Classification, out: Path, card: dict[str, Any]) -> None:
    """Write a finished teacher, its weights last, and remove what its run went on from."""
    write_json(out / CARD_FILE, card)
    write_text(out / "README.md", teacher_card(card))
    module.kept_model.save(out, module.preprocessing)
    for name in (loop.CHECKPOINT, SETTINGS):
        (out / name).unlink(missing_ok=True)


def _card(
    module: Classification, out: Path, settings: dict[str, Any], trained_on: list[str], device: str
) -> dict[str, Any]:
    """The card of a finished teacher, with its accuracy, which takes the test part, or its agreement with its guide."""
    source, unlabelled = module.source, isinstance(module, UnlabelledDistillation)
    if isinstance(module, UnlabelledDistillation):
        figures = {"agreement": _agreement(module, device)}
    else:
        figures = {"accuracy": _accuracies(module, device)}
    return {
        "name": out.name,
        "trained_on": trained_on,
        "images": source.name,
        "classes": [] if unlabelled else list(source.classes),
        "held_out": "the last 10 % of torch.randperm(n) with seed 42 of the training images",
        "preprocessing": module.preprocessing.as_dict(),
        **settings,
        "seconds": round(sum(row["seconds"] for row in read_history(out) if row["split"] == "train")),
        "hardware": hardware(device),
        "licence": "; ".join(LICENCE.get(name, f"{name}: see there") for name in sorted({source.name, *trained_on})),
        **figures,
    }


def _unlabelled(distil_from: str | None) -> bool:
    """Whether a guide is one that teaches without labels."""
    return distil_from is not None and adjustable(distil_from)


def _preset(chosen: Backbone, start_from: str | None, distil_from: str | None) -> PretrainRecipe:
    if _unlabelled(distil_from):
        return chosen.unlabelled
    if distil_from is not None:
        return chosen.tuned_guided if start_from else chosen.guided
    return chosen.tuned if start_from else chosen.recipe


def _image_sizes(image_sizes: Sequence[int] | None, backbone: str) -> tuple[int, ...] | None:
    if image_sizes is None:
        return None
    if backbone != "vgg":
        raise UserError(
            f"a {backbone} has one position embedding per patch and is trained at {IMAGE_SIZE} pixels; leave out "
            "--image-sizes"
        )
    if (
        not all(MIN_IMAGE_SIZE <= image_size <= IMAGE_SIZE for image_size in image_sizes)
        or image_sizes[-1] != IMAGE_SIZE
    ):
        raise UserError(f"--image-sizes must lie in {MIN_IMAGE_SIZE} to {IMAGE_SIZE} pixels and end with {IMAGE_SIZE}")
    return tuple(image_sizes)


def _check_out(out: Path, *older: str | None) -> None:
    """Check that a teacher in `out` replaces neither one that it learns from nor anything but a teacher.

    Raises:
        UserError: it would.
    """
    check_output_folder(out)
    for name in filter(None, older):
        if out.resolve() == (WEIGHTS_FOLDER / name if name in TEACHERS else Path(name)).resolve():
            raise UserError(f"--out is the folder of {name}, which the new teacher learns from; choose another")
    found = {file.name for file in out.iterdir() if not is_hidden(file.name)} if out.is_dir() else set()
    if found and not found & {CARD_FILE, SETTINGS}:
        raise UserError(f"{out} holds files that are no teacher's, and is left alone; choose a new or empty folder")


def _claim(out: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Claim `out`: without a teacher, and with no unfinished run but one of exactly these settings."""
    if loop.must_replace(out, _obstacle(out, settings), overwrite):
        for name in (WEIGHTS_FILE, loop.CHECKPOINT):
            (out / name).unlink(missing_ok=True)
    write_json(out / SETTINGS, settings)


def _obstacle(out: Path, settings: dict[str, Any]) -> str | None:
    """A description of what in `out` is in the way of a run of `settings`, or None."""
    if (out / WEIGHTS_FILE).is_file():
        return "a teacher already"
    unfinished = out / SETTINGS
    if unfinished.is_file() and json.loads(unfinished.read_text()) != settings:
        return "an unfinished run with different settings"
    return None


def _lesson(
    chosen: Backbone, source: Source, recipe: PretrainRecipe, seed: int, distil_from: str | None
) -> Classification:
    if distil_from is not None and _unlabelled(distil_from):
        return _without_labels(chosen, source, recipe, seed, distil_from)
    torch.manual_seed(seed)
    model = chosen.build(len(source.classes), recipe)
    if distil_from is None:
        return Classification(model, source, recipe, seed)
    return GuidedClassification(model, source, recipe, seed, load_teacher(distil_from))


def _without_labels(
    chosen: Backbone, source: Source, recipe: PretrainRecipe, seed: int, distil_from: str
) -> UnlabelledDistillation:
    if recipe.image_sizes != (IMAGE_SIZE,):
        raise UserError(f"what {distil_from} sees is copied at {IMAGE_SIZE} pixels; leave out --image-sizes")
    guide = Guide(load_teacher(distil_from, image_size=default_image_size(distil_from, source.name)))
    torch.manual_seed(seed)
    return UnlabelledDistillation(chosen.build(guide.classes, recipe), source, recipe, seed, guide)


def _start(module: Classification, chosen: Backbone, start_from: str | None) -> None:
    """Initialise from data, or from another teacher's weights."""
    if start_from is None:
        pixels = module.preprocessing(module.source.images("train", module.kept[:INITIALISATION_IMAGES]))
        chosen.start(module.model, pixels)
        return
    weights = type(module.model).load(teacher_folder(start_from)).state_dict()
    own = module.model.state_dict()
    fitting = {name: t for name, t in weights.items() if name in own and own[name].shape == t.shape}
    if len(fitting) < len(own) - HEAD_TENSORS:
        raise UserError(f"teacher {start_from!r} is of another architecture; start from one of the same backbone")
    module.model.load_state_dict(fitting, strict=False)


def _heritage(name: str | None) -> tuple[str, ...]:
    return () if name is None else load_teacher(name).trained_on


@torch.inference_mode()
def _accuracies(module: Classification, device: str) -> dict[str, float]:
    """Accuracy of the weights as they will be saved, on the held-out images and, once, on the test part."""
    model, source = _as_saved(module, device), module.source
    parts = {"validation": ("train", module.held_out), "test": ("test", torch.arange(len(source.labels("test"))))}
    return {split: _accuracy(model, module.preprocessing, source, *part, device) for split, part in parts.items()}


@torch.inference_mode()
def _agreement(module: UnlabelledDistillation, device: str) -> dict[str, float]:
    """Share of held-out images whose likeliest class, by the weights as they will be saved, is the guide's."""
    model, agreed = _as_saved(module, device), 0
    for images, rows in module.val_dataloader():
        likeliest = model(module.preprocessing(images.to(device))).argmax(1).cpu()
        agreed += int((likeliest == module.features[rows].logits.argmax(1)).sum())
    return {"validation": round(agreed / len(module.held_out), 4)}


def _as_saved(module: Classification, device: str) -> CompactClassifier:
    model = module.kept_model.to(device).eval()
    round_to_half(model)
    return model


def _accuracy(
    model: nn.Module, preprocessing: Preprocessing, source: Source, part: str, indices: Tensor, device: str
) -> float:
    correct = 0
    for chunk in indices.split(EVALUATION_BATCH):
        logits = model(preprocessing(source.images(part, chunk).to(device)))
        correct += int((logits.argmax(1).cpu() == source.labels(part)[chunk]).sum())
    return round(correct / len(indices), 4)
