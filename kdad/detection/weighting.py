"""The weights of the layers, and of the whole image beside its worst place: learned from pseudo-anomalies."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdad.data.preprocessing import Preprocessing
from kdad.data.pseudo_anomalies import draw_pseudo_anomalies
from kdad.detection.discrepancy import Observation, observe
from kdad.detection.heatmaps import HeatmapRenderer, MapNormalization, sampled
from kdad.detection.mahalanobis import Gaussian
from kdad.detection.tiles import WholeImages
from kdad.networks.teachers.loading import Teacher
from kdad.progress import CALIBRATING, track
from kdad.scores import LOCAL_DISTANCES, logarithm, score_named

PSEUDO_ANOMALIES = 300  # where a score depends on them
PSEUDO_ANOMALIES_OF_MAPS = 100  # where only a map of the student does
MIN_SPREAD = 1e-3  # of peaks and of logarithms of distances, where all normals are alike
AT_ONCE = 32  # maps over whole images are far larger than what they are made of


def pseudo_anomalies_for(score: str) -> int:
    """The number of pseudo-anomalies to calibrate a student with this score, a name in `kdad.scores.SCORES`."""
    of_maps_alone = LOCAL_DISTANCES in score_named(score).needs
    return PSEUDO_ANOMALIES_OF_MAPS if of_maps_alone else PSEUDO_ANOMALIES


@dataclass(frozen=True)
class SyntheticPairs:
    """Measurements of N training images as they are, and of the same with a pseudo-anomaly each.

    `normal` and `anomalous` hold N rows each; `masks` (N, H, W) say where the latter are anomalous.
    """

    normal: Observation
    anomalous: Observation
    masks: Tensor
    preprocessing: Preprocessing

    @classmethod
    def of(cls, student: nn.Module, teacher: Teacher, train: Tensor, most: int) -> "SyntheticPairs":
        """Draw on at most so many training images (M, 3, H, W), chosen evenly."""
        device, tiler = next(student.parameters()).device, WholeImages(teacher.preprocessing)
        chosen = train[torch.linspace(0, len(train) - 1, min(len(train), most)).round().long()]
        drawn = draw_pseudo_anomalies(chosen.permute(0, 2, 3, 1).contiguous().numpy())
        defective = torch.from_numpy(drawn.images).permute(0, 3, 1, 2)

        def observed(images: Tensor) -> Observation:
            batches = track(CALIBRATING, images.split(AT_ONCE), len)
            return _stacked([observe(student, teacher, batch.to(device), tiler) for batch in batches])

        return cls(observed(chosen), observed(defective), torch.from_numpy(drawn.masks), teacher.preprocessing)

    @cached_property
    def units(self) -> MapNormalization:
        """The mean and deviation of the patch errors of normals; all layers alike."""
        mean, std = (torch.stack([getattr(layer, of)() for layer in self.normal.maps]) for of in ("mean", "std"))
        return MapNormalization(mean, std.clamp(min=1e-12), torch.ones_like(mean))

    def layer_weights(self) -> Tensor:
        """The weight of each layer's patch errors in telling where an image is anomalous, (L,).

        A layer may count against the others: a coarse one that says the whole image is unusual explains what the fine
        ones show.
        """
        points = torch.stack([self._points(layer) for layer in self.units.standardise(self.anomalous.maps)], 1)
        return logistic_weights(points.numpy(), sampled(self.masks).numpy()) / self.units.std

    def _points(self, layer: Tensor) -> Tensor:
        """The values of one layer's maps (N, h, w) at the sampled points of all images, flat."""
        size = self.masks.shape[1:]
        return torch.cat([sampled(self.preprocessing.to_input(maps, *size)) for maps in layer.split(AT_ONCE)])

    def distance_weight(self, layer_weights: Tensor) -> Tensor:
        """The weight of the logarithm of the teacher's own distance beside a heatmap's peak, a scalar.

        It never spreads the scores of normals more than the peak does: where neither tells much, neither should rule.
        """
        read = [
            torch.stack([self._peaks(observation, layer_weights), logarithm(distances)], 1)
            for observation, distances in zip((self.normal, self.anomalous), self._distances(), strict=True)
        ]
        spread = read[0].std(0).clamp(min=MIN_SPREAD)
        peak, distance = logistic_weights((torch.cat(read) / spread).numpy(), np.repeat([False, True], len(read[0])))
        return (distance.clamp(min=0) / peak.clamp(min=1e-12)).clamp(max=1) * spread[0] / spread[1]

    def _peaks(self, observation: Observation, layer_weights: Tensor) -> Tensor:
        renderer = HeatmapRenderer(WholeImages(self.preprocessing), layer_weights)
        parts = zip(*(layer.split(AT_ONCE) for layer in observation.maps), strict=True)
        return torch.cat([renderer.combine(maps).amax((1, 2)) for maps in parts])

    def _distances(self) -> tuple[Tensor, Tensor]:
        """Those of the normals and of the others (N,): of each half, as the other half sees it."""
        normal, anomalous = (observation.summaries[:, 0] for observation in (self.normal, self.anomalous))
        found = torch.empty(2, len(normal))
        even = torch.arange(len(normal)) % 2 == 0
        for half in (even, ~even):
            gaussian = Gaussian.fit([normal[~half]])
            found[:, half] = torch.stack([gaussian.distance(normal[half]), gaussian.distance(anomalous[half])])
        return found[0], found[1]


def logistic_weights(measured: np.ndarray, anomalous: np.ndarray) -> Tensor:
    """The weights (K,) of a logistic regression from what is measured (N, K) to what is anomalous (N,) bool."""
    from sklearn.linear_model import LogisticRegression

    fitted: Any = LogisticRegression(max_iter=500).fit(measured, anomalous)
    return torch.from_numpy(fitted.coef_[0]).float()


def _stacked(parts: Sequence[Observation]) -> Observation:
    """One observation of all images, on the CPU."""
    errors, summaries, maps, _ = zip(*parts, strict=True)
    layers = [torch.cat(layer).cpu() for layer in zip(*maps, strict=True)]
    return Observation(torch.cat(errors).cpu(), torch.cat(summaries).cpu(), layers)
