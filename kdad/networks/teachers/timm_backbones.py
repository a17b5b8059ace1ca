"""Any backbone of timm as a teacher, convolutional or transformer, read through timm's own feature extraction.

Names, widths and strides of layers, preprocessing and training data come from the model's own metadata
(`feature_info` and `pretrained_cfg`).
"""

from collections.abc import Sequence
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdad.data.preprocessing import INTERPOLATIONS, Preprocessing
from kdad.data.sizes import Size, as_size, size_in_words
from kdad.errors import UserError, one_line
from kdad.networks.features import FeatureNetwork
from kdad.networks.vgg import tokens
from kdad.networks.vit import CRITICAL_LAYERS

FINAL = "final"  # name of the layer that the classifier reads, for any model
READ_STRIDES = (8, 16)  # critical layers below the final one: finer ones respond to noise rather than defects
MAX_FINAL_CHANNELS = 512
PREFIX_TOO = "return_prefix_tokens"  # a word that not all of timm's transformers know


class TimmFeatures(FeatureNetwork):
    """A timm model read at some of its layers.

    If the model has a classifier, the final layer is projected to its `classifier_subspace`.

    Args:
        model: a timm model with `forward_intermediates`.
        layers: names from `layer_names(model)`, from fine to coarse; empty for the default.
        image_size: (height, width) of the input in pixels.

    Raises:
        UserError: a layer is unknown, or the model cannot be read at this size.
    """

    def __init__(self, model: Any, layers: Sequence[str], image_size: Size):
        super().__init__()
        self.model: Any = model.to(memory_format=torch.channels_last)
        known = layer_names(model)
        self.layers = tuple(layers) or _default_layers(model)
        for layer in self.layers:
            if layer not in known:
                raise UserError(f"there is no layer {layer!r} in this teacher; its layers are: {', '.join(known)}")
        if list(self.layers) != sorted(set(self.layers), key=known.index):
            raise UserError(f"layers go from fine to coarse, each once: {', '.join(known)}")
        info = {entry["module"]: entry for entry in model.feature_info}
        self.transformer = is_transformer(model)
        self.prefix = _prefix(model) if self.transformer else 0
        # Of a full-size CNN, the length of a mean depends more on contrast than on content: see `benchmarks/scores.py`.
        self.unit_length = not self.transformer
        coarsest = model.feature_info[-1]
        self.strides = tuple(int(info.get(layer, coarsest)["reduction"]) for layer in self.layers)
        self.projection: Tensor | None
        self.register_buffer("projection", classifier_subspace(model) if FINAL in self.layers else None)
        self.image_size = image_size
        self.channels = self._checked_channels()

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Normalised pixels (B, 3, S, S) to one (B, prefix + h·w, D) tensor per layer."""
        if self.transformer:
            prefix = {PREFIX_TOO: True} if self.prefix else {}
            pairs = self.model.forward_intermediates(
                pixels, indices=self._indices(), norm=False, output_fmt="NLC", intermediates_only=True, **prefix
            )
            return [torch.cat([pair[1], pair[0]], 1) if self.prefix else pair for pair in pairs]
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        final, maps = self.model.forward_intermediates(pixels, indices=self._indices(), output_fmt="NCHW")
        if FINAL not in self.layers:
            return [tokens(layer) for layer in maps]
        return [*(tokens(layer) for layer in maps[: len(self.layers) - 1]), self._final(final)]

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """(h, w) of the patches of every layer."""
        return [(height // stride, width // stride) for stride in self.strides]

    def contributions(self, features: Sequence[Tensor]) -> Tensor:
        """As in `FeatureNetwork`; for a convolutional model, of all but the outermost patches.

        Those see more padding than image. Both this and the unit length were selected with the default score.
        """
        if self.transformer:
            return super().contributions(features)
        height, width = self.grids(*self.image_size)[-1]
        grid = features[-1].float().unflatten(1, (height, width))
        return (grid[:, 1:-1, 1:-1] if min(height, width) > 2 else grid).flatten(1, 2)

    def _indices(self) -> list[int]:
        names = [entry["module"] for entry in self.model.feature_info]
        # For an empty list, timm would return all layers.
        return [names.index(layer) for layer in self.layers if layer != FINAL] or [len(names) - 1]

    def _final(self, final: Tensor) -> Tensor:
        flat = final.flatten(1, 2) if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else tokens(final)
        return flat if self.projection is None else flat @ self.projection

    @torch.no_grad()
    def _checked_channels(self) -> tuple[int, ...]:
        """Width of every layer, checked by passing a blank image through the model."""
        size, coarsest = self.image_size, max(self.strides)
        shown = size_in_words(size)
        if any(side % coarsest for side in size):
            raise UserError(f"this teacher reads images whose sides are multiples of {coarsest}, not {shown}")
        try:
            read = self.eval()(torch.zeros(1, 3, *size))
        except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
            raise UserError(f"this teacher cannot read images of {shown} px: {one_line(error)}") from None
        if [layer.shape[1] - self.prefix for layer in read] != [h * w for h, w in self.grids(*size)]:
            raise UserError(f"this teacher does not halve images of {shown} px evenly; choose another --image-size")
        return tuple(layer.shape[2] for layer in read)


def _prefix(model: Any) -> int:
    """The number of a transformer's tokens before its patches; 0 of one that gives its patches alone."""
    gives = PREFIX_TOO in signature(model.forward_intermediates).parameters
    return int(getattr(model, "num_prefix_tokens", 0)) if gives else 0


def is_transformer(model: Any) -> bool:
    """Whether all layers share one grid of patches, as in a plain transformer."""
    return len({entry["reduction"] for entry in model.feature_info}) == 1


def layer_names(model: Any) -> list[str]:
    """Layers at which a model can be read, from fine to coarse, including the final features of convolutional ones."""
    names = [str(entry["module"]) for entry in model.feature_info]
    return names if is_transformer(model) else [*names, FINAL]


def _default_layers(model: Any) -> tuple[str, ...]:
    """Blocks n/4, n/2, 3n/4 and n of a transformer of n; for others, the `READ_STRIDES` and the final layer."""
    names = [str(entry["module"]) for entry in model.feature_info]
    if is_transformer(model):
        depths = (round(len(names) * part / CRITICAL_LAYERS) for part in range(1, CRITICAL_LAYERS + 1))
        return tuple(dict.fromkeys(names[max(0, depth - 1)] for depth in depths))
    last_of = {entry["reduction"]: str(entry["module"]) for entry in model.feature_info}
    return (*(last_of[stride] for stride in READ_STRIDES if stride in last_of), FINAL)


def classifier_subspace(model: Any) -> Tensor | None:
    """Orthonormal directions (D, `MAX_FINAL_CHANNELS`) of the final layer with most influence on the classifier.

    These are the leading right singular vectors of its weight matrix: directions that it ignores vary without meaning.
    None if the final layer is no wider than that, or is not read by a classifier.
    """
    classifier = model.get_classifier()
    if not isinstance(classifier, nn.Linear) or classifier.in_features != model.num_features:
        return None
    if classifier.in_features <= MAX_FINAL_CHANNELS or classifier.out_features < MAX_FINAL_CHANNELS:
        return None
    weight = classifier.weight.detach().double()
    left = torch.linalg.eigh(weight @ weight.T).eigenvectors.flip(1)[:, :MAX_FINAL_CHANNELS]  # cheaper than an SVD
    directions = nn.functional.normalize(weight.T @ left, dim=0)
    # Fix the sign of the singular vectors, which may otherwise differ between machines.
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return (directions * largest.sign()).float().contiguous()


def timm_pixels(config: dict[str, Any], image_size: int | Size | None) -> Preprocessing:
    """Preprocessing of a model from its `pretrained_cfg`, without a crop, to cover the whole image."""
    interpolation = config.get("interpolation", "bilinear")
    size = as_size(image_size or int(config["input_size"][-1]))
    known = interpolation if interpolation in INTERPOLATIONS else "bicubic"
    return Preprocessing(size, size, tuple(config["mean"]), tuple(config["std"]), known)


def timm_config(name: str) -> dict[str, Any]:
    """timm's configuration of a model's weights, without loading anything.

    Raises:
        UserError: timm has no such model.
    """
    import timm

    architecture, _, tag = name.partition(".")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if not timm.is_model(architecture) or (tag and tag not in tags):
        known = [f"{architecture}.{known}" for known in tags] or timm.list_models()
        near = get_close_matches(name, known, n=4, cutoff=0.5)
        raise UserError(f"timm has no model {name!r}{'; near ones: ' + ', '.join(near) if near else ''}")
    config = timm.get_pretrained_cfg(name)
    return {} if config is None else dict(config.to_dict())


def build_timm(name: str, file: Path | None, image_size: Size | None) -> nn.Module:
    """Build the model of this name with weights from a local safetensors file, or random ones.

    Raises:
        UserError: the file does not contain exactly this model's weights, or the model does not support the size.
    """
    import timm

    options: dict[str, Any] = {}
    config = timm_config(name)
    if image_size and config.get("fixed_input_size") and image_size != tuple(config["input_size"][-2:]):
        options["img_size"] = image_size
    if file is not None:
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file), "hf_hub_id": None, "url": ""}}
    try:
        model: nn.Module = timm.create_model(name, **options)
    except Exception as error:  # timm raises many types on weights or sizes that do not fit
        what = f"{file} does not hold the weights of timm's {name}" if file else f"timm's {name} cannot be built"
        raise UserError(f"{what}: {one_line(error)}") from None
    if not hasattr(model, "forward_intermediates") or not getattr(model, "feature_info", None):
        raise UserError(f"timm's {name} does not give its layers' features; choose another model")
    return model
