"""The distance of each patch from those of normals in the teacher's own features: no student.

Two distances that miss different defects: from the nearest patch that any normal shows there, as in PatchCore (Roth et
al. 2022, arXiv 2106.08265), but within a small window; and from a Gaussian of what normals show at this very position,
as in PaDiM (Defard et al. 2020, arXiv 2011.08785). Both presume that normals are seen alike: they are measured on whole
images, never on tiles. Their scale comes from the normals themselves, each compared with the others alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from kdad.networks.teachers.loading import Teacher
from kdad.progress import CALIBRATING, track

DIMENSIONS = 128  # of patches, after a principal component analysis
MIN_VARIANCE = 1e-5  # of a component, as a share of the largest
POWER = 0.5  # to which the deviation of a component is taken out: 0 leaves it, 1 whitens
WINDOW = 1  # patches around a position among which the nearest is sought
MAX_NORMALS = 1000  # images; memory and time grow with each
OWN_SHARE = 0.5  # of a position's own mean and variance in its scale, for few normals tell them badly
MIN_SHRINKAGE = 1e-3  # of covariances: where normals are of two kinds, the estimate is none, and cannot be inverted
MIN_STD = 0.01  # of logarithms of distances, where all normals are one
MIN_SQUARE = 1e-6  # of distances, so that a patch that was seen before has a logarithm
KNOWN_BELOW = 0.01  # of the usual distance of a normal from the others: it is one of them
WORST_SHARE = 0.01  # of an image's patches: their mean is what a score reads
POSITIONS_AT_ONCE = 32
IMAGES_AT_ONCE = 16


@dataclass(frozen=True)
class Projection:
    """The features of layers as one vector per patch of one grid: principal components of standardised channels.

    Every layer counts as much as another, however wide, and each of its channels by its spread over normals. Components
    are divided by the root of their deviation: half-way between leaving them as they are and whitening.

    Args:
        grid: (h, w).
        mean: of the channels, (C,).
        axes: from channels to components, (C, D).
    """

    grid: tuple[int, int]
    mean: Tensor
    axes: Tensor

    @classmethod
    def fit(cls, batches: Iterable[list[Tensor]]) -> Projection:
        """Fit to maps (B, C, h, w) of some layers, batch by batch; the first has the grid."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for maps in batches:
            grid, widths = (maps[0].shape[2], maps[0].shape[3]), [layer.shape[1] for layer in maps]
            rows = _on_grid(maps, grid).flatten(0, 1).double()
            count, total, squares = count + len(rows), total + rows.sum(0), squares + rows.T @ rows
        mean = total / count
        covariance = squares / count - mean.outer(mean)
        spread = covariance.diagonal().clamp(min=0).sqrt().clamp(min=1e-6)
        weight = 1 / (spread * torch.cat([torch.full((width,), width) for width in widths]).sqrt())
        values, vectors = torch.linalg.eigh(weight[:, None] * covariance * weight)
        least = max(MIN_VARIANCE * float(values[-1]), MIN_SQUARE)
        axes = vectors[:, -DIMENSIONS:] / values[-DIMENSIONS:].clamp(min=least) ** (POWER / 2)
        return cls(grid, mean.float(), (weight[:, None] * axes).float())

    def __call__(self, maps: Sequence[Tensor]) -> Tensor:
        """Patches (B, P, D) of maps (B, C, h, w) of the same layers."""
        return (_on_grid(maps, self.grid) - self.mean) @ self.axes


def _on_grid(maps: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """Maps (B, C, h, w) of layers as patches (B, P, ΣC) of one grid."""
    return torch.cat([_resized(layer.float(), grid).flatten(2).mT for layer in maps], 2)


def _resized(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    if maps.shape[2] > grid[0]:
        return adaptive_avg_pool2d(maps, grid)
    return maps if maps.shape[2:] == grid else interpolate(maps, size=grid, mode="bilinear", align_corners=False)


class Windows(NamedTuple):
    """Pairs of positions at most `WINDOW` apart; those beyond an edge are the edge's.

    Args:
        around: the K positions around each, (P, K).
        pairs: for each position, the indices in `around`, flat, where it stands beside each of the K, (P, K).
    """

    around: Tensor
    pairs: Tensor

    @classmethod
    def of(cls, grid: tuple[int, int]) -> Windows:
        height, width = grid
        steps = torch.arange(-WINDOW, WINDOW + 1)
        row, column = torch.arange(height)[:, None, None, None], torch.arange(width)[:, None, None]
        rows, columns = ((row + steps[:, None]).clamp(0, height - 1), (column + steps).clamp(0, width - 1))
        side = len(steps)
        shape = (height, width, side, side)
        around = (rows * width + columns).expand(shape)
        place = ((row - rows + WINDOW) * side + (column - columns + WINDOW)).expand(shape)
        return cls(around.flatten(2).flatten(0, 1), (around * side**2 + place).flatten(2).flatten(0, 1))


@dataclass(frozen=True)
class NearestPatches:
    """The patches (P, D, n) of n normals at each of P positions, float32."""

    memory: Tensor
    windows: Windows

    @classmethod
    def fit(cls, normals: Tensor, grid: tuple[int, int]) -> NearestPatches:
        """Remember the patches (n, P, D) of normals."""
        return cls(normals.permute(1, 2, 0).contiguous(), Windows.of(grid))

    def distances(self, patches: Tensor, own: Tensor | None = None) -> Tensor:
        """The squared Euclidean distance (B, P) of each patch (B, P, D) from the nearest of normals in its window.

        Args:
            own: which of the normals (B,) the images are, to be left out.
        """
        around, pairs = self.windows
        wanted = patches.transpose(0, 1)[around].flatten(1, 2)  # P, K·B, D
        found = torch.baddbmm(self._squared_lengths, wanted, self.memory, alpha=-2).unflatten(
            1, (around.shape[1], -1)
        )  # P, K, B, n
        if own is not None:
            found[:, :, torch.arange(len(own)), own] = torch.inf
        nearest = found.amin(3).flatten(0, 1)[pairs].amin(1).T
        return nearest + patches.square().sum(2)

    @cached_property
    def _squared_lengths(self) -> Tensor:
        """Those of the remembered patches, (P, 1, n): reading the whole memory anew costs more than an image."""
        return self.memory.square().sum(1, keepdim=True)

    def left_out(self, normals: Tensor) -> Tensor:
        """The distances (n, P) of the normals (n, P, D) from the others."""
        index = torch.arange(len(normals))
        parts = (self.distances(normals[part], part) for part in index.split(IMAGES_AT_ONCE))
        return torch.cat(list(parts))


@dataclass(frozen=True)
class PositionGaussians:
    """`mean` (P, D) and upper triangular `whitening` (P, D, D) of a Gaussian of normals at each of P positions.

    Covariances are shrunk after Ledoit and Wolf (2004), so that fewer normals than dimensions will do.
    """

    mean: Tensor
    whitening: Tensor

    @classmethod
    def fit(cls, normals: Tensor) -> tuple[PositionGaussians, Tensor]:
        """Fit to patches (n, P, D) of normals; also returns the left-out squared distances (n, P) of the latter.

        Leaving an image out has a closed form: while the shrinkage is kept, it is a rank-one downdate of the
        covariance, and moves the mean by 1/(n − 1) of the image's offset.
        """
        parts = [_fitted(part) for part in normals.split(POSITIONS_AT_ONCE, 1)]
        mean, whitening, left_out = (torch.cat(column) for column in zip(*parts, strict=True))
        return cls(mean, whitening), left_out.T

    def distances(self, patches: Tensor) -> Tensor:
        """The squared Mahalanobis distance (B, P) of each patch (B, P, D)."""
        off = patches.transpose(0, 1) - self.mean[:, None]
        return torch.bmm(off, self.whitening).square().sum(2).T


def _fitted(normals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (P, D), whitening (P, D, D) and left-out squared distances (P, n), of patches (n, P, D)."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    count, _, size = normals.shape
    mean = normals.mean(0)
    off = (normals - mean).transpose(0, 1)  # P, n, D
    covariance = off.mT @ off / count
    shrinkage = torch.tensor([ledoit_wolf_shrinkage(position.numpy(), assume_centered=True) for position in off])
    shrinkage = shrinkage.float().clamp(min=MIN_SHRINKAGE)[:, None, None]
    scale = covariance.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    ridge = (shrinkage * scale).clamp(min=1e-8) * torch.eye(size)
    rest = count - 1
    others = _whitening((1 - shrinkage) * count / rest * covariance + ridge)
    square = torch.bmm(off, others).square().sum(2)
    left = (count / rest) ** 2 * square / (1 - (1 - shrinkage[..., 0]) * count / rest**2 * square).clamp(min=1e-6)
    return mean, _whitening((1 - shrinkage) * covariance + ridge).half().float(), left


def _whitening(covariance: Tensor) -> Tensor:
    """Upper triangular W (P, D, D) with W Wᵀ the inverse of covariances (P, D, D)."""
    size = covariance.shape[-1]
    return torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), torch.eye(size), upper=False).mT


@dataclass(frozen=True)
class Scale:
    """`mean` and `std` (P,) of the logarithm of squared distances at each position."""

    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, left_out: Tensor, region: Tensor) -> Scale:
        """Fit to left-out distances (n, P), half by position and half over all positions of a region."""
        values = _logarithm(left_out)
        pooled = values[:, region]
        return cls.of_moments(values.mean(0), values.square().mean(0), pooled.mean(), pooled.square().mean())

    @classmethod
    def of_moments(cls, own: Tensor, own_square: Tensor, all_: Tensor, all_square: Tensor) -> Scale:
        """The scale for means and mean squares by position, and over all."""
        variance = OWN_SHARE * (own_square - own.square()) + (1 - OWN_SHARE) * (all_square - all_.square())
        return cls(OWN_SHARE * own + (1 - OWN_SHARE) * all_, variance.clamp(min=MIN_STD**2).sqrt())

    @classmethod
    def standardise_left_out(cls, left_out: Tensor, region: Tensor) -> Tensor:
        """Left-out distances (n, P), each image's in standard deviations of the others.

        An image that has a part in its own scale can be no outlier: of n, none is more than (n − 1)/√n deviations off.
        """
        values = _logarithm(left_out)

        def of_others(moments: Tensor) -> Tensor:
            return (len(values) * moments.mean(0) - moments) / (len(values) - 1)

        squares = values.square()
        over_all = [of_others(moments[:, region].mean(1, keepdim=True)) for moments in (values, squares)]
        return cls.of_moments(of_others(values), of_others(squares), *over_all).standardise(left_out)

    def standardise(self, distances: Tensor) -> Tensor:
        """Squared distances (B, P) in standard deviations of normals."""
        return (_logarithm(distances) - self.mean) / self.std


def _logarithm(distances: Tensor) -> Tensor:
    return distances.clamp(min=MIN_SQUARE).log()


@dataclass(frozen=True)
class NormalPatches:
    """The normals at each position of a grid: their patches, and a Gaussian of them.

    Args:
        scales: those of the distances from the nearest patch, and from the Gaussian.
        region: the positions of the region of interest, flat, in order; what is elsewhere is never unusual.
    """

    projection: Projection
    nearest: NearestPatches
    gaussians: PositionGaussians
    scales: tuple[Scale, Scale]
    region: Tensor

    @classmethod
    def fit(cls, teacher: Teacher, batches: Sequence[Tensor]) -> FittedPatches:
        """Fit to what a teacher sees in normals, uint8 (B, 3, H, W) in batches that are read twice."""

        def seen() -> Iterator[list[Tensor]]:
            for images in track(CALIBRATING, batches, len):
                yield [layer.cpu() for layer in layer_maps(teacher(teacher.preprocessing(images)), teacher)]

        return cls.fit_maps(seen)

    @classmethod
    def fit_maps(cls, seen: Callable[[], Iterable[list[Tensor]]]) -> FittedPatches:
        """Fit to maps (B, C, h, w) of some layers on the CPU, batch by batch; they are asked for twice."""
        projection = Projection.fit(seen())
        return cls.fit_patches(projection, torch.cat([projection(maps).half() for maps in seen()]))

    @classmethod
    def fit_patches(cls, projection: Projection, patches: Tensor, region: Tensor | None = None) -> FittedPatches:
        """Fit to the projected patches (n, P, D) of normals on the CPU, in half precision, as they will be saved.

        Both distances are divided by the deviation of their sum, which therefore is in standard deviations of a normal
        patch.
        """
        patches = patches.float()
        nearest = NearestPatches.fit(patches, projection.grid)
        gaussians, from_gaussians = PositionGaussians.fit(patches)
        left_out = nearest.left_out(patches), from_gaussians
        region = torch.arange(math.prod(projection.grid)) if region is None else region
        scales = [Scale.fit(distances, region) for distances in left_out]
        maps = torch.stack([Scale.standardise_left_out(distances, region) for distances in left_out], 1)
        unit = maps.sum(1)[:, region].std().clamp(min=1e-6)
        one, other = (replace(scale, std=scale.std * unit) for scale in scales)
        fitted = cls(projection, nearest, gaussians, (one, other), region)
        return FittedPatches(fitted, fitted._within(maps / unit))

    def distances(self, layers: Sequence[Tensor]) -> Tensor:
        """The distance of each patch of B images from normals, (B, 2, h, w); the two of a patch add up to σ of normals.

        Args:
            layers: see `layer_maps`.
        """
        patches = self.projection(layers)
        distances = self.nearest.distances(patches), self.gaussians.distances(patches)
        maps = [scale.standardise(of) for scale, of in zip(self.scales, distances, strict=True)]
        return self._within(torch.stack(maps, 1))

    def worst_places(self, maps: Tensor) -> Tensor:
        """See `worst_places`, of maps (B, K, h, w) in the region."""
        whole = len(self.region) == math.prod(self.projection.grid)
        return worst_places(maps if whole else maps.flatten(2)[:, :, None, self.region])

    @property
    def region_map(self) -> Tensor:
        """The region of interest, bool (h, w)."""
        inside = torch.zeros(math.prod(self.projection.grid), dtype=torch.bool, device=self.region.device)
        return inside.index_fill(0, self.region, True).unflatten(0, self.projection.grid)

    def region_values(self, maps: Tensor) -> Tensor:
        """The values of maps (B, h, w) in the region, flat."""
        return maps.flatten(1)[:, self.region].flatten()

    def _within(self, maps: Tensor) -> Tensor:
        """Maps (B, K, P) as (B, K, h, w), 0 outside of the region."""
        if len(self.region) < maps.shape[2]:
            inside = maps.new_zeros(maps.shape[2]).index_fill(0, self.region, 1.0)
            maps = maps * inside
        return maps.unflatten(2, self.projection.grid)

    def extended(self, added: Tensor) -> FittedPatches:
        """The same with the projected patches (B, P, D) of more normals: fitted anew to all of them."""
        return self.fit_patches(self.projection, torch.cat([self.remembered, added.half()]), self.region)

    def know(self, patches: Tensor) -> Tensor:
        """Whether images of these projected patches (B, P, D) are among the normals already, (B,) bool."""
        return self._known(self.nearest.distances(patches))

    def repeated(self, patches: Tensor) -> Tensor:
        """Whether images of these projected patches (B, P, D) show what another of them does, (B,) bool."""
        return self._known(NearestPatches.fit(patches, self.projection.grid).left_out(patches))

    def _known(self, distances: Tensor) -> Tensor:
        """Whether images at these distances (B, P) from others are among these, (B,) bool."""
        return distances.median(1).values < KNOWN_BELOW * self.scales[0].mean.exp().median()

    def restricted(self, region: Tensor) -> FittedPatches:
        """The same for another region of interest, bool (h, w)."""
        return self.fit_patches(self.projection, self.remembered, region.flatten().nonzero()[:, 0])

    @property
    def remembered(self) -> Tensor:
        """The projected patches (n, P, D) of all normals, in half precision."""
        return self.nearest.memory.permute(2, 0, 1).half()

    def without(self, normals: Sequence[int]) -> NormalPatches:
        """The same with some normals left out of the memory, though not of the Gaussians."""
        kept = torch.ones(self.nearest.memory.shape[2], dtype=torch.bool)
        kept[list(normals)] = False
        return replace(self, nearest=replace(self.nearest, memory=self.nearest.memory[:, :, kept]))

    def to(self, device: torch.device | str) -> NormalPatches:
        """The same on another device; itself where it is there, for its memory may be large."""
        if self.nearest.memory.device == torch.device(device):
            return self
        return NormalPatches.unpacked({name: tensor.to(device) for name, tensor in self.packed().items()})

    def packed(self) -> dict[str, Tensor]:
        """As calibration.safetensors holds it: memory and one triangle of whitening matrices in half precision."""
        row, column = torch.triu_indices(*self.gaussians.whitening.shape[1:])
        return {
            "patch_grid": self.projection.mean.new_tensor(self.projection.grid),
            "patch_channels": self.projection.mean,
            "patch_axes": self.projection.axes,
            "patch_memory": self.nearest.memory.half(),
            "patch_means": self.gaussians.mean,
            "patch_whitening": self.gaussians.whitening[:, row, column].half(),
            "patch_scales": torch.stack([torch.stack([scale.mean, scale.std]) for scale in self.scales]),
        } | ({"patch_region": self.region} if len(self.region) < len(self.gaussians.mean) else {})

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor]) -> NormalPatches:
        """The inverse of `packed`."""
        height, width = (int(side) for side in tensors["patch_grid"])
        memory, triangles = tensors["patch_memory"].float(), tensors["patch_whitening"].float()
        positions, size, _ = memory.shape
        row, column = torch.triu_indices(size, size)
        whitening = triangles.new_zeros(positions, size, size)
        whitening[:, row, column] = triangles
        one, other = (Scale(mean, std) for mean, std in tensors["patch_scales"])
        return cls(
            Projection((height, width), tensors["patch_channels"], tensors["patch_axes"]),
            NearestPatches(memory, Windows.of((height, width))),
            PositionGaussians(tensors["patch_means"], whitening),
            (one, other),
            tensors.get("patch_region", torch.arange(positions, device=memory.device)),
        )

    @staticmethod
    def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """The shapes that the tensors of `packed` must have to fit each other; {} where there are none."""
        if not {"patch_grid", "patch_memory", "patch_channels"} <= tensors.keys():
            return {}
        grid = [int(side) for side in tensors["patch_grid"].nan_to_num()]
        size, normals = (*tensors["patch_memory"].shape, 0, 0, 0)[1:3]
        positions, channels = math.prod(grid), tensors["patch_channels"].numel()
        return {
            "patch_grid": (2,),
            "patch_channels": (channels,),
            "patch_axes": (channels, size),
            "patch_memory": (positions, size, normals),
            "patch_means": (positions, size),
            "patch_whitening": (positions, size * (size + 1) // 2),
            "patch_scales": (2, 2, positions),
        } | ({"patch_region": (tensors["patch_region"].numel(),)} if "patch_region" in tensors else {})


class FittedPatches(NamedTuple):
    """The normals at each position, and the maps (n, 2, h, w) of these n, each compared with the others alone."""

    patches: NormalPatches
    left_out: Tensor


def worst_places(maps: Tensor) -> Tensor:
    """The mean (B, K) of each of K maps (B, K, h, w) over the patches that are highest in their sum.

    These are `WORST_SHARE` of all patches.
    """
    flat = maps.flatten(2)
    worst = flat.sum(1).topk(max(1, round(WORST_SHARE * flat.shape[2])), 1).indices
    return flat.gather(2, worst[:, None].expand(-1, flat.shape[1], -1)).mean(2)


def layer_maps(features: Sequence[Tensor], teacher: Teacher) -> list[Tensor]:
    """The features (B, T, C) of critical layers that are compared with normals, as maps (B, C, h, w)."""
    first = max(0, min(1, len(features) - 2))  # the finest of three layers or more shows texture rather than defects
    patches = (layer[:, teacher.prefix :].mT for layer in features)
    return [layer.unflatten(2, grid) for layer, grid in list(zip(patches, teacher.grids, strict=True))[first:]]
