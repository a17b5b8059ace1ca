"""The results file of sweeps, with one entry per data set and teacher, for README and app. Imports no torch.

An entry is the result of `kdad.training.sweep.run_sweep`. It may also contain `baselines`, other methods on the
same teacher's features: `{name: {"classes": {class: AUROC}, "mean": AUROC}}`; they are kept by a new sweep of
the same teacher.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from kdad.errors import UserError
from kdad.evaluation.published import REFERENCES, Reference
from kdad.files import write_json
from kdad.scores import SELECTION_CLASSES, score_named

RESULTS = Path("benchmarks") / "results" / "one_vs_rest.json"
AUROCS = {"auroc": "default score", "auroc_last_layer": "last layer alone", "auroc_mkd": "published score"}
FAMILIES = {"vgg": "VGG", "vit": "ViT", "conv": "CNN"}
LABELS_SEEN = {"related": False, "none": False, "same": True}
DATASET = "cifar10"  # of the published figures and the square
# Teachers that separate the effects of architecture and labels: same data, both architectures.
SQUARE = {
    ("vgg", False): "vgg-lite0",
    ("vgg", True): "vgg-cifar10",
    ("vit", False): "vit-lite0",
    ("vit", True): "vit-cifar10",
    ("conv", False): "lite0-imagenet",
}


@dataclass(frozen=True)
class Figure:
    """An AUROC in 0…1: mean and, with several seeds, sample standard deviation over seeds."""

    mean: float
    deviation: float | None = None

    def __str__(self) -> str:
        spread = "" if self.deviation is None else f" ± {100 * self.deviation:.2f}"
        return f"{100 * self.mean:.2f}{spread}"


@dataclass(frozen=True)
class Line:
    """One system's figures on one data set by one score, with their provenance.

    `mean` is over all classes, `headline` over those not used to select the score; None if no figures per class are
    published.
    """

    name: str
    family: str
    label_overlap: str
    score: str
    mean: Figure
    headline: Figure | None
    classes: dict[str, Figure]
    provenance: str
    published: bool = False

    @property
    def baseline(self) -> bool:
        """Whether the system is a method on a teacher's features without a student."""
        return not self.published and self.score not in AUROCS


def load_results(file: Path) -> dict[str, dict[str, Any]]:
    """Read the entries by key `<data set>/<teacher>`; none if the file does not exist.

    Raises:
        UserError: the file is damaged.
    """
    if not file.is_file():
        return {}
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        for entry in entries.values():
            for score in AUROCS:
                str(_lines_of(entry, score))
            cost_of(entry), images_of(entry)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is no results file ({type(error).__name__}: {error}); remove or restore it") from None
    return entries


def merge_entry(file: Path, entry: dict[str, Any]) -> None:
    """Write `entry` to the results file, replacing the one for the same data set and teacher."""
    entries = load_results(file)
    key = f"{entry['dataset']}/{entry['teacher']}"
    before = entries.get(key, {})
    if before.get("teacher_sha256") == entry["teacher_sha256"] and "baselines" in before:
        entry = {"baselines": before["baselines"]} | entry
    write_json(file, dict(sorted({**entries, key: entry}.items())))


def lines(results: dict[str, dict[str, Any]], dataset: str, score: str) -> list[Line]:
    """All systems with figures on `dataset` by `score`: ours, their baselines, then the published ones."""
    ours = [line for entry in entries_of(results, dataset) for line in _lines_of(entry, score)]
    return ours + [_published(reference) for reference in REFERENCES if reference.dataset == dataset]


def cell(results: dict[str, dict[str, Any]], dataset: str, score: str, family: str, labels_seen: bool) -> list[Line]:
    """Lines in one cell of the square of architecture × labels seen, without baselines."""
    return [
        line
        for line in lines(results, dataset, score)
        if line.score in (score, "as published")
        and line.family == family
        and LABELS_SEEN.get(line.label_overlap) is labels_seen
    ]


def effects(results: dict[str, dict[str, Any]], score: str) -> list[str]:
    """Describe the effect of each factor of the square, where both of its ends are measured."""
    ours = {key: results.get(f"{DATASET}/{teacher}") for key, teacher in SQUARE.items()}
    means = {key: 100 * headline_of(entry, score).mean for key, entry in ours.items() if entry}
    sentences = []
    for family, name in FAMILIES.items():
        if {(family, True), (family, False)} <= means.keys():
            gain = means[family, True] - means[family, False]
            sentences.append(f"having seen the labels changes a {name} teacher's students by {gain:+.2f} points")
    for seen in (False, True):
        if {("vit", seen), ("vgg", seen)} <= means.keys():
            gain = means["vit", seen] - means["vgg", seen]
            sentences.append(f"ViT instead of VGG, labels {'seen' if seen else 'not seen'}: {gain:+.2f} points")
    return sentences


def mean_of(entry: dict[str, Any], score: str) -> Figure:
    """Mean of an entry over its classes."""
    return Figure(float(entry["mean"][score]), entry["mean_deviation"][score])


def headline_of(entry: dict[str, Any], score: str) -> Figure:
    """Mean of an entry over the classes not used to select the score."""
    return _headline(entry["dataset"], {name: at[score]["values"] for name, at in entry["classes"].items()})


def _headline(dataset: str, values: Mapping[str, Sequence[float]]) -> Figure:
    """Mean over seeds of the mean over classes not used for selection, or over all classes if all were used."""
    unused = [of_class for name, of_class in values.items() if dataset != DATASET or name not in SELECTION_CLASSES]
    by_seed = [fmean(of_seed) for of_seed in zip(*(unused or values.values()), strict=True)]
    return Figure(fmean(by_seed), stdev(by_seed) if len(by_seed) > 1 else None)


def _lines_of(entry: dict[str, Any], score: str) -> list[Line]:
    teacher, family, overlap = Path(entry["teacher"]).name, entry["family"], entry["label_overlap"]
    provenance = provenance_of(entry)
    classes = {name: Figure(float(at[score]["mean"]), at[score]["deviation"]) for name, at in entry["classes"].items()}
    mean, headline = mean_of(entry, score), headline_of(entry, score)
    found = [Line(teacher, family, overlap, score, mean, headline, classes, provenance)]
    untrained = f"{entry['split']} split; no student, nothing to select"
    for name, figures in entry.get("baselines", {}).items():
        values = {key: Figure(float(value)) for key, value in figures["classes"].items()}
        mean = Figure(float(figures["mean"]))
        headline = _headline(entry["dataset"], {key: [figure.mean] for key, figure in values.items()})
        found.append(Line(f"{name} on {teacher}", family, overlap, name, mean, headline, values, untrained))
    return found


def _published(reference: Reference) -> Line:
    classes = {name: Figure(value / 100) for name, value in reference.classes.items()}
    provenance = f"{reference.split} split; {reference.selection}"
    mean = Figure(reference.mean / 100)
    values = {name: [figure.mean] for name, figure in classes.items()}
    headline = _headline(reference.dataset, values) if values else None
    name, family, overlap = reference.name, reference.family, reference.label_overlap
    return Line(name, family, overlap, "as published", mean, headline, classes, provenance, True)


def entries_of(results: dict[str, Any], dataset: str) -> list[dict[str, Any]]:
    """The entries of one data set."""
    return [entry for entry in results.values() if entry["dataset"] == dataset]


def seeds_of(entry: dict[str, Any]) -> str:
    """Describe the seeds of an entry's figures."""
    return "seed 0" if entry["seeds"] == 1 else f"mean of seeds 0 to {entry['seeds'] - 1}"


def provenance_of(entry: dict[str, Any]) -> str:
    """Describe split, seeds and selection of an entry's figures."""
    return f"{entry['split']} split; {seeds_of(entry)}; last epoch; score {score_named(entry['score']).selection}"


def images_of(entry: dict[str, Any]) -> str:
    """Note on test images that are not the lossless originals; '' otherwise."""
    if entry["image_format"] != "JPEG":
        return ""
    return f"{entry['dataset']} here is re-encoded as JPEG: figures differ slightly from those on lossless images."


def cost_of(entry: dict[str, Any]) -> str:
    """Time for one student, with the hardware."""
    seconds = entry["seconds_per_student"]
    return "unknown" if seconds is None else f"{seconds:.0f} s ({'; '.join(entry['hardware'])})"


def sweep_command(dataset: str, teacher: str, seeds: int = 3) -> str:
    """Shell command that creates one entry."""
    return (
        f"python -m kdad sweep --dataset {dataset} --teacher {teacher} --normal-class all --seeds {seeds} "
        f"--results {RESULTS.as_posix()}"
    )
