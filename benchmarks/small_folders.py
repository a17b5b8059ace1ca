"""Verdicts of folders with few normals: `python -m benchmarks.small_folders FOLDER…`.

The default score of whole images is fitted to n of a folder's normals, drawn several times, and judges the whole test
part at a false-positive rate of 5 %, or at the lowest that n normals can hold. Reported are the AUROC of the ranking,
and how many good images and how many defects are called anomalous: where the ranking is right, the verdicts should be,
too.

FOLDER is in the layout of MVTec AD.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.regions import LAYERS, layer_maps, replace_rows
from kdad.data.datasets import FOLDER
from kdad.data.folders import FolderTask, ImageFiles
from kdad.detection import conformal
from kdad.detection.normal_patches import NormalPatches, worst_places
from kdad.evaluation import metrics
from kdad.networks.teachers.loading import load_teacher
from kdad.networks.teachers.registry import LITE0, default_image_size

RESULTS = Path(__file__).resolve().parent / "results" / "small_folders.json"
SIZES = (12, 24, 50, 100, 200)
DRAWS = 5
FPR = 0.05
AT_ONCE = 16  # images


def judged(known: Sequence[Tensor], test: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Scores of normals, each left out, (n,) and of test images (N,), from their maps (n or N, C, h, w)."""
    fitted, left_out = NormalPatches.fit_maps(lambda: [list(known)])
    batches = zip(*(layer.split(AT_ONCE) for layer in test), strict=True)
    scores = [worst_places(fitted.distances(list(batch))).sum(1) for batch in batches]
    return worst_places(left_out).sum(1).numpy(), torch.cat(scores).numpy()


@torch.inference_mode()
def measure(folder: Path) -> list[dict]:
    """One row per number of normals: means over draws, in per cent, and their deviations."""
    name = f"{FOLDER}{folder}"
    teacher = load_teacher(LITE0, image_size=default_image_size(LITE0, name), layers=LAYERS)
    task = FolderTask(folder, teacher.preprocessing)
    assert task.test is not None
    anomalous = task.test.anomalous.numpy()
    known, test = (
        [layer.float() for layer in layer_maps(teacher, images)[1:]]
        for images in (ImageFiles(task.layout.normals, task.max_value), task.test.images)
    )
    rows = []
    for normals in (size for size in SIZES if size <= len(known[0])):
        fpr = max(FPR, conformal.lowest_fpr(normals))
        found = []
        for seed in range(DRAWS):
            drawn = torch.randperm(len(known[0]), generator=torch.Generator().manual_seed(seed))[:normals]
            calibration, scores = judged([layer[drawn] for layer in known], test)
            called = conformal.p_values(scores, calibration) <= fpr + 1e-9
            found.append([metrics.auroc(scores, anomalous), called[~anomalous].mean(), called[anomalous].mean()])
        means, spreads = 100 * np.mean(found, 0), 100 * np.std(found, 0, ddof=1)
        figures = dict(zip(("auroc", "false_positives", "detected"), means.round(2).tolist(), strict=True))
        spread = dict(zip(("auroc", "false_positives", "detected"), spreads.round(2).tolist(), strict=True))
        rows.append({"folder": folder.name, "normals": normals, "fpr": round(100 * fpr, 2), **figures, "std": spread})
    return rows


def main(argv: list[str] | None = None) -> None:
    """Measure folders, and replace their rows in the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    for folder in args.folders:
        rows = measure(folder.resolve())
        replace_rows(args.results, {"rows": rows}, {"draws": DRAWS})
        for row in rows:
            print(row, flush=True)


if __name__ == "__main__":
    main()
