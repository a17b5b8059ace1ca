"""A report on a batch of images: one HTML file that needs nothing else, to read, to send and to print.

Everything that is shown is escaped, for names of files come from other people; the file holds no script and fetches
nothing. `report.html` beside this file is its template.
"""

import base64
import heapq
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdad import __version__
from kdad.data.datasets import dataset_slug, is_folder
from kdad.data.sizes import size_in_words
from kdad.detection import conformal
from kdad.detection.detector import Detector
from kdad.detection.image_files import PATCH, Batch, judge_paths
from kdad.detection.rendering import overlay, resized_map
from kdad.errors import UserError
from kdad.files import check_output, shown
from kdad.networks.teachers.provenance import OVERLAP_IN_WORDS
from kdad.storage.layout import UNKNOWN
from kdad.storage.model_cards import CALIBRATION_IN_WORDS, reading_in_words
from kdad.storage.student_config import StudentConfig
from kdad.storage.student_folder import load_evaluation

TEMPLATE = "report.html"
ENDINGS = (".html", ".htm")
MARK = "<!-- kdad report -->"  # by which a later report knows that it may replace a file
MAX_PICTURES = 200  # images shown with their pictures; each takes up to about 100 kB
SIDE, QUALITY = 320, 85  # pixels of the longer side, and JPEG's quality
BINS = 40
FIGURES = {
    "auroc": "AUROC of images (default score)",
    "auroc_mkd": "AUROC of images (published score)",
    "pixel_auroc": "AUROC of pixels",
    "pro": "PRO",
    "pixel_ap": "average precision of pixels",
}
Draw = Callable[[], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Entry:
    """One judged image.

    Args:
        name: printable.
        score: the default score.
        p_value: conformal p-value; None without calibration.
        is_anomaly: the verdict; None without calibration.
        share_below: share of held-out normals with a lower score, 0…1; None without calibration.
    """

    name: str
    score: float
    p_value: float | None
    is_anomaly: bool | None
    share_below: float | None


@dataclass(frozen=True, order=True)
class Pictures:
    """The pictures of one image as data URLs; ordered by how much they are worth to be shown."""

    score: float
    entry: int
    image: str = field(compare=False)
    heatmap: str = field(compare=False)
    size: tuple[int, int] = field(compare=False)  # (height, width)


class Report:
    """The judged images of one batch, collected one by one.

    Args:
        detector: what judged them.
        fpr: the false-positive rate of verdicts; by default that of the detector.
        method: what made the heatmaps, a name in `kdad.detection.localisation.METHODS`.
        max_pictures: of how many images, the most anomalous, pictures are kept.

    Raises:
        UserError: the rate cannot be held with so few calibration images.
    """

    def __init__(
        self, detector: Detector, fpr: float | None = None, method: str = PATCH, max_pictures: int = MAX_PICTURES
    ):
        self.detector, self.method, self.max_pictures = detector, method, max_pictures
        self.fpr = detector.rate(fpr)
        self.threshold = detector.threshold(self.fpr)
        self.entries: list[Entry] = []
        self.unreadable: list[str] = []
        self._pictures: list[Pictures] = []  # a heap, the least anomalous first

    def add(self, name: str, score: float, draw: Draw) -> None:
        """Add a judged image.

        Args:
            name: of its file, or what else people know it by.
            score: its default score.
            draw: makes two pictures, uint8 (h, w, 3): the image, and the image under its heatmap; it is not called for
                images that will not be shown.
        """
        entry, normals = Entry(shown(name), score, None, None, None), self.detector.calibration_scores
        if normals is not None:
            scores = np.array([score], np.float32)
            p_value, share = (float(of(scores, normals)[0]) for of in (conformal.p_values, conformal.share_below))
            entry = Entry(entry.name, score, p_value, bool(score > self.threshold), share)
        self.entries.append(entry)
        if len(self._pictures) == self.max_pictures and not (self._pictures and score > self._pictures[0].score):
            return
        image, heatmap = draw()
        made = Pictures(score, len(self.entries) - 1, _data_url(image), _data_url(heatmap), image.shape[:2])
        push = heapq.heappushpop if len(self._pictures) == self.max_pictures else heapq.heappush
        push(self._pictures, made)

    def refuse(self, error: UserError) -> None:
        """Add a file that could not be read."""
        self.unreadable.append(shown(error))

    def judge(self, paths: Sequence[str], skip: Callable[[UserError], None]) -> Iterator[Entry]:
        """Judge and add the images at `paths`, files and directories, and yield each.

        `skip` is called with the error of a file that cannot be read, which the report lists, too.

        Raises:
            UserError: as `kdad.detection.image_files.judge_paths` does, or the method is not for this network.
        """

        def refuse(error: UserError) -> None:
            skip(error)
            self.refuse(error)

        for batch in judge_paths(self.detector, paths, self.fpr, refuse):
            draw = self._drawing(batch)
            for index, record in enumerate(batch.records):
                self.add(record["image"], record["score"], partial(draw, index))
                yield self.entries[-1]

    def html(self) -> str:
        """The report as one HTML document, the most anomalous images first."""
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        environment.filters |= {"percent": _percent, "rate": _rate, "unusualness": _unusualness}
        order = sorted(range(len(self.entries)), key=lambda index: (-self.entries[index].score, index))
        pictures = sorted(self._pictures, key=lambda pair: (-pair.score, pair.entry))
        return environment.get_template(TEMPLATE).render(
            mark=MARK,
            made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            title=_normals_in_words(self.detector.config),
            entries=[self.entries[index] for index in order],
            pictures=[(self.entries[pair.entry], pair) for pair in pictures],
            anomalies=sum(bool(entry.is_anomaly) for entry in self.entries),
            unreadable=self.unreadable,
            calibrated=self.detector.calibration is not None,
            fpr=self.fpr,
            normals=0 if self.detector.calibration is None else len(self.detector.calibration),
            guarantee=self.detector.guarantee(self.fpr),
            histogram=self._histogram(),
            settings=dict(self._settings()),
            card=dict(self._card()),
            figures=dict(self._figures()),
        )

    def _drawing(self, batch: Batch) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
        """A function that draws a batch's image, by its index; maps of other methods than `PATCH` are computed now."""
        made = None if self.method == PATCH else batch.heatmaps(self.detector, self.method)[0]

        def draw(index: int) -> tuple[np.ndarray, np.ndarray]:
            pixels = thumbnail(batch.images[index].permute(1, 2, 0).numpy())
            if made is None:
                heatmap = batch.prediction.only(index).heatmap_at(*pixels.shape[:2])[0]
                return pixels, overlay(pixels, heatmap, *self.detector.colour_range)
            heatmap = resized_map(made[index], *pixels.shape[:2])
            return pixels, overlay(pixels, heatmap, float(heatmap.min()), float(heatmap.max()))

        return draw

    def _settings(self) -> Iterator[tuple[str, str]]:
        if self.detector.calibration is not None:
            yield "false-positive rate", _rate(self.fpr)
            yield "threshold", f"{self.threshold:.6g}"
        yield "heatmaps", self.method
        if self.method == PATCH:
            low, high = self.detector.colour_range
            yield "colour scale", f"from {low:.3g} to {high:.3g}, the same for all images"
        yield "kdad", __version__

    def _card(self) -> Iterator[tuple[str, str]]:
        """The facts about the student, as on its model card."""
        config = self.detector.config
        yield "trained on", f"normal {_normals_in_words(config)}"
        yield "teacher", f"{config.teacher} (SHA-256 {config.teacher_sha256})"
        yield "label overlap", f"{config.label_overlap}. {OVERLAP_IN_WORDS[config.label_overlap]}"
        yield "training", f"{config.recipe.epochs} epochs, seed {config.seed}, at {size_in_words(config.image_size)} px"
        yield "score", f"{config.score}. {self.detector.score.description}"
        if self.detector.calibration is not None and config.calibration != UNKNOWN:
            yield "calibration", CALIBRATION_IN_WORDS[config.calibration]
        yield "images", reading_in_words(config)
        yield "weights (SHA-256)", config.weights_sha256
        yield "calibration (SHA-256)", config.calibration_sha256

    def _figures(self) -> Iterator[tuple[str, str]]:
        """The student's figures on its own test images, if it has been evaluated."""
        folder = self.detector.folder
        known: dict[str, Any] = (load_evaluation(folder) if folder else None) or {}
        for name, words in FIGURES.items():
            if isinstance(known.get(name), float | int):
                yield words, _percent(known[name])
        if {"n_normal", "n_anomalous", "split"} <= known.keys():
            counts = f"{known['n_normal']} normal and {known['n_anomalous']} anomalous images"
            yield "measured on", f"{counts} ({known['split']})"

    def _histogram(self) -> dict[str, Any] | None:
        """Bars of the scores of normals and of these images, and where the threshold is, all in 0…1; None without.

        Scores far above all normals are counted in the last bar, or the others would be one bar.
        """
        normals = self.detector.calibration_scores
        if normals is None or not self.entries:
            return None
        scores = np.array([entry.score for entry in self.entries])
        low = float(min(normals.min(), scores.min()))
        usual = max(float(normals.max()), self.threshold)
        high = min(max(float(scores.max()), usual), usual + 2 * (usual - low) + 1e-9)
        bars = [np.histogram(of.clip(low, high), BINS, (low, high))[0] for of in (normals, scores)]
        return {
            "bins": BINS,
            "bars": [(bar / max(bar.max(), 1)).tolist() for bar in bars],
            "threshold": (self.threshold - low) / (high - low),
            "low": f"{low:.3g}",
            "high": f"{high:.3g}" + (" and above" if scores.max() > high else ""),
        }


def check_report(file: Path) -> None:
    """Check, before any work, that a report may be written to a file: of others' pages, none is replaced.

    Raises:
        UserError: the name does not end with .html, the folder is missing or read-only, or the file is something else.
    """
    check_output(file, ENDINGS)
    if not file.exists():
        return
    with open(file, encoding="utf-8", errors="replace") as lines:
        head = lines.read(200)
    if head and MARK not in head:
        raise UserError(f"{shown(file)} holds something other than a report, and is kept; choose another --output")


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Pixels uint8 (H, W, 3), the longer side at most `SIDE`; small images are enlarged by a whole factor."""
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    scale = max(1, int(scale)) if scale >= 1 else scale
    size = max(1, round(width * scale)), max(1, round(height * scale))
    kind = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize(size, kind, reducing_gap=3.0))


def _normals_in_words(config: StudentConfig) -> str:
    """The name of the normals, to follow the word normal; an own folder has no classes."""
    if is_folder(config.dataset):
        return f"images of {dataset_slug(config.dataset)}"
    return f"{config.normal_class} of {config.dataset}"


def _data_url(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0 < share < 1 else f"{100 * share:.0f} %"


def _unusualness(share_below: float, normals: int) -> str:
    if share_below in (0, 1):
        return f"{'more' if share_below else 'less'} unusual than all {normals} normals"
    return f"more unusual than {_percent(share_below)} of {normals} normals"


def _rate(share: float) -> str:
    return f"{100 * share:.3g} %"
