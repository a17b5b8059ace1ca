"""The discrepancy between a student and its teacher, from which every loss, score and heatmap is read.

Features are lists with one tensor (B, T, D) per critical layer. After Salehi et al. 2020 (arXiv 2011.11108),
equations 1 to 4.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.linalg import vector_norm

from kdad.detection.normal_patches import NormalPatches, layer_maps
from kdad.detection.tiles import Tiler, in_chunks
from kdad.devices import full_float32
from kdad.networks.features import forward_in_chunks
from kdad.networks.teachers.loading import Teacher
from kdad.scores import layer_scores

MIN_PRODUCT = 1e-16  # product of two lengths below which one of them counts as zero


class Observation(NamedTuple):
    """The networks' view of B images, before any normalisation."""

    errors: Tensor  # the error table (B, L, 2); of tiles, their mean
    summaries: Tensor  # (B, T, D), the teacher's own of each piece, see `FeatureNetwork.summary`; T is 1 without tiles
    maps: list[Tensor]  # the patch errors (B, h, w) of every critical layer
    distances: Tensor | None = None  # (B, 2, h, w), see `NormalPatches.distances`


@torch.inference_mode()
def observe(
    student: nn.Module,
    teacher: Teacher,
    images: Tensor,
    tiler: Tiler,
    features: Sequence[Tensor] | None = None,
    patches: NormalPatches | None = None,
) -> Observation:
    """Compare a student's features with its teacher's on one batch of uint8 images (B, 3, H, W).

    Args:
        tiler: how images become pieces; see `tiler_for`.
        features: the teacher's features of all pieces, if they are known.
        patches: what the teacher's are compared with, of whole images alone.
    """

    def look(pieces: Tensor) -> tuple[Tensor, ...]:
        pixels = teacher.preprocessing(pieces)
        with full_float32(pixels.device):
            copied, target = forward_in_chunks(student, pixels), teacher(pixels) if features is None else features
            errors, maps = all_errors(copied, target, teacher.prefix, teacher.grids)
            distances = [] if patches is None else [patches.distances(layer_maps(target, teacher))]
            return errors, teacher.network.summary(target), *maps, *distances

    pieces = tiler.split(images)
    errors, summary, *maps = in_chunks(look, pieces) if features is None else look(pieces)
    distances = None if patches is None else maps.pop()
    errors, summaries = (of_pieces.unflatten(0, (images.shape[0], -1)) for of_pieces in (errors, summary))
    merged = [tiler.merge(layer, *images.shape[2:]) for layer in maps]
    return Observation(errors.mean(1), summaries, merged, distances)


def layer_errors(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The error table (B, L, 2), float32: 1 − cosine of the flattened maps, and their mean squared error.

    Raises:
        ValueError: the two sides do not have the same number of layers, or not the same shapes.
    """
    return _table(_compared(student, teacher))


def all_errors(
    student: Sequence[Tensor], teacher: Sequence[Tensor], prefix: int, grids: Sequence[tuple[int, int]]
) -> tuple[Tensor, list[Tensor]]:
    """The error table of `layer_errors`, and the patch errors: one (B, h, w) float32 tensor per layer.

    A patch error is 1 − cosine of a token, 0…2, of every token but the first `prefix`.
    """
    compared = _compared(student, teacher)
    maps = [norms.cosine_error[:, prefix:] for norms in compared]
    return _table(compared), [errors.unflatten(1, grid) for errors, grid in zip(maps, grids, strict=True)]


def distillation_loss(errors: Tensor, mse_weight: float) -> Tensor:
    """The training loss: all layers summed, mean over the batch; a scalar."""
    return layer_scores(errors, mse_weight).sum(1).mean()


class VectorNorms(NamedTuple):
    """Euclidean lengths of the tokens (B, T) of one critical layer, float32, from which all its errors follow.

    Three passes over the features instead of seven. And what is left of 1 − cosine for a good copy does not vanish in
    rounding, as it does where products are subtracted.
    """

    student: Tensor
    teacher: Tensor
    difference: Tensor
    width: int  # how many values a vector of these lengths has

    @classmethod
    def of(cls, student: Tensor, teacher: Tensor) -> "VectorNorms":
        """Compute the norms of features (B, T, D) on both sides.

        Raises:
            ValueError: the shapes differ.
        """
        if student.shape != teacher.shape:
            raise ValueError(
                f"student features {tuple(student.shape)} do not match the teacher's {tuple(teacher.shape)}"
            )
        with torch.autocast(student.device.type, enabled=False):  # it would round the difference to bfloat16
            norms = cast(tuple[Tensor, Tensor, Tensor], _TokenNorms.apply(student.float(), teacher.float()))
        return cls(*norms, width=student.shape[2])

    @property
    def of_maps(self) -> "VectorNorms":
        """The lengths (B,) of the flattened maps."""
        s, t, st = (vector_norm(of_tokens, dim=1) for of_tokens in (self.student, self.teacher, self.difference))
        return VectorNorms(s, t, st, width=self.width * self.student.shape[1])

    @property
    def cosine_error(self) -> Tensor:
        """1 − cosine, of the lengths' shape, by the law of cosines; 1 where one of the two is zero."""
        product = 2 * self.student * self.teacher
        error = (self.difference.square() - (self.student - self.teacher).square()) / product.clamp(min=MIN_PRODUCT)
        return error.where(product > MIN_PRODUCT, 1.0)

    @property
    def squared_error(self) -> Tensor:
        """The mean squared error, of the lengths' shape."""
        return self.difference.square() / self.width


class _TokenNorms(torch.autograd.Function):
    """Lengths (B, T) of student, teacher and difference, from features (B, T, D) of the first two.

    The gradient of a length is the vector over its length, and all three vectors are combinations of two: a gradient
    takes two passes over the features, where autograd would take seven.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        norms = vector_norm(student, dim=2), vector_norm(teacher, dim=2), vector_norm(student - teacher, dim=2)
        ctx.save_for_backward(student, teacher, *norms)
        return norms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        student, teacher, *norms = ctx.saved_tensors
        shares = (gradient / length for gradient, length in zip(gradients, norms, strict=True))
        # A vector of length zero has no direction.
        s, t, st = (share.nan_to_num(0, 0, 0)[..., None] for share in shares)
        of_student = torch.addcmul(student * (s + st), teacher, st, value=-1) if ctx.needs_input_grad[0] else None
        of_teacher = torch.addcmul(teacher * (t + st), student, st, value=-1) if ctx.needs_input_grad[1] else None
        return of_student, of_teacher


def _compared(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[VectorNorms]:
    return [VectorNorms.of(copied, target) for copied, target in zip(student, teacher, strict=True)]


def _table(compared: list[VectorNorms]) -> Tensor:
    maps = [norms.of_maps for norms in compared]
    return torch.stack([torch.stack([of_map.cosine_error, of_map.squared_error], 1) for of_map in maps], 1)
