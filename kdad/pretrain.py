"""Training the compact teachers: classifiers of 32 px images whose features students copy."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import TensorDataset

from kdad import training
from kdad.cache import remember
from kdad.card import teacher_card
from kdad.catalogue import CARD_FILE, WEIGHTS_FILE
from kdad.data import Source, holdout_split, load_source
from kdad.devices import accelerator
from kdad.discrepancy import distillation_loss, layer_errors
from kdad.errors import UserError, one_of
from kdad.files import write_json, write_text
from kdad.history import read_history
from kdad.preprocessing import (
    CIFAR_MEAN,
    CIFAR_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    in_squares,
    random_shift,
)
from kdad.recipes import with_overrides
from kdad.store import round_to_half
from kdad.teachers import Teacher, load_teacher, teacher_folder
from kdad.vgg import CompactVGG
from kdad.vit import CompactViT

PREPROCESSING = {
    "cifar10": Preprocessing(32, 32, CIFAR_MEAN, CIFAR_STD),
    "tiny-imagenet-32": Preprocessing(32, 32, IMAGENET_MEAN, IMAGENET_STD),
    "patterns": Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
}
LICENCE = {
    "cifar10": "CIFAR-10 (Krizhevsky 2009) is free for research",
    "tiny-imagenet-32": "Tiny-ImageNet, from ImageNet, is free for non-commercial research",
    "patterns": "the procedural data set is part of kdad (MIT)",
}
SETTINGS = "unfinished.json"
EVALUATION_BATCH = 500
AUGMENTED_ALIKE = 16  # images
INITIALISATION_IMAGES = 5000
SQUARES = torch.arange(16)
SIDE = 32  # pixels
SMALLEST_SIDE = 16  # a VGG pools four times; its last tap keeps 2×2 places
HEAD_TENSORS = 2  # weight and bias of the classifier, which may have another number of classes


@dataclass(frozen=True)
class PretrainRecipe:
    """How a compact teacher is taught; saved on its card."""

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    warm_up: float = 0.2  # share of the steps
    label_smoothing: float = 0.1
    shift: int = 2  # pixels
    operations: int = 0  # of RandAugment
    erase: float = 0.0  # probability that a rectangle is erased
    mix_until: float = 0.0  # share of the epochs in which images are mixed: MixUp or CutMix
    drop_path: float = 0.0  # see `CompactViT`
    average: float = 0.0  # decay of the running average of the weights that is kept; 0 for none
    squares: int = 16  # how many of the 4×4 squares of an image a guided network is shown…
    all_squares_from: float = 0.0  # …up to this share of the epochs
    sides: tuple[int, ...] = (SIDE,)  # pixels, in equal shares of the epochs: smaller images are cheaper


@dataclass(frozen=True)
class Backbone:
    """A compact architecture: how to build it, how to start it and how to teach it."""

    build: Callable[[int, PretrainRecipe], nn.Module]  # number of classes, recipe -> classifier
    start: Callable[[nn.Module, Tensor], None]  # initialise from normalised training pixels
    recipe: PretrainRecipe
    guided: PretrainRecipe  # with an older teacher to copy


class Classification(pl.LightningModule):
    """Teaches `model` the labels of `source`, never touching its held-out 10 %."""

    def __init__(self, model: nn.Module, source: Source, recipe: PretrainRecipe, seed: int):
        super().__init__()
        self.model, self.source, self.recipe, self.seed = model, source, recipe, seed
        self.preprocessing = PREPROCESSING[source.name]
        self.kept, self.held_out = holdout_split(len(source.labels("train")))
        self.averaged = None
        if recipe.average:
            averaging = get_ema_multi_avg_fn(recipe.average)
            self.averaged = AveragedModel(model, multi_avg_fn=averaging, use_buffers=True)

    def train_dataloader(self):
        coin = torch.rand(len(self.kept), generator=torch.Generator().manual_seed(self.seed)) < 0.5
        return training.shuffled(self._dataset(self.kept, coin), self.recipe.batch_size, self.seed)

    def val_dataloader(self):
        return training.in_order(self._dataset(self.held_out), EVALUATION_BATCH)

    def _dataset(self, indices: Tensor, *columns: Tensor) -> TensorDataset:
        images, labels = self.source.images("train", indices), self.source.labels("train")[indices]
        device = self.trainer.strategy.root_device
        return TensorDataset(*(column.to(device) for column in (images, labels, *columns)))

    def training_step(self, batch, _):
        images, labels, coin = batch
        # Alternating flip: every second epoch shows the mirror image of the epoch before.
        mirrored = coin ^ bool(self.current_epoch % 2)
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        images = random_augment(random_shift(images, self.recipe.shift), self.recipe)
        pixels, targets = shrunk(self.preprocessing(images), self._side()), labels
        if self.current_epoch < self.recipe.mix_until * self.recipe.epochs:
            pixels, targets = mixed(pixels, labels, len(self.source.classes))
        loss = self.loss(pixels, targets)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def _side(self) -> int:
        sides = self.recipe.sides
        return sides[self.current_epoch * len(sides) // self.recipe.epochs]

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)

    @property
    def taught(self) -> nn.Module:
        """The network that is judged and kept."""
        return self.model if self.averaged is None else self.averaged.module

    def learning(self) -> list[nn.Parameter]:
        """What the optimiser changes."""
        return list(self.model.parameters())

    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """The training loss of one batch, a scalar; `labels` (B,) or, of mixed images, shares of classes (B, C)."""
        return cross_entropy(self.model(pixels), labels, label_smoothing=self.recipe.label_smoothing)

    def validation_step(self, batch, _):
        images, labels = batch
        logits = self.taught(self.preprocessing(images))
        self.log("val_loss", cross_entropy(logits, labels), batch_size=len(images))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean(), batch_size=len(images))

    def configure_optimizers(self):
        recipe = self.recipe
        trained = self.learning()
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = OPTIMIZERS[recipe.optimizer](groups, lr=recipe.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.learning_rate, steps, pct_start=recipe.warm_up, anneal_strategy=ANNEAL[recipe.optimizer],
            cycle_momentum=False,
        )  # fmt: skip
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def shrunk(pixels: Tensor, side: int) -> Tensor:
    """Normalised pixels (B, 3, H, H) at `side` by `side`; fast.ai's progressive resizing."""
    return pixels if side == pixels.shape[-1] else interpolate(pixels, side, mode="bilinear", antialias=True)


def random_augment(images: Tensor, recipe: PretrainRecipe) -> Tensor:
    """RandAugment (arXiv 1909.13719) and random erasing (arXiv 1708.04896) of uint8 images (B, 3, H, W).

    Each small group of a batch shares its draws: one by one, a GPU would wait for them.
    """
    if not recipe.operations and not recipe.erase:
        return images
    from torchvision.transforms import v2

    change = v2.Compose([v2.RandAugment(recipe.operations), v2.RandomErasing(recipe.erase, value=128)])
    return torch.cat([change(group) for group in images.split(AUGMENTED_ALIKE)])


def mixed(pixels: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """A batch mixed with itself by MixUp or CutMix (arXiv 1710.09412, 1905.04899), and its shares of classes (B, C)."""
    from torchvision.transforms import v2

    return v2.RandomChoice([v2.MixUp(alpha=0.8, num_classes=classes), v2.CutMix(num_classes=classes)])(pixels, labels)


OPTIMIZERS = {
    "nesterov": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True),
    "adamw": lambda groups, lr: torch.optim.AdamW(groups, lr=lr),
}
ANNEAL = {"nesterov": "linear", "adamw": "cos"}


class GuidedClassification(Classification):
    """Classification that also regresses an older teacher's last two maps, each through one linear layer.

    A transformer learns from 64 + 16 places an image instead of one label, which is most of what
    it lacks against a CNN when time is short. The guide is paid for once where its answers fit into
    memory, which takes a recipe without random shifts; and most epochs show some squares of an image only.
    """

    def __init__(self, model: nn.Module, source: Source, recipe: PretrainRecipe, seed: int, guide: Teacher):
        super().__init__(model, source, recipe, seed)
        self.guide = Guide(guide)
        blank = torch.zeros(2, 3, 32, 32)
        taught, own = self.guide(blank), model.maps_and_logits(blank, SQUARES.expand(2, -1))[0]
        if [layer.shape[1] for layer in taught] != [layer.shape[1] for layer in own]:
            raise UserError(f"teacher {guide.name!r} cannot guide this backbone: its last maps are not 8×8 and 4×4")
        if guide.preprocessing != self.preprocessing:
            raise UserError(f"teacher {guide.name!r} cannot guide on {source.name}: it wants its pixels otherwise")
        self.readers = nn.ModuleList(nn.Linear(o.shape[2], t.shape[2]) for o, t in zip(own, taught, strict=True))

    def on_train_start(self):
        device = self.trainer.strategy.root_device
        self.guide.to(device)
        if not self.recipe.shift:
            images = self.source.images("train", self.kept)
            views = [batch.to(device) for view in (images, images.flip(-1)) for batch in view.split(EVALUATION_BATCH)]
            with self.trainer.precision_plugin.forward_context():
                self.guide = remember(self.guide, views)

    def learning(self) -> list[nn.Parameter]:
        """As of `Classification`, and the readers."""
        return [*super().learning(), *self.readers.parameters()]

    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        squares = self._squares(len(pixels), pixels.device)
        maps, logits = self.model.maps_and_logits(pixels, squares)
        read = [reader(own) for reader, own in zip(self.readers, maps, strict=True)]
        copied = distillation_loss(layer_errors(read, in_squares(self.guide(pixels), squares)), mse_weight=0.0)
        return cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing) + copied

    def _squares(self, n: int, device: torch.device) -> Tensor:
        """Which squares of n images to show in this epoch, (n, k): others for every image, or all of them."""
        if self.current_epoch >= self.recipe.all_squares_from * self.recipe.epochs:
            return SQUARES.to(device).expand(n, -1)
        return torch.rand(n, len(SQUARES), device=device).argsort(1)[:, : self.recipe.squares]


class Guide:
    """A teacher's last two maps without prefix, in half precision, so that those of a data set fit into memory."""

    def __init__(self, teacher: Teacher):
        self.teacher, self.preprocessing = teacher, teacher.preprocessing

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """Normalised pixels to (B, 64, D) and (B, 16, D)."""
        return [layer[:, self.teacher.prefix :].half() for layer in self.teacher(pixels)[-2:]]

    def to(self, device: torch.device) -> None:
        self.teacher.to(device)


@torch.no_grad()
def whiten_and_pass_through(model: CompactVGG, pixels: Tensor) -> None:
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


def _keep_initialisation(model: nn.Module, pixels: Tensor) -> None:
    """A transformer starts as its library makes it."""


VGG = PretrainRecipe(24, 256, "nesterov", 0.25, 5e-4)
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
BACKBONES = {
    "vgg": Backbone(lambda classes, _: CompactVGG(classes), whiten_and_pass_through, VGG, VGG),
    "vit": Backbone(
        lambda classes, recipe: CompactViT(classes, recipe.drop_path), _keep_initialisation, VIT, GUIDED_VIT
    ),
}


def train_teacher(
    backbone: str,
    dataset: str,
    out: Path,
    *,
    start_from: str | None = None,
    distil_from: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    sides: Sequence[int] | None = None,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> dict:
    """Train a compact teacher into the folder `out`; returns its card. Interrupted runs continue.

    Args:
        start_from: a teacher of the same backbone whose weights to start from; its head is kept if it fits.
        distil_from: a teacher whose features the new one copies beside learning the labels.
        sides: of the square training images, in pixels, each for an equal share of the epochs.

    Raises:
        UserError: `out` holds a teacher already, or an unfinished run of other settings, the backbone cannot
            be taught at `sides`, or the teachers named do not fit.
        WorkFailed: the loss became NaN, or memory ran out.
    """
    chosen = BACKBONES[one_of("backbone", backbone, BACKBONES)]
    source = load_source(one_of("data set", dataset, PREPROCESSING))
    preset = chosen.guided if distil_from else chosen.recipe
    recipe = with_overrides(preset, epochs=epochs, batch_size=batch_size, sides=_sides(sides, backbone))
    device = accelerator(device)
    settings = {
        "backbone": backbone,
        "recipe": {**asdict(recipe), "sides": list(recipe.sides)},
        "start_from": start_from,
        "distil_from": distil_from,
        "seed": seed,
    }
    torch.manual_seed(seed)
    model = chosen.build(len(source.classes), recipe)
    module = _lesson(model, source, recipe, seed, distil_from)
    _start(module, chosen, start_from)
    trained_on = sorted({dataset, *_heritage(start_from), *_heritage(distil_from)})
    _claim(out, {**settings, "dataset": dataset}, overwrite)
    training.fit(module, out, epochs=recipe.epochs, seed=seed, device=device)
    card = _card(module, out, settings, trained_on, device)
    write_json(out / CARD_FILE, card)
    write_text(out / "README.md", teacher_card(card))
    module.taught.save(out, module.preprocessing)
    for name in (training.CHECKPOINT, SETTINGS):
        (out / name).unlink(missing_ok=True)
    return card


def _card(module: Classification, out: Path, settings: dict, trained_on: list[str], device: str) -> dict:
    """What a finished teacher is, and how good; reads the test part."""
    source = module.source
    return {
        "name": out.name,
        "trained_on": trained_on,
        "classes": list(source.classes),
        "held_out": "the last 10 % of torch.randperm(n) with seed 42 of the training images",
        "preprocessing": module.preprocessing.as_dict(),
        **settings,
        "seconds": round(sum(row["seconds"] for row in read_history(out) if row["split"] == "train")),
        "hardware": training.hardware(device),
        "licence": LICENCE[source.name],
        "accuracy": _accuracies(module, source, device),
    }


def _sides(sides: Sequence[int] | None, backbone: str) -> tuple[int, ...] | None:
    if sides is None:
        return None
    if backbone != "vgg":
        raise UserError(
            f"a {backbone} has one place embedding per patch and is taught at {SIDE} pixels; leave out --sides"
        )
    if not all(SMALLEST_SIDE <= side <= SIDE for side in sides) or sides[-1] != SIDE:
        raise UserError(f"--sides must lie in {SMALLEST_SIDE} to {SIDE} pixels and end with {SIDE}")
    return tuple(sides)


def _claim(out: Path, settings: dict, overwrite: bool) -> None:
    """Make `out` ours: without a teacher, and with no unfinished run but one of just these settings."""
    obstacle = _obstacle(out, settings)
    if obstacle and not overwrite:
        raise UserError(f"{out} holds {obstacle}; use --overwrite to train anew, or another --out")
    if obstacle:
        for name in (WEIGHTS_FILE, training.CHECKPOINT):
            (out / name).unlink(missing_ok=True)
    write_json(out / SETTINGS, settings)


def _obstacle(out: Path, settings: dict) -> str | None:
    """What in `out` is in the way of a run of `settings`, or None."""
    if (out / WEIGHTS_FILE).is_file():
        return "a teacher already"
    unfinished = out / SETTINGS
    if unfinished.is_file() and json.loads(unfinished.read_text()) != settings:
        return "an unfinished run of other settings"
    return None


def _lesson(model: nn.Module, source: Source, recipe: PretrainRecipe, seed: int, distil_from: str | None):
    if distil_from is None:
        return Classification(model, source, recipe, seed)
    return GuidedClassification(model, source, recipe, seed, load_teacher(distil_from))


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
def _accuracies(module: Classification, source: Source, device: str) -> dict[str, float]:
    """Accuracy of the weights as they will be saved, on the held-out images and, once, on the test part."""
    model = module.taught.to(device).eval()
    round_to_half(model)
    parts = {"validation": ("train", module.held_out), "test": ("test", torch.arange(len(source.labels("test"))))}
    return {split: _accuracy(model, module.preprocessing, source, *part, device) for split, part in parts.items()}


def _accuracy(model, preprocessing: Preprocessing, source: Source, part: str, indices: Tensor, device: str) -> float:
    correct = 0
    for chunk in indices.split(EVALUATION_BATCH):
        logits = model(preprocessing(source.images(part, chunk).to(device)))
        correct += int((logits.argmax(1).cpu() == source.labels(part)[chunk]).sum())
    return round(correct / len(indices), 4)
