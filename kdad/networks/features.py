"""Common representation of features, returned by all teacher and student networks."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from kdad.data.preprocessing import Preprocessing
from kdad.devices import concatenated

PIXELS_AT_ONCE, PIXELS_AT_ONCE_ON_A_GPU = 2**19, 2**22


class FeatureNetwork(nn.Module):
    """A network read at its critical layers.

    Called with normalised pixels (B, 3, S, S), it returns one (B, T, D) tensor per critical layer. The T tokens are
    `prefix` tokens that belong to no patch, followed by the h·w patches of that layer's grid in row-major order.
    """

    prefix: int = 0
    layers: tuple[str, ...] = ()  # names of the critical layers, if they can be chosen
    unit_length: bool = False  # whether summaries are scaled to length one

    def summary(self, features: Sequence[Tensor]) -> Tensor:
        """Summarise the features of a whole image, for a teacher: (B, D) float32.

        The mean over patches of the last critical layer, or, with `prefix` tokens, the average of that mean and the
        class token, which is the first: each of the two separates some classes better. With `unit_length` it is scaled.
        """
        whole = self.contributions(features).mean(1)
        return normalize(whole, dim=1) if self.unit_length else whole

    def summarised(self, features: Sequence[Tensor]) -> Tensor:
        """Contribution (B, n, D) of each patch of the last critical layer to `summary`, which is their mean."""
        parts = self.contributions(features)
        if not self.unit_length:
            return parts
        return parts / parts.mean(1, keepdim=True).norm(dim=2, keepdim=True).clamp(min=1e-12)

    def contributions(self, features: Sequence[Tensor]) -> Tensor:
        """Unscaled contribution (B, n, D) of each patch of the last critical layer to `summary`.

        The class token, which has no position, contributes equally to all patches.
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
    """Apply `network` to normalised pixels (B, 3, S, S), a few images at a time.

    This bounds memory for any batch size, and keeps activations in the CPU's cache.
    """
    if torch.compiler.is_exporting():  # the batch size is unknown at export
        return network(pixels)
    at_once = PIXELS_AT_ONCE if pixels.device.type == "cpu" else PIXELS_AT_ONCE_ON_A_GPU
    parts = pixels.split(max(1, at_once // pixels[0, 0].numel()))
    return list(concatenated([tuple(network(part)) for part in parts]))


class CompactClassifier(nn.Module):
    """A classifier that becomes a compact teacher: normalised pixels (B, 3, 32, 32) to logits (B, classes)."""

    def maps_and_logits(self, pixels: Tensor, squares: Tensor) -> tuple[list[Tensor], Tensor]:
        """The last two critical layers in some squares of 2×2 patches, and the logits (B, classes).

        Args:
            pixels: (B, 3, 32, 32), normalised.
            squares: (B, k), indices of the 4×4 squares to evaluate in each image.

        Returns:
            (B, 4·k, D) in the order of `patches_of(squares)`, (B, k, D), and the logits.
        """
        raise NotImplementedError

    def save(self, folder: Path, preprocessing: Preprocessing) -> None:
        """Write the configuration and then the weights, in half precision."""
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load a classifier written by `save`, in float32 and eval mode.

        Raises:
            UserError: the folder is damaged, or of another architecture.
        """
        raise NotImplementedError


def patches_of(squares: Tensor) -> Tensor:
    """Indices (B, 4·k) in an 8×8 grid of the patches in squares (B, k) of 2×2 patches, indices in a 4×4 grid."""
    corners = 16 * (squares // 4) + 2 * (squares % 4)
    return (corners[:, :, None] + torch.tensor([0, 1, 8, 9], device=squares.device)).flatten(1)


def in_squares(maps: Sequence[Tensor], squares: Tensor) -> list[Tensor]:
    """Select the tokens of an 8×8 and a 4×4 map (B, T, D) in `squares` (B, k): (B, 4·k, D) and (B, k, D)."""
    places = (patches_of(squares), squares)
    return [
        tokens.gather(1, place[:, :, None].expand(-1, -1, tokens.shape[2]))
        for tokens, place in zip(maps, places, strict=True)
    ]
