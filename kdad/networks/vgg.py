"""VGG teachers and students as one numbered stack of layers with taps.

Feature maps (B, D, h, w) are returned as tokens (B, h·w, D). The stack uses channels_last, where
this is a free view.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kdad.data.preprocessing import Preprocessing
from kdad.errors import UserError
from kdad.files import write_bytes, write_json
from kdad.networks.features import CompactClassifier, FeatureNetwork, in_squares
from kdad.networks.teachers.registry import COMPACT_VGG_TYPE

Blocks = Sequence[tuple[int, int]]  # output channels of both convolutions of each block

COMPACT_BLOCKS: Blocks = ((32, 64), (128, 128), (256, 256), (256, 256))
COMPACT_CHANNELS = tuple(last for _, last in COMPACT_BLOCKS)  # of the critical layers
PAPER_LAYERS: tuple[int | str, ...] = (16, 16, "M", 16, 128, "M", 16, 16, 256, "M", 16, 16, 512, "M", 16, 16, 512, "M")


def tokens(feature_map: Tensor) -> Tensor:
    """(B, D, h, w) to (B, h·w, D); a view if the map is channels_last."""
    return feature_map.permute(0, 2, 3, 1).flatten(1, 2)


class ConvStack(FeatureNetwork):
    """Convolutions, ReLUs and max-pools in one `features` Sequential, read at `taps`.

    Args:
        layers: the layers, in order; those after the last tap are dropped.
        taps: indices of the critical layers, ascending.
    """

    def __init__(self, layers: Sequence[nn.Module], taps: Sequence[int]):
        super().__init__()
        self.taps = tuple(taps)
        self.features = nn.Sequential(*layers[: self.taps[-1] + 1]).to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Normalised pixels (B, 3, H, W) to one (B, h·w, D) tensor per critical layer."""
        x, read = pixels.contiguous(memory_format=torch.channels_last), []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                read.append(tokens(x))
        return read

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """(h, w) of every critical layer for an input of this size."""
        sizes = []
        for index, layer in enumerate(self.features):
            if isinstance(layer, nn.MaxPool2d):
                height, width = height // 2, width // 2
            if index in self.taps:
                sizes.append((height, width))
        return sizes

    @property
    def channels(self) -> tuple[int, ...]:
        """Width of every critical layer."""
        widths = [0]
        for layer in self.features:
            widths.append(layer.out_channels if isinstance(layer, nn.Conv2d) else widths[-1])
        return tuple(widths[tap + 1] for tap in self.taps)


def compact_layers(blocks: Blocks) -> tuple[list[nn.Module], list[int]]:
    """Layers of a compact VGG, each block 3×3 conv-BN-ReLU then a max-pool, and its taps.

    The taps are the last ReLU before each pool: at an image size of 32, a pooled map has lost
    half of the resolution needed to locate an anomaly.
    """
    layers: list[nn.Module] = []
    taps, width_in = [], 3
    for block in blocks:
        for width in block:
            layers += [
                nn.Conv2d(width_in, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            width_in = width
        taps.append(len(layers) - 1)
        layers.append(nn.MaxPool2d(2))
    return layers, taps


def compact_student(inner: int, channels: Sequence[int] = COMPACT_CHANNELS) -> ConvStack:
    """The blocks of a compact VGG teacher with `inner` channels inside, and `channels`, the teacher's, at each tap."""
    return ConvStack(*compact_layers([(inner, width) for width in channels]))


def paper_student() -> ConvStack:
    """The student of Salehi et al. (2020), Table 1 of the original code: see `PAPER_LAYERS`.

    No bias; a batch norm after each convolution but the last before a pool; read at pool2…pool5.
    The numbering equals the original's, so its state dicts load.
    """
    layers: list[nn.Module] = []
    pools, width_in = [], 3
    for width, following in zip(PAPER_LAYERS, (*PAPER_LAYERS[1:], None), strict=True):
        if not isinstance(width, int):
            pools.append(len(layers))
            layers.append(nn.MaxPool2d(2))
            continue
        layers.append(nn.Conv2d(width_in, width, 3, padding=1, bias=False))
        if following != "M":
            layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU(inplace=True))
        width_in = width
    return ConvStack(layers, pools[1:])


def imagenet_vgg16(layers: nn.Sequential) -> ConvStack:
    """torchvision's VGG-16 `features`, read at pool2…pool5."""
    pools = [index for index, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    return ConvStack(list(layers), pools[1:])


class CompactVGG(CompactClassifier):
    """The classifier whose trained stack is a compact VGG teacher; 2.3 M parameters, unless `blocks` are others.

    `forward` maps normalised pixels (B, 3, 32, 32) to logits (B, classes).
    """

    def __init__(self, classes: int, blocks: Blocks = COMPACT_BLOCKS):
        super().__init__()
        self.stack = ConvStack(*compact_layers(blocks))
        self.head = nn.Linear(blocks[-1][-1], classes)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.stack(pixels)[-1].amax(1))

    def maps_and_logits(self, pixels: Tensor, squares: Tensor) -> tuple[list[Tensor], Tensor]:
        """The last two critical layers in some squares of 2×2 patches, and the logits (B, classes).

        The maps are (B, 4·k, D) and (B, k, D) for `squares` (B, k); see `kdad.networks.features.in_squares`.
        """
        features = self.stack(pixels)
        return in_squares(features[-2:], squares), self.head(features[-1].amax(1))

    def save(self, folder: Path, preprocessing: Preprocessing) -> None:
        """Write config.json and then the weights, in half precision; teacher.json describes the preprocessing."""
        write_json(folder / "config.json", {"model_type": COMPACT_VGG_TYPE, "num_labels": self.head.out_features})
        weights = {name: (t.half() if t.is_floating_point() else t).cpu() for name, t in self.state_dict().items()}
        weights = {name: t.contiguous() for name, t in weights.items()}
        write_bytes(folder / "model.safetensors", save(weights))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load a classifier written by `save`, in float32 and eval mode.

        Raises:
            UserError: the folder is damaged, or of another architecture.
        """
        try:
            classes = int(json.loads((folder / "config.json").read_text())["num_labels"])
            weights = load_file(folder / "model.safetensors")
            model = cls(classes, _blocks_of(weights))
            model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=True)
        except (SafetensorError, OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{folder} is damaged or no compact VGG: {' '.join(str(error).split())[:200]}") from None
        return model.eval()


def _blocks_of(weights: dict[str, Tensor]) -> Blocks:
    """The blocks of a compact VGG with these weights, told from the shapes of its convolutions."""
    numbered = {int(name.split(".")[2]): len(tensor) for name, tensor in weights.items() if tensor.ndim == 4}
    widths = [numbered[layer] for layer in sorted(numbered)]
    return list(zip(widths[::2], widths[1::2], strict=True))
