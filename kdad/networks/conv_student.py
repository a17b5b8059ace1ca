"""Student for convolutional teachers with layers of any width and stride."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdad.networks.features import FeatureNetwork
from kdad.networks.vgg import tokens

WIDTHS = {1: 16, 2: 24, 4: 32, 8: 64, 16: 80, 32: 96}  # channels inside, by stride
WIDEST = 128
STEM = 4


class ConvStudent(FeatureNetwork):
    """A few narrow 3×3 convolutions, read at the teacher's strides through one 1×1 projection per layer.

    A patch embedding of stride 4 comes first, for a small fraction of the teacher's cost; finer layers do not help to
    locate defects.

    Args:
        strides: of the teacher's layers, from fine to coarse: powers of two.
        channels: of the teacher's layers.
    """

    def __init__(self, *, strides: Sequence[int], channels: Sequence[int]):
        super().__init__()
        self.strides = tuple(strides)
        if len(strides) != len(channels) or any(stride.bit_count() != 1 for stride in strides):
            raise ValueError("strides must be powers of two, with as many channels")
        if list(strides) != sorted(strides) or not strides:
            raise ValueError("strides must go from fine to coarse")
        reached = min(STEM, strides[0])
        width = WIDTHS[reached]
        self.stem = _block(3, width, reached, reached)
        self.stages, self.projections = nn.ModuleList(), nn.ModuleList()
        for stride, wide in zip(strides, channels, strict=True):
            stage: list[nn.Module] = []
            while reached < stride:
                reached *= 2
                stage += [_block(width, WIDTHS.get(reached, WIDEST), 3, 2)]
                width = WIDTHS.get(reached, WIDEST)
            self.stages.append(nn.Sequential(*stage, _block(width, width, 3, 1)))
            self.projections.append(nn.Conv2d(width, wide, 1))
        self.to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Normalised pixels (B, 3, H, W) to one (B, h·w, D) tensor per layer."""
        x, read = self.stem(pixels.contiguous(memory_format=torch.channels_last)), []
        for stage, project in zip(self.stages, self.projections, strict=True):
            x = stage(x)
            read.append(tokens(project(x)))
        return read

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """(h, w) of the patches of every layer."""
        return [(height // stride, width // stride) for stride in self.strides]


def _block(width_in: int, width: int, kernel_size: int, stride: int) -> nn.Sequential:
    """Convolution, batch norm and ReLU; without padding if the stride equals the kernel size."""
    padding = 0 if kernel_size == stride else kernel_size // 2
    convolution = nn.Conv2d(width_in, width, kernel_size, stride, padding, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
