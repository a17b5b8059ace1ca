"""The one representation of features: what every teacher and student network returns."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from kdad.data.preprocessing import Preprocessing
from kdad.devices import concatenated

PIXELS_AT_ONCE, PIXELS_AT_ONCE_ON_A_GPU = 2**19, 2**22


class FeatureNetwork(nn.Module):
    """A network read at its critical layers.

    Called with normalised pixels (B, 3, S, S), it returns one (B, T, D) tensor per critical layer: T is `prefix` tokens
    that stand for no patch, then the h·w patches of that layer's grid, in rows.
    """

    prefix: int = 0
    layers: tuple[str, ...] = ()  # the names of the critical layers, where they can be chosen

    def summary(self, features: Sequence[Tensor]) -> Tensor:
        """What this network, as a teacher, says of an image as a whole, from its features: (B, D) float32.

        The mean over patches of its last critical layer. Where `prefix` tokens stand before those of the patches,
        halfway between that and the first, the class token: each of the two tells some classes better.
        """
        last = features[-1].float()
        patches = last[:, self.prefix :].mean(1)
        return (last[:, 0] + patches) / 2 if self.prefix else patches

    def summarised(self, features: Sequence[Tensor]) -> Tensor:
        """What each patch (B, n, D) of the last critical layer gives to `summary`, which is the mean of it.

        What is said of the image as a whole, and of no place, is given by all patches alike.
        """
        last = features[-1].float()
        patches = last[:, self.prefix :]
        return (last[:, :1] + patches) / 2 if self.prefix else patches

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """(h, w) of the patches of every critical layer, for an input of height×width pixels."""
        raise NotImplementedError

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Normalised pixels to features."""
        raise NotImplementedError


def forward_in_chunks(network: Callable[[Tensor], list[Tensor]], pixels: Tensor) -> list[Tensor]:
    """What `network` says of normalised pixels (B, 3, S, S), asked about a few images at once.

    However many there are, memory is bounded, and activations do not leave a CPU's cache.
    """
    if torch.compiler.is_exporting():  # of how many images there will be, an exported network knows nothing
        return network(pixels)
    at_once = PIXELS_AT_ONCE if pixels.device.type == "cpu" else PIXELS_AT_ONCE_ON_A_GPU
    parts = pixels.split(max(1, at_once // pixels[0, 0].numel()))
    return list(concatenated([tuple(network(part)) for part in parts]))


class CompactClassifier(nn.Module):
    """A classifier that, trained, is a compact teacher: normalised pixels (B, 3, 32, 32) to logits (B, classes)."""

    def maps_and_logits(self, pixels: Tensor, squares: Tensor) -> tuple[list[Tensor], Tensor]:
        """The last two critical layers in some squares of 2×2 patches, and the logits (B, classes).

        Args:
            pixels: (B, 3, 32, 32), normalised.
            squares: (B, k), which of the 4×4 squares of each image to look at.

        Returns:
            (B, 4·k, D) in the order of `patches_of(squares)`, (B, k, D), and the logits.
        """
        raise NotImplementedError

    def save(self, folder: Path, preprocessing: Preprocessing) -> None:
        """Write configuration and, last, the weights in half precision."""
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The classifier that `save` wrote, in float32 and eval mode.

        Raises:
            UserError: the folder is damaged, or of another architecture.
        """
        raise NotImplementedError


def patches_of(squares: Tensor) -> Tensor:
    """The patches (B, 4·k), of 8×8 in rows, that make up squares of 2×2 patches (B, k), of 4×4 in rows."""
    corners = 16 * (squares // 4) + 2 * (squares % 4)
    return (corners[:, :, None] + torch.tensor([0, 1, 8, 9], device=squares.device)).flatten(1)


def in_squares(maps: Sequence[Tensor], squares: Tensor) -> list[Tensor]:
    """The tokens of an 8×8 and of a 4×4 map (B, T, D) that lie in `squares` (B, k): (B, 4·k, D) and (B, k, D)."""
    places = (patches_of(squares), squares)
    return [
        tokens.gather(1, place[:, :, None].expand(-1, -1, tokens.shape[2]))
        for tokens, place in zip(maps, places, strict=True)
    ]
