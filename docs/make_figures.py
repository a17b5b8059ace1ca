"""Makes the figures of the documentation: `python -m docs.make_figures`, once students, results or the way change.

Every figure is written twice, for light and for dark pages. What is measured comes from shipped students and from
`benchmarks/results/`.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.tables import DATASET, ROOT
from kdad import Detector
from kdad.data import photo_textures
from kdad.detection import conformal
from kdad.detection.rendering import overlay
from kdad.evaluation import results_file
from kdad.networks.features import forward_in_chunks

FIGURES = Path(__file__).parent / "assets" / "figures"
STUDENTS = ROOT / "trained_students"
TEXTURE, DEFECT, DRAW = "brick", "scratch", 102
SCHEMES = {
    "light": {"text": "#222222", "line": "#888888", "box": "#efe7f5", "accent": "#5b2a6b", "odd": "#d9480f"},
    "dark": {"text": "#dddddd", "line": "#888888", "box": "#3a2b45", "accent": "#c79bdc", "odd": "#ff8c5a"},
}
Colours = dict[str, str]


def main() -> None:
    """Write all figures, in both schemes."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    for name, (kind, draw) in {
        "way": ("svg", way), "copy": ("png", copied()), "verdict": ("svg", verdict()), "labels": ("svg", labels),
    }.items():  # fmt: skip
        for scheme, colours in SCHEMES.items():
            _save(draw(colours), FIGURES / f"{name}-{scheme}.{kind}", colours)


def way(colours: Colours) -> Figure:
    """The way of an image, from its pixels to score, p-value and heatmap, and the files that do each step."""
    figure, axes = _figure(9.6, 3.5)
    axes.set(xlim=(0, 96), ylim=(0, 35))
    axes.axis("off")
    boxes = {
        "image": (0, 14, 12, "image\ninputs.py"),
        "teacher": (18, 24, 18, "teacher, frozen\nnetworks/teachers/"),
        "student": (18, 4, 18, "student\nnetworks/students.py"),
        "error": (42, 14, 19, "discrepancy\ndiscrepancy.py"),
        "own": (42, 27, 19, "teacher's own distance\nnormal_patches.py"),
        "score": (67, 24, 12, "score\nscores.py"),
        "map": (67, 4, 12, "heatmap\nheatmaps.py"),
        "p": (84, 24, 12, "p-value\nconformal.py"),
    }
    for x, y, width, words in boxes.values():
        axes.add_patch(FancyBboxPatch((x, y), width, 7, "round,pad=0,rounding_size=1", fc=colours["box"], ec="none"))
        first, second = words.split("\n")
        axes.text(x + width / 2, y + 4.5, first, ha="center", va="center", color=colours["text"], fontsize=9)
        axes.text(x + width / 2, y + 2, second, ha="center", va="center", color=colours["line"], fontsize=6.5)
    for start, end in (
        ("image", "teacher"), ("image", "student"), ("teacher", "error"), ("student", "error"), ("teacher", "own"),
        ("error", "score"), ("own", "score"), ("error", "map"), ("own", "map"), ("score", "p"),
    ):  # fmt: skip
        (x, y, width, _), (to, height, _, _) = boxes[start], boxes[end]
        arrow = {"arrowstyle": "->", "color": colours["line"], "lw": 1}
        axes.annotate("", (to - 0.3, height + 3.5), (x + width + 0.3, y + 3.5), arrowprops=arrow)
    return figure


def copied() -> Callable[[Colours], Figure]:
    """A defect in a photograph, what the teacher and the student give of it, where they differ, and the heatmap."""
    detector = Detector.load(STUDENTS / "photo-textures" / "lite0-imagenet" / TEXTURE, device="cpu")
    pixels = photo_textures.defective(TEXTURE, DEFECT, 1, DRAW)[0][0].transpose(1, 2, 0)
    prediction = detector.predict(pixels)
    height, width = pixels.shape[:2]
    inputs = detector.teacher.preprocessing(detector.tiler.split(_batch(pixels)))
    grid, prefix = detector.teacher.grids[0], detector.teacher.prefix
    copies = forward_in_chunks(detector.student, inputs)
    theirs, ours = _main_direction(detector.teacher(inputs)[0][0, prefix:], copies[0][0, prefix:], grid)
    errors = prediction.measurement.patch_maps[0][0]
    heat = overlay(pixels, prediction.heatmap_at(height, width)[0], *detector.colour_range)
    shown = {"image": pixels, "teacher": theirs, "student": ours, "discrepancy": errors, "heatmap": heat}

    def drawn(colours: Colours) -> Figure:
        figure = Figure(figsize=(9.6, 2.15), layout="constrained")
        for axes, (name, picture) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
            limits = {"vmin": theirs.min(), "vmax": theirs.max()} if name in ("teacher", "student") else {}
            axes.imshow(picture, cmap="inferno" if name == "discrepancy" else "viridis", **limits)
            axes.set_title(name, color=colours["text"], fontsize=9)
            axes.axis("off")
        return figure

    return drawn


def _batch(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]


def _main_direction(teacher: Tensor, student: Tensor, grid: tuple[int, int]) -> list[np.ndarray]:
    """Tokens (T, D) of both, of length one, along the direction in which the teacher's vary most, as maps."""
    theirs, ours = (normalize(tokens.detach(), dim=1) for tokens in (teacher, student))
    mean = theirs.mean(0)
    direction = torch.linalg.svd(theirs - mean, full_matrices=False).Vh[0]
    return [((tokens - mean) @ direction).reshape(grid).numpy() for tokens in (theirs, ours)]


def verdict() -> Callable[[Colours], Figure]:
    """Scores of held-out cats, the threshold at 5 %, and where photographs of a cat and of a rocket fall."""
    detector = Detector.load(STUDENTS / "cifar10" / "vgg-cifar10" / "cat", device="cpu")
    normals, threshold = np.asarray(detector.calibration_scores), detector.threshold(0.05)
    photographs = ROOT / "kdad" / "data" / "photographs"
    scores = {name: float(detector.predict(_small(photographs / f"{name}.jpg")).score[0]) for name in ("cat", "rocket")}

    def drawn(colours: Colours) -> Figure:
        figure, axes = _figure(9.6, 2.8)
        counts, _, bars = axes.hist(normals, bins=40, color=colours["accent"])
        for bar in bars:
            bar.set_alpha(1 if bar.get_x() > threshold else 0.55)
        axes.axvline(threshold, color=colours["text"], lw=1, ls="--")
        top = counts.max()
        axes.set_ylim(0, 1.45 * top)
        beside = {"xytext": (3, 0), "textcoords": "offset points", "fontsize": 8, "va": "top"}
        axes.annotate("threshold at 5 %", (threshold, 1.4 * top), color=colours["text"], **beside)
        for name, score in scores.items():
            p = conformal.p_values(np.array([score]), normals)[0]
            axes.axvline(score, color=colours["odd"], lw=1.5)
            words = f"photograph of a {name}:\np = {p:.4f}"
            axes.annotate(words, (score, 1.4 * top), color=colours["odd"], **beside)
        axes.set_xlim(normals.min(), max(*scores.values(), normals.max()) + 0.25 * np.ptp(normals))
        axes.set_xlabel(f"score of {len(normals)} held-out cats", color=colours["text"], fontsize=9)
        axes.set_yticks([])
        return figure

    return drawn


def _small(file: Path) -> np.ndarray:
    """The middle of a photograph at the 32 px of CIFAR-10's images."""
    with Image.open(file) as photo:
        side = min(photo.size)
        left, top = ((length - side) // 2 for length in photo.size)
        middle = photo.convert("RGB").crop((left, top, left + side, top + side))
        return np.asarray(middle.resize((32, 32), Image.Resampling.LANCZOS))


def labels(colours: Colours) -> Figure:
    """Mean AUROC of the students of each kind of teacher, with the labels of the anomalies seen and not seen."""
    entries = results_file.load_results(ROOT / "benchmarks" / "results" / "one_vs_rest.json")
    figure, axes = _figure(9.6, 2.2)
    shown = ("vgg-cifar10", "vit-cifar10", "lite0-imagenet", "vgg-lite0", "vit-lite0")
    for row, teacher in enumerate(reversed(shown)):
        entry = entries[f"{DATASET}/{teacher}"]
        mean, seen = 100 * results_file.headline_of(entry, "auroc").mean, entry["label_overlap"] == "same"
        axes.barh(row, mean - 80, left=80, color=colours["odd"] if seen else colours["accent"], height=0.65)
        words = f"{mean:.1f}, labels {'seen' if seen else 'not seen'}"
        axes.text(mean + 0.2, row, words, va="center", fontsize=8, color=colours["text"])
    axes.set_yticks(range(len(shown)), list(reversed(shown)), fontsize=8)
    axes.set_xlim(80, 104)
    axes.set_xticks(range(80, 101, 5))
    axes.set_xlabel("mean AUROC of eight classes of CIFAR-10, per cent; the axis begins at 80", fontsize=8)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Figure, file: Path, colours: Colours) -> None:
    """Save with a clear background, its axes in the colours of the page; the same bytes for the same figure."""
    for axes in figure.axes:
        for spine in _spines(axes):
            spine.set_color(colours["line"])
        axes.tick_params(colors=colours["text"], labelsize=8)
        axes.xaxis.label.set_color(colours["text"])
    facts = {"Date": None} if file.suffix == ".svg" else {}
    with matplotlib.rc_context({"svg.hashsalt": "kdad", "svg.fonttype": "none"}):
        figure.savefig(file, transparent=True, dpi=150, metadata=facts)
    if file.suffix == ".png":  # in 256 colours, for a clone to stay small
        Image.open(file).quantize(256, method=Image.Quantize.FASTOCTREE).save(file, optimize=True)


def _spines(axes: Axes) -> Iterable:
    axes.spines["top"].set_visible(False)
    axes.spines["right"].set_visible(False)
    return axes.spines.values()


if __name__ == "__main__":
    main()
