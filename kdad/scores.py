"""The anomaly scores: each is the sum of its parts, and everything that is said of a score is said here.

No torch is imported, so that cards and pages can read the registry; measurements are numpy arrays or torch tensors
alike. To add a score, add an entry to `SCORES`; a new kind of part also needs a map in
`kdad.detection.explanation.MAPS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kdad.errors import one_of

Array = Any  # a numpy array or a torch tensor
MIN_LOGARITHM = 1e-12  # an image that is copied without any error still has a logarithm
PUBLISHED_LAYERS = 3
SELECTION_CLASSES = ("cat", "airplane")  # of CIFAR-10: their validation anomalies chose the score of one-vs-rest


@dataclass(frozen=True)
class Measurement:
    """The arrays that scores and heatmaps of B images are read from; numpy arrays or torch tensors.

    Args:
        layer_errors: the error table (B, L, 2), 1 − cosine and mean squared error of each critical layer.
        distance: the teacher's own distance from normals (B,); ones where the student's score does not read it.
        peak: the highest value (B,) of each heatmap, in standard deviations above a normal patch.
        mse_weight: λ of the student's loss.
        distance_weight: how much the logarithm of the distance counts beside the peak, (1,).
        patch_maps: one map (B, h, w) of standardised patch errors per critical layer; of calibration normals, none.
        local_distances: how far the image's worst places are from the nearest patch of normals and from their Gaussian
            there, two (B,) in shares of a standard deviation; none where the student's score does not read them.
        distance_maps: the maps (B, h, w) that these are means of; of calibration normals, none.

    Of calibration normals, arrays differ in length: those of the student are of held-out ones, `local_distances` of
    all.
    """

    layer_errors: Array
    distance: Array
    peak: Array
    mse_weight: float
    distance_weight: Array = 0.0
    patch_maps: tuple[Array, ...] = ()
    local_distances: tuple[Array, ...] = ()
    distance_maps: tuple[Array, ...] = ()

    @property
    def layer_scores(self) -> Array:
        """The contribution (B, L) of each layer to the published score."""
        return layer_scores(self.layer_errors, self.mse_weight)

    @property
    def published_score(self) -> Array:
        """The published score (B,)."""
        return published_score(self.layer_errors, self.mse_weight)

    def __getitem__(self, images: slice) -> "Measurement":
        """The measurement of some of the images."""
        return self._map(lambda array: array[images])

    def numpy(self) -> "Measurement":
        """The same as numpy arrays, of torch tensors on any device."""
        weight = self.distance_weight.cpu().numpy()
        return replace(self._map(lambda tensor: tensor.cpu().numpy()), distance_weight=weight)

    @classmethod
    def concatenated(cls, parts: Sequence["Measurement"]) -> "Measurement":
        """One measurement, in numpy, of the images of several."""
        joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in PER_IMAGE}
        for name in SEVERAL_PER_IMAGE:
            columns = zip(*(getattr(part, name) for part in parts), strict=True)
            joined[name] = tuple(map(np.concatenate, columns))
        return replace(parts[0], **joined)

    @classmethod
    def of_normals(cls, tensors: Mapping[str, Array], mse_weight: float) -> "Measurement":
        """The measurement of held-out normals, from the arrays of a calibration.safetensors.

        Raises:
            KeyError: one that every calibration has is missing.
        """
        errors, peaks = tensors["layer_errors"], tensors["peaks"]
        distances = tensors.get("distances", np.ones(len(peaks), np.float32))
        local = tuple(tensors[LOCAL_DISTANCES].T) if LOCAL_DISTANCES in tensors else ()
        weight = tensors.get(DISTANCE_WEIGHT, 0.0)
        return cls(errors, distances, peaks, mse_weight, weight, local_distances=local)

    def _map(self, change: Callable[[Array], Array]) -> "Measurement":
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in PER_IMAGE}
        changed |= {name: tuple(map(change, getattr(self, name))) for name in SEVERAL_PER_IMAGE}
        return replace(self, **changed)


PER_IMAGE = ("layer_errors", "distance", "peak")
SEVERAL_PER_IMAGE = ("patch_maps", "local_distances", "distance_maps")


def layer_scores(layer_errors: Array, mse_weight: float) -> Array:
    """The contribution (B, L) of each layer, (1 − cosine) + λ · MSE, from the error table (B, L, 2)."""
    return layer_errors[..., 0] + mse_weight * layer_errors[..., 1]


def published_score(layer_errors: Array, mse_weight: float) -> Array:
    """The published score (B,): the loss of an image over the last three critical layers (arXiv 2011.11108, eq. 4)."""
    return layer_scores(layer_errors, mse_weight)[:, -PUBLISHED_LAYERS:].sum(1)


def last_layer_error(layer_errors: Array) -> Array:
    """1 − cosine of the last critical layer (B,)."""
    return layer_errors[:, -1, 0]


def logarithm(values: Array) -> Array:
    """The logarithm of values that are not negative, finite for zero."""
    values = values.clip(min=MIN_LOGARITHM)
    return np.log(values) if isinstance(values, np.ndarray) else values.log()


@dataclass(frozen=True)
class Part:
    """An addend of scores.

    Args:
        name: the key of its map in `kdad.detection.explanation.MAPS`, if it has one.
        title: what people call it.
        unit: of the values of its map.
        quantity: what its map adds up to, (B,).
        value: what it adds to the score, (B,).
        needs: the fields of a calibration that it reads beyond those that each has.
    """

    name: str
    title: str
    unit: str
    quantity: Callable[[Measurement], Array]
    value: Callable[[Measurement], Array]
    needs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Score:
    """An anomaly score, the sum of its parts.

    Args:
        name: in configurations, files and links.
        parts: its addends, for a student of so many critical layers.
        description: one sentence for people.
        selection: what chose it, to follow "score".
    """

    name: str
    parts: Callable[[int], Sequence[Part]]
    description: str
    selection: str

    def parts_of(self, measurement: Measurement) -> Sequence[Part]:
        """The addends for the student that was measured."""
        return self.parts(measurement.layer_errors.shape[1])

    @property
    def needs(self) -> frozenset[str]:
        """The fields of a calibration that the score reads beyond those that each has."""
        return frozenset().union(*(part.needs for part in self.parts(PUBLISHED_LAYERS)))

    def __call__(self, measurement: Measurement) -> Array:
        """The score (B,) of measured images; higher is more anomalous."""
        return sum(part.value(measurement) for part in self.parts_of(measurement))


# Fields of a calibration.
DISTANCE, DISTANCE_WEIGHT, LOCAL_DISTANCES = "distances", "distance_weight", "local_distances"
ERROR = Part(
    "error",
    "Student's error",
    "contribution to the error",
    lambda measurement: last_layer_error(measurement.layer_errors),
    lambda measurement: last_layer_error(measurement.layer_errors),
)
LOG_ERROR = replace(ERROR, value=lambda measurement: logarithm(ERROR.quantity(measurement)))
LOG_DISTANCE = Part(
    "distance",
    "Teacher's distance",
    "contribution to the distance",
    lambda measurement: measurement.distance,
    lambda measurement: logarithm(measurement.distance),
    frozenset({DISTANCE}),
)
WEIGHTED_DISTANCE = replace(
    LOG_DISTANCE,
    value=lambda measurement: measurement.distance_weight * logarithm(measurement.distance),
    needs=frozenset({DISTANCE, DISTANCE_WEIGHT}),
)
HIGHEST_PATCH = Part(
    "peak",
    "Highest patch error",
    "σ above normal",
    lambda measurement: measurement.peak,
    lambda measurement: measurement.peak,
)


def _local(index: int, name: str, title: str) -> Part:
    def mean_of_worst(measurement: Measurement) -> Array:
        return measurement.local_distances[index]

    return Part(name, title, HIGHEST_PATCH.unit, mean_of_worst, mean_of_worst, frozenset({LOCAL_DISTANCES}))


NEAREST = _local(0, "nearest", "Nearest normal patch")
GAUSSIAN = _local(1, "gaussian", "Normals at this place")


def _layer(index: int) -> Part:
    def contribution(measurement: Measurement) -> Array:
        return measurement.layer_scores[:, index]

    return Part(f"layer {index + 1}", f"Layer {index + 1}", "error", contribution, contribution)


DISTANCE_IN_WORDS = "the teacher's own distance from normals (Mahalanobis, squared, per dimension; of normals about 1)"
DISTANT_ERROR, DISTANT_PEAK, LAST_LAYER, MKD, PEAK = "distant-error", "distant-peak", "last-layer", "mkd", "peak"
LOCAL_DISTANCE = "local-distance"
# Logarithms let errors and distances, which spread over orders of magnitude, count alike, whatever their units. A sum
# with the peak lets constants that only few held-out normals tell, such as the level of a normal patch, change no rank.
SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        Score(
            DISTANT_ERROR,
            lambda layers: (LOG_ERROR, LOG_DISTANCE),
            f"The anomaly score is the logarithm of the last layer's error times {DISTANCE_IN_WORDS}.",
            f"chosen on validation anomalies of {' and '.join(SELECTION_CLASSES)} of cifar10",
        ),
        Score(
            DISTANT_PEAK,
            lambda layers: (HIGHEST_PATCH, WEIGHTED_DISTANCE),
            "The anomaly score is the heatmap's highest value plus the weighted logarithm of "
            f"{DISTANCE_IN_WORDS}. The weight comes from pseudo-anomalies.",
            "chosen on pseudo-anomalies drawn into normal photographs",
        ),
        Score(
            LOCAL_DISTANCE,
            lambda layers: (NEAREST, GAUSSIAN),
            "The anomaly score is how far the image's most unusual places are, in the teacher's own features, from the "
            "nearest patch of normals and from what normals show there. The student has no part in it.",
            "chosen on the test defects of four folders of photographs, with one rule for all of them",
        ),
        Score(LAST_LAYER, lambda layers: (ERROR,), "The anomaly score reads the last layer.", "fixed in advance"),
        Score(
            MKD,
            lambda layers: [_layer(index) for index in range(max(0, layers - PUBLISHED_LAYERS), layers)],
            "The anomaly score is the sum of the last three layers.",
            "as published",
        ),
        Score(
            PEAK,
            lambda layers: (HIGHEST_PATCH,),
            "The anomaly score is the highest value of the heatmap.",
            "chosen on the test defects of patterns-defects, bricks",
        ),
    )
}


def score_named(name: str) -> Score:
    """The score of this name.

    Raises:
        UserError: there is none.
    """
    return SCORES[one_of("score", name, SCORES)]
