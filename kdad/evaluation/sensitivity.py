"""Detection of drawn defects by a student of photographs: a first estimate where nobody has real ones yet.

It says what the student does not see at all, rather than how good it is: drawn defects are no real ones, and no choice
is made by them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from kdad.data.images import evenly
from kdad.data.preprocessing import Preprocessing
from kdad.data.protocol import ENOUGH_TO_CALIBRATE
from kdad.data.pseudo_anomalies import KINDS, draw_pseudo_anomalies
from kdad.data.task import Task
from kdad.detection.detector import Detector
from kdad.detection.normal_patches import MAX_NORMALS
from kdad.files import write_json
from kdad.progress import DRAWING, Stage, track
from kdad.scores import LOCAL_DISTANCE
from kdad.storage import layout, student_folder
from kdad.storage.sealing import sealed

DRAWN = 14  # defects of each kind
COST = 2.5  # of one of them, in looks of a teacher at an image
SEED = 1  # calibration draws with 0
SIZES = {"under 1 %": (0.0, 0.01), "1 to 10 %": (0.01, 0.1), "over 10 %": (0.1, 1.01)}  # of the image
WEAK = 0.5  # share of a kind or size below which it counts as not found


@dataclass(frozen=True)
class DrawnDefects:
    """Drawn defects and whether they were called anomalous.

    Args:
        kinds: one of `kdad.data.pseudo_anomalies.KINDS` each, (N,).
        shares: of the image that they cover, 0…1, (N,).
        found: whether they were, (N,) bool.
        fpr: the false-positive rate at which.
        normals: how many normals the student knows.
    """

    kinds: Sequence[str]
    shares: np.ndarray
    found: np.ndarray
    fpr: float
    normals: int

    @property
    def of_kinds(self) -> dict[str, tuple[int, int]]:
        """The number of each kind found, and of how many."""
        return {kind: self._count(np.array(self.kinds) == kind) for kind in KINDS}

    @property
    def of_sizes(self) -> dict[str, tuple[int, int]]:
        """The number of each of `SIZES` found, and of how many."""
        within = {size: (self.shares >= low) & (self.shares < high) for size, (low, high) in SIZES.items()}
        return {size: self._count(chosen) for size, chosen in within.items() if chosen.any()}

    def _count(self, chosen: np.ndarray) -> tuple[int, int]:
        return int(self.found[chosen].sum()), int(chosen.sum())

    @property
    def lines(self) -> list[str]:
        """Sentences on what is found, and on what would help."""
        found, total = self._count(np.ones(len(self.found), bool))
        sizes = ", ".join(f"{some} of {of} that cover {size}" for size, (some, of) in self.of_sizes.items())
        said = [
            f"Of {total} defects drawn into normal images, {found} are found at {100 * self.fpr:.3g} % false alarms: "
            f"{sizes} of the image. Drawn defects are no real ones."
        ]
        weak = {kind: some for kind, some in self.of_kinds.items() if some[0] < WEAK * some[1]}
        if weak:
            kinds = ", ".join(f"{kind} ({some} of {of})" for kind, (some, of) in weak.items())
            said.append(f"Hardly found: {kinds}. {self._help}")
        return said

    @property
    def _help(self) -> str:
        if self.normals < ENOUGH_TO_CALIBRATE:
            return f"More normal images than {self.normals} would help, photographed alike."
        return "Photographs that are more alike (place, angle, light), or a larger image size, would help."


def drawing(task: Task) -> list[Stage]:
    """The stage of `try_drawn_defects`; none where it does nothing."""
    return [Stage(DRAWING, DRAWN * len(KINDS), COST)] if task.score == LOCAL_DISTANCE else []


def try_drawn_defects(task: Task, detector: Detector, folder: Path) -> list[str]:
    """Try a student on drawn defects, and write what it finds into its folder and card; returns it in sentences.

    Only of whole photographs (score `local-distance`); for others nothing is done.
    """
    if detector.config.score != LOCAL_DISTANCE or detector.calibration is None:
        return []
    tried = draw_and_judge(detector, task)
    values = {"fpr": tried.fpr, "lines": tried.lines, "kinds": tried.of_kinds, "sizes": tried.of_sizes}
    write_json(folder / layout.SENSITIVITY, sealed(values))
    student_folder.save_card(folder, detector.config)
    return tried.lines


def draw_and_judge(detector: Detector, task: Task) -> DrawnDefects:
    """Draw defects into some training images, and judge each by a student whose memory lacks those images."""
    calibration = detector.calibration
    assert calibration is not None and calibration.patches is not None
    known = calibration.patches.nearest.memory.shape[2]
    remembered = evenly(len(task.train) + int((~task.validation.anomalous).sum()), MAX_NORMALS)
    rows = torch.arange(len(remembered))[remembered < len(task.train)]
    rows = rows[evenly(len(rows), DRAWN * len(KINDS) // 2)]  # of few normals, at most every one
    rows = rows[evenly(len(rows), max(1, known // 2))]  # enough must remain to compare with
    without = replace(calibration, patches=calibration.patches.without(rows.tolist()))
    judge = Detector(detector.config, detector.student, detector.teacher, without)
    judge.operating_point = detector.operating_point
    images = task.train[remembered[rows]].permute(0, 2, 3, 1).numpy()
    chosen = np.arange(DRAWN * len(KINDS)) % len(images)
    drawn = draw_pseudo_anomalies(images[chosen], SEED)
    predictions = judge.predict_each(torch.from_numpy(image).permute(2, 0, 1) for image in drawn.images)
    found = np.concatenate([part.is_anomaly for part in track(DRAWING, predictions, len)])
    seen = _within(calibration.patches.region_map, drawn.masks, detector.teacher.preprocessing)
    kinds = [kind for kind, inside in zip(drawn.kinds, seen, strict=True) if inside]
    return DrawnDefects(kinds, drawn.masks.mean((1, 2))[seen], found[seen], judge.default_fpr, known)


def _within(region: torch.Tensor, masks: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Tell which masks (N, H, W) lie in a region (h, w) of the crop for the most part, (N,) bool.

    All do where there is no region: what lies outside of the crop is not found, which is to be said.
    """
    if region.all():
        return np.ones(len(masks), bool)
    cropped = preprocessing.cropped(torch.from_numpy(masks)).numpy()
    inside = interpolate(region[None, None].float(), cropped.shape[1:])[0, 0].numpy() > 0
    return (cropped & inside).sum((1, 2)) >= masks.sum((1, 2)) / 2
