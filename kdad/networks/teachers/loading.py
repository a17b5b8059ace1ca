"""Load the frozen networks that students copy, with their provenance."""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdad.data.preprocessing import Preprocessing
from kdad.data.sizes import Size, as_size, size_in_words
from kdad.devices import full_float32
from kdad.errors import UserError, one_line
from kdad.files import is_directory, sha256_of
from kdad.networks.compact_vit import CompactViT
from kdad.networks.features import FeatureNetwork, forward_in_chunks
from kdad.networks.teachers.folding import fold_batch_norms
from kdad.networks.teachers.provenance import UNKNOWN, trained_on_of_tag
from kdad.networks.teachers.registry import (
    CARD_FILE,
    COMPACT_VGG_TYPE,
    COMPACT_VIT_BACKBONE,
    HUB,
    LITE0,
    SHIPPED,
    TEACHERS,
    TIMM,
    TORCHVISION,
    WEIGHTS_FILE,
    WEIGHTS_FOLDER,
    TeacherSpec,
    adjustable,
    check_name,
    split_timm,
    teacher_facts,
)
from kdad.networks.teachers.timm_backbones import TimmFeatures, build_timm, timm_config, timm_pixels
from kdad.networks.teachers.timm_weights import lite0, timm_weights
from kdad.networks.vgg import CompactVGG, imagenet_vgg16
from kdad.networks.vit import ViTFeatures

MAX_SHOWN = 80  # characters of a name in an error
PIL_INTERPOLATIONS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Teacher:
    """A frozen feature extractor with its provenance.

    It is deliberately no `nn.Module`: nothing can switch it to training mode, move it into a
    state dict or hand its parameters to an optimiser by accident.
    """

    name: str
    sha256: str
    trained_on: tuple[str, ...]
    preprocessing: Preprocessing
    network: FeatureNetwork

    def __post_init__(self) -> None:
        self.network.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """Normalised pixels (B, 3, S, S) to one (B, T, D) tensor per critical layer, in full float32."""
        with full_float32(pixels.device):
            return forward_in_chunks(self.network, pixels.float())

    @torch.no_grad()
    def targets(self, pixels: Tensor) -> list[Tensor]:
        """The features for a student in training, in the surrounding precision, as the student's own features are.

        Under autocast, they are off by far less than any copy is; `benchmarks/reduced_precision.py` measures what that
        costs a student.
        """
        return forward_in_chunks(self.network, pixels.float())

    @property
    def prefix(self) -> int:
        """The number of tokens before the patches: 0 for a CNN, 1 for a plain ViT."""
        return self.network.prefix

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of its critical layers, where they can be chosen."""
        return self.network.layers

    @property
    def grids(self) -> list[tuple[int, int]]:
        """(h, w) of the patches of every critical layer."""
        return self.network.grids(*self.preprocessing.crop)

    def to(self, device: str | torch.device) -> "Teacher":
        """Move the weights to `device`, in place."""
        self.network.to(device)
        return self


def load_teacher(
    name: str, *, image_size: int | Size | None = None, layers: Sequence[str] = (), allow_download: bool = True
) -> Teacher:
    """Load a teacher by name, local folder, Hub id of a ViT-family model, or `timm:NAME[@FILE]`.

    Args:
        name: one of the above.
        image_size: the size (height, width) at which to read images, or the side of a square, in pixels, if not its
            own; of `lite0-imagenet` and timm's models.
        layers: the names of its critical layers, from fine to coarse, if not its own; of the same.
        allow_download: whether to fetch a teacher that is neither known by name nor on this machine; the name may be a
            stranger's.

    Raises:
        UserError: nothing of that name is here or may be fetched, or it cannot be read so.
    """
    if not (allow_download or name in TEACHERS or teacher_facts(name).here):
        shown = repr(name[:MAX_SHOWN])
        raise UserError(
            f"the teacher of this student, {shown}, is not on this machine: say where with --teacher FOLDER, or ask "
            f"for it with --teacher {shown}"
        )
    size = None if image_size is None else as_size(image_size)
    if adjustable(name):
        load = _from_timm if name.startswith(TIMM) else _from_package
        return load(name, size, layers)
    teacher = _of_fixed_size(name)
    if layers or size not in (None, teacher.preprocessing.resize):
        own = size_in_words(teacher.preprocessing.resize)
        raise UserError(
            f"teacher {name!r} reads images at {own} px, at layers of its own; --image-size and --layers are for "
            f"{LITE0} and timm:NAME"
        )
    return teacher


def _of_fixed_size(name: str) -> Teacher:
    if name in TEACHERS:
        spec = TEACHERS[name]
        return LOADERS[spec.source](name, spec)
    check_name(name)
    if is_directory(name):
        return _from_folder(str(Path(name).resolve()), Path(name))
    return _from_folder(name, _fetch_snapshot(name))


def teacher_folder(name: str) -> Path:
    """The folder of a shipped or local teacher."""
    folder = WEIGHTS_FOLDER / name if name in TEACHERS else Path(name)
    if not (folder / WEIGHTS_FILE).is_file():
        raise UserError(f"teacher {name!r} is missing: {folder} holds no {WEIGHTS_FILE}")
    return folder


def _from_folder(name: str, folder: Path) -> Teacher:
    if not (folder / "config.json").is_file():
        raise UserError(f"teacher {name!r} is missing: {folder} holds no config.json")
    card = _read_json(folder / CARD_FILE) if (folder / CARD_FILE).is_file() else {}
    network: FeatureNetwork
    if _read_json(folder / "config.json").get("model_type") == COMPACT_VGG_TYPE:
        with _reading(folder / CARD_FILE):
            preprocessing = Preprocessing.from_dict(card["preprocessing"])
        network = CompactVGG.load(folder).stack
        fold_batch_norms(network)
    elif card.get("backbone") == COMPACT_VIT_BACKBONE:
        preprocessing = _processor_preprocessing(folder)
        network = CompactViT.load(folder).stack
    else:
        preprocessing = _processor_preprocessing(folder)
        network = ViTFeatures(_load_transformers(folder), max(preprocessing.crop))
    return Teacher(name, weights_sha256(folder), tuple(card.get("trained_on", UNKNOWN)), preprocessing, network)


def _load_transformers(folder: Path) -> nn.Module:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        # The head's weights are expected to be left over; anything else missing would be random.
        model, info = transformers.AutoModel.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
        )
    except Exception as error:  # transformers raises many types on a bad folder
        raise UserError(f"{folder} is no loadable transformers model: {one_line(error)}") from None
    if missing := [key for key in info["missing_keys"] if "pooler" not in key]:
        raise UserError(f"{folder} lacks weights of its architecture, {missing[0]} for one; fetch it again")
    return model


def _processor_preprocessing(folder: Path) -> Preprocessing:
    """Size, mean and std of the teacher's own image processor, not ImageNet's by habit."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        raise UserError(f"{folder} has no preprocessor_config.json, which says how the teacher wants its pixels")
    fields = _read_json(file)
    with _reading(file):
        crop = _side(fields["crop_size"] if fields.get("do_center_crop") else fields["size"])
        return Preprocessing(
            resize=as_size(max(_side(fields["size"]), crop)),
            crop=as_size(crop),
            mean=tuple(fields["image_mean"]),
            std=tuple(fields["image_std"]),
            interpolation=PIL_INTERPOLATIONS.get(fields.get("resample", 2), "bilinear"),
        )


def _side(size: int | dict[str, int]) -> int:
    return size if isinstance(size, int) else int(size["height"] if "height" in size else size["shortest_edge"])


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn errors from missing or invalid fields of `file` into a `UserError` that names it."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{file} is missing or damaged ({type(error).__name__}: {error})") from None


def _shipped(name: str, spec: TeacherSpec) -> Teacher:
    return _from_folder(name, WEIGHTS_FOLDER / spec.place)


def _from_hub(name: str, spec: TeacherSpec) -> Teacher:
    """A named Hub model: its own mean and std, but resized as its entry says."""
    teacher = _from_folder(name, _fetch_snapshot(spec.place))
    preprocessing = teacher.preprocessing
    if spec.margin is not None:
        preprocessing = replace(preprocessing, resize=as_size(round(max(preprocessing.crop) * spec.margin)))
    return replace(teacher, trained_on=spec.trained_on or teacher.trained_on, preprocessing=preprocessing)


def _fetch_snapshot(repo: str) -> Path:
    """A Hub model's configuration and weights in the local cache; safetensors where the repository has them."""
    from huggingface_hub import snapshot_download

    small = ["config.json", "preprocessor_config.json", CARD_FILE, "model.safetensors.index.json"]
    try:
        folder = Path(snapshot_download(repo, allow_patterns=[*small, "*.safetensors"]))
        if not list(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(repo, allow_patterns=[*small, "pytorch_model*.bin*"]))
    except Exception as error:  # the Hub client raises a dozen unrelated types when it cannot fetch
        raise UserError(
            f"teacher {repo!r} could not be fetched from the Hub ({type(error).__name__}): check the name and the "
            "network, or use a shipped teacher"
        ) from None
    return folder


def _from_package(name: str, image_size: Size | None, layers: Sequence[str]) -> Teacher:
    spec = TEACHERS[name]
    model, sha256 = lite0(spec.place)
    fold_batch_norms(model.eval())
    preprocessing = Preprocessing(**(spec.pixels or {}))
    if image_size is not None:
        preprocessing = replace(preprocessing, resize=image_size, crop=image_size)
    network = TimmFeatures(model, layers, preprocessing.crop)
    return Teacher(name, sha256, spec.trained_on or UNKNOWN, preprocessing, network)


def _from_timm(name: str, image_size: Size | None, layers: Sequence[str]) -> Teacher:
    model, given = split_timm(name)
    config, file = timm_config(model), timm_weights(model, given)
    preprocessing = timm_pixels(config, image_size)
    network = TimmFeatures(build_timm(model, file, image_size), layers, preprocessing.crop)
    full_name = f"{TIMM}{model}@{file.resolve()}" if given else name
    return Teacher(full_name, sha256_of([file]), trained_on_of_tag(config.get("tag") or ""), preprocessing, network)


def _torchvision_vgg16(name: str, spec: TeacherSpec) -> Teacher:
    from torchvision.models import VGG16_Weights, vgg16

    weights = VGG16_Weights.IMAGENET1K_V1
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        # It announces a download on standard output, which belongs to the command's own result.
        with contextlib.redirect_stdout(sys.stderr):
            state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # URLError, hash mismatch, truncated file: all mean "not fetched"
        remedy = f"check the network, or put {file.name} into {file.parent}"
        if file.is_file():
            remedy = f"remove {file}, so that it is fetched again"
        raise UserError(f"teacher {name!r} could not be fetched ({one_line(error)}): {remedy}") from None
    sha256 = sha256_of([file])
    if not sha256.startswith(vgg16_sha256_prefix()):  # torchvision checks what it fetches, not what was there
        raise UserError(f"teacher {name!r} has SHA-256 {sha256[:12]}…: remove {file}, so that it is fetched again")
    with torch.device("meta"):
        model = vgg16()
    model.load_state_dict(state, assign=True)
    preprocessing = Preprocessing(**(spec.pixels or {}))
    return Teacher(name, sha256, spec.trained_on or UNKNOWN, preprocessing, imagenet_vgg16(model.features))


LOADERS = {SHIPPED: _shipped, TORCHVISION: _torchvision_vgg16, HUB: _from_hub}


def vgg16_sha256_prefix() -> str:
    """The first digits of the SHA-256 of torchvision's VGG-16 weights, from their file name."""
    from torchvision.models import VGG16_Weights

    return Path(VGG16_Weights.IMAGENET1K_V1.url).stem.split("-")[1]


def weights_sha256(folder: Path) -> str:
    """SHA-256 of a model folder's weight file, as `sha256sum` and the Hub print it; shards are concatenated."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise UserError(f"{folder} holds no weights (model.safetensors)")
    return sha256_of(files)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable JSON: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} holds no JSON object")
    return values
