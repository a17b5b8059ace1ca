"""Renders the results files as tables of README and docs: `python benchmarks/tables.py`. None is copied by hand."""

import argparse
import json
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from kdad.data.sizes import as_size, size_in_words
from kdad.errors import UserError
from kdad.evaluation import results_file
from kdad.evaluation.published import REFERENCES
from kdad.evaluation.results_file import AUROCS, DATASET, FAMILIES, LABELS_SEEN, SQUARE, Line, load_results
from kdad.files import write_text
from kdad.networks.teachers.cards import origin, without_labels
from kdad.networks.teachers.registry import CARD_FILE, LITE0, WEIGHTS_FOLDER, shipped

ROOT = Path(__file__).resolve().parent.parent
SEEN = {True: "seen", False: "not seen", None: "unknown"}


def headline(entries: dict[str, dict]) -> str:
    """Render what a newcomer should know first: our VGG students with and without labels, and others' figures."""
    sentences = []
    for teacher, trained in (
        (
            "vgg-cifar10",
            "with a teacher that was trained on CIFAR-10 *with the labels of all ten classes*, the anomalous too",
        ),
        ("vgg-lite0", "with one that saw labels of related classes, none of CIFAR-10"),
        ("lite0-imagenet", "with EfficientNet-Lite0 of ImageNet, which did so, too"),
    ):
        if entry := entries.get(f"{DATASET}/{teacher}"):
            mean, seeds = results_file.headline_of(entry, "auroc").mean, results_file.seeds_of(entry)
            sentences.append(f"**{100 * mean:.1f} %** {trained} (`{teacher}`, {seeds})")
    others = [line for line in results_file.lines({}, DATASET, "auroc") if line.published and line.headline]
    published = "; ".join(
        f"{line.name}: {line.headline} %, labels {SEEN[LABELS_SEEN[line.label_overlap]]}" for line in others
    )
    ours = ", and ".join(filter(None, [", ".join(sentences[:-1]), *sentences[-1:]]))
    copied = "the compact VGG and EfficientNet-Lite0" if f"{DATASET}/{LITE0}" in entries else "the compact VGG"
    return (
        f"Mean test AUROC on CIFAR-10 one-vs-rest, over the eight classes that had no part in choosing the score, "
        f"students of {copied}: {ours}. ({published}.)"
    )


# Image AUROC on MVTec's screw, from the model pages of anomalib's documentation (seed 42), by backbone or size.
PUBLISHED_SCREW: dict[str, dict[str, float]] = {
    "PaDiM": {"ResNet-18": 75.9, "WideResNet-50": 84.5},
    "STFPM": {"ResNet-18": 83.5},
    "PatchCore": {"ResNet-18": 94.3, "WideResNet-50": 96.0},
    "EfficientAD": {"S": 96.0, "M": 97.5},
    "Reverse Distillation": {"WideResNet-50": 98.5},
}
FRONT_FOLDERS = {
    "mvtec-screw": "MVTec screw",
    "kolektor-sdd": "KolektorSDD",
    "magnetic-tile-blowholes": "magnetic tiles, blowholes",
}
FRONT_TEACHERS = {LITE0: "its labels not seen, those of related classes of ImageNet seen", "vgg-cifar10": "labels seen"}


def _usual(photographed: dict) -> list[dict]:
    """The rows of photographs under the default teacher without a GPU, which alone compare with others."""
    return [row for row in photographed["rows"] if (row["teacher"], row["device"]) == (LITE0, "cpu")]


def _machines(rows: Iterable[dict]) -> str:
    return "; ".join(sorted({row["hardware"] for row in rows}))


def published_screw() -> str:
    """Published figures on screw, in a sentence."""
    named = (f"{name} {_published(name)}" for name in PUBLISHED_SCREW)
    return (
        "Published figures on screw, other teachers, image AUROC, as the tables of anomalib's documentation have them: "
        f"{', '.join(named)}."
    )


def _published(method: str) -> str:
    figures = PUBLISHED_SCREW[method]
    return " to ".join(f"{figure:.1f} ({of})" for of, figure in figures.items())


def front(entries: dict[str, dict], photographed: dict, others: dict) -> str:
    """Render the README's table: ours beside others, on photographs and on CIFAR-10, with seconds."""
    methods = ("PatchCore", "PaDiM", "EfficientAD")
    rows = [["images", "kdad", *methods, "kdad's seconds"]]
    peers_of = {(row["method"], row["dataset"]): row for row in others["rows"]}
    for row in (row for row in _usual(photographed) if row["dataset"] in FRONT_FOLDERS):
        cells = []
        for method in methods:
            run = peers_of.get((method, row["dataset"]))
            cell = [] if run is None else [_image_and_pixel(run)]
            if row["dataset"] == "mvtec-screw":
                cell.append(f"published: {_published(method)}")
            cells.append("; ".join(cell) or "–")
        rows.append([FRONT_FOLDERS[row["dataset"]], _image_and_pixel(row), *cells, str(row["seconds"])])
    for teacher, seen in FRONT_TEACHERS.items():
        if entry := entries.get(f"{DATASET}/{teacher}"):
            mean = f"{100 * results_file.headline_of(entry, 'auroc').mean:.1f}"
            seconds = f"{entry['seconds_per_student']:.0f} of training"
            rows.append([f"CIFAR-10, one class against the rest, {seen} (`{teacher}`)", mean, "–", "–", "–", seconds])
    unseen = [line for line in REFERENCES if line.dataset == DATASET and not LABELS_SEEN.get(line.label_overlap)]
    best = max(unseen, key=lambda line: line.mean)
    words = (
        "AUROC of images / of pixels on the test part, per cent. PatchCore and PaDiM are anomalib's, run here with the "
        f"same teacher (`{LITE0}`), images and size. Published ones have other teachers, and are those of anomalib's "
        "documentation. Seconds are from the start of `train` to its figures, on two processor cores without a GPU, "
        "without the drawn defects that it tries as well (some 8 seconds); for CIFAR-10, of training, on one core. The "
        f"best published figures are higher: {_best_on_screw()} on screw, {best.mean:.1f} on all classes of CIFAR-10 "
        f"without its labels ({best.name.split(' (')[0]})."
    )
    return f"{_table(rows)}\n\n{words}"


def _best_on_screw() -> str:
    figures = [(figure, method) for method, of in PUBLISHED_SCREW.items() for figure in of.values()]
    return "{:.1f} ({})".format(*max(figures))


def _image_and_pixel(row: dict) -> str:
    return " / ".join(f"{100 * row[name]:.1f}" for name in ("auroc", "pixel_auroc") if name in row)


def install(measured: dict[str, dict]) -> str:
    """Say what an installation takes, one row per build of torch."""
    rows = [["installation", "MB", "seconds", "Python", "torch", "on"]]
    for name, row in measured.items():
        size = f"{row['megabytes']:,}"
        rows.append([name, size, str(row["seconds"]), row["python"], row["torch"], row["system"]])
    words = (
        "Of a fresh virtual environment, with all that kdad needs and no extras (`python benchmarks/install.py NAME`); "
        "seconds depend on the network. Afterwards a shipped student judges an image there."
    )
    return f"{_table(rows)}\n\n{words}"


CORES, MANY_CORES, MANY_IMAGES, MANY_STUDENTS = 2, 1_000, 100_000_000, 10_000


def scale(speeds: dict, photographed: dict, growing: dict) -> str:
    """Work out what 100 million images and 10,000 students take from what one takes on two cores."""
    cpu, one, every = speeds["cpu"], [["one of", "takes on two cores", "measured by"]], [["all of"]]
    every[0] += ["core-hours", f"on {MANY_CORES:,} cores"]
    several = "`python -m benchmarks.speed`, ten students on 1,000 images, one after the other"
    images = {f"images of 32 px, `{teacher}`": _one_image(cpu, teacher) for teacher in ("vgg-cifar10", "vit-cifar10")}
    measured_by = dict.fromkeys(images, several)
    if scored := growing.get("scored"):
        count, row = next(iter(scored["rows"].items()))
        name = f"photographs of 320 × 240, `{LITE0}` at 256 px"
        images[name] = row["seconds"] / int(count.replace(",", ""))
        measured_by[name] = f"`python benchmarks/growth.py scored`, {count} of them, start included"
    for name, seconds in images.items():
        one.append([name, f"{1000 * seconds:.1f} ms", measured_by[name]])
        every.append(_all_of(f"{MANY_IMAGES // 10**6} million {name}", MANY_IMAGES * seconds))
    tiles = next(row for row in _usual(photographed) if row["dataset"] == "magnetic-tile-blowholes")
    students = {
        "students of a CIFAR-10 class, `vgg-cifar10`": (
            cpu["a student of a CIFAR-10 class, `vgg-cifar10`"]["seconds"],
            "`python -m benchmarks.speed`, from `train` to AUROC",
        ),
        f"students of {tiles['normals']} photographs, `{LITE0}`": (
            tiles["seconds"],
            "`python benchmarks/photographs.py`, from `train` to figures",
        ),
    }
    for name, (seconds, by) in students.items():
        one.append([name, f"{seconds:.0f} s", by])
        every.append(_all_of(f"{MANY_STUDENTS:,} {name}", MANY_STUDENTS * seconds))
    return f"{_table(one)}\n\n{_table(every)}"


def _one_image(cpu: dict, teacher: str) -> float:
    """Seconds in which one student judges one image, of ten students that judge 1,000 each."""
    return float(cpu[f"ten students on 1,000 images, `{teacher}`"]["baseline_seconds"]) / (10 * 1000)


def _all_of(name: str, seconds: float) -> list[str]:
    hours = CORES * seconds / 3600
    minutes = round(60 * hours / MANY_CORES)
    return [name, f"{hours:,.0f}", f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"]


def render(entries: dict[str, dict], dataset: str = DATASET) -> str:
    """All tables of one data set as Markdown."""
    ours = results_file.entries_of(entries, dataset)
    parts = [
        summary(entries, dataset),
        f"Every class of {dataset}, by the default score:",
        classes(results_file.lines(entries, dataset, "auroc")),
        caption(ours, dataset),
    ]
    if dataset == DATASET:
        changes = "".join(f"\n- {change}" for change in results_file.effects(entries, "auroc"))
        by_side = [f"Like for like:\n{changes}"] if changes else []
        parts[1:1] = ["The same by architecture and labels seen, ours, default score:", square(entries), *by_side]
    if not ours:
        parts.append(f"Ours are not measured yet: `{results_file.sweep_command(dataset, 'vgg-cifar10')}` does it.")
    return "\n\n".join(parts)


def summary(entries: dict[str, dict], dataset: str) -> str:
    """One row per system: mean AUROC by every score, what the teacher saw, how it was selected, its cost.

    Means are over the classes that chose nothing, but for the column of all classes, by the default or published score.
    """
    by_score = {score: {line.name: line for line in results_file.lines(entries, dataset, score)} for score in AUROCS}
    ours = results_file.entries_of(entries, dataset)
    costs = {Path(entry["teacher"]).name: results_file.cost_of(entry) for entry in ours}
    rows = [
        [
            "students of",
            "architecture",
            "labels of the anomalies",
            *AUROCS.values(),
            "all classes",
            "selection",
            "one student",
        ]
    ]
    for name, line in by_score["auroc"].items():
        shown = _scores_of(line)
        figures = [str(by_score[score][name].headline or "–") if score in shown else "–" for score in AUROCS]
        figures.append(str(line.mean))
        seen = f"{SEEN[LABELS_SEEN.get(line.label_overlap)]} ({line.label_overlap})"
        rows.append([name, FAMILIES[line.family], seen, *figures, line.provenance, costs.get(name, "–")])
    return _table(rows)


def _scores_of(line: Line) -> Collection[str]:
    """The columns that a system has a figure in."""
    if line.published:
        return ("auroc_mkd",)
    return ("auroc",) if line.baseline else AUROCS


def square(entries: dict[str, dict]) -> str:
    """Mean AUROC by architecture and whether the teacher saw the labels."""
    rows = [["", "labels not seen", "labels seen"]]
    for family, name in FAMILIES.items():
        row = [name]
        for seen in (False, True):
            teacher = SQUARE.get((family, seen))
            if teacher is None:
                row.append("–")
                continue
            entry = entries.get(f"{DATASET}/{teacher}")
            figure = "not measured" if entry is None else str(results_file.headline_of(entry, "auroc"))
            row.append(f"{figure} ({teacher})")
        rows.append(row)
    return _table(rows)


def classes(lines: list[Line]) -> str:
    """One row per system, one column per normal class."""
    names = list(dict.fromkeys(name for line in lines for name in line.classes))
    rows = [["students of", *names, "mean of all"]]
    rows += [[line.name, *(str(line.classes.get(name, "–")) for name in names), f"**{line.mean}**"] for line in lines]
    return _table(rows)


def caption(entries: list[dict], dataset: str) -> str:
    """State what the figures are, and how those beside ours were selected."""
    words = "AUROC in per cent; ± is the sample deviation over seeds."
    if dataset == DATASET:
        words += (
            " Means leave out cat and airplane, whose validation anomalies chose the default score (table below), but "
            "for the columns *all classes* and *mean of all*."
        )
    references = results_file.lines({}, dataset, "auroc")
    words += "".join(f" {line.name}: {line.provenance}." for line in references)
    return words + "".join(f" {note}" for note in dict.fromkeys(map(results_file.images_of, entries)) if note)


def _table(rows: list[list[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def localisation(measured: dict) -> str:
    """How each method finds defects: one row per teacher and method, and what the figures are."""
    names = ("auroc", "pixel_auroc", "pixel_auroc_without_good", "pro", "pro_without_good", "pixel_ap")
    heads = (
        "image AUROC",
        "pixel AUROC",
        "… no good images",
        "PRO",
        "… no good images",
        "pixel AP",
        "images",
        "ms an image",
    )
    rows = [["students of", "method", *heads]]
    for row in measured["rows"]:
        rows.append([row["teacher"], row["method"], *_percents(row, names), str(row["images"]), f"{row['ms']:.1f}"])
    words = (
        f"`{measured['dataset']}`, texture {measured['texture']}, test split, half of the images with a defect, "
        f"seed {measured['seed']}, {_machines(measured['rows'])}; per cent."
    )
    return f"{_table(rows)}\n\n{words}"


def large_images(measured: dict) -> str:
    """How a small defect in large images is found, in whole images and in tiles."""
    names = ("auroc", "pixel_auroc", "pro", "pixel_ap")
    heads = ("image AUROC", "pixel AUROC", "PRO", "pixel AP", "training s", "ms an image")
    rows = [["students of", "looked at", *heads]]
    for row in measured["rows"]:
        looked_at = f"tiles of {row['tile']} px" if row["tile"] else f"whole images, read at {row['side']} px"
        seconds = f"{row['train_s']:.0f}", f"{row['ms_an_image']:.0f}"
        rows.append([row["teacher"], looked_at, *_percents(row, names), *seconds])
    words = (
        f"Defects of {measured['defect']} px in images of {measured['side']} px, {measured['train_images']} normal "
        f"images to train on, {measured['test_images']} to test, half of them good, seed {measured['seed']}, "
        f"{_machines(measured['rows'])}, {max(row['memory_gb'] for row in measured['rows']):.1f} GB at most; per cent."
    )
    return f"{_table(rows)}\n\n{words}"


def photographs(measured: dict) -> str:
    """How defects on photographs of real things are found, one row per folder and teacher."""
    names = ("auroc", "pixel_auroc", "pro", "pixel_ap")
    heads = ("read at", "image AUROC", "pixel AUROC", "PRO", "pixel AP", "called at 5 %", "seconds", "on")
    rows = [["images", "trained on", "tested on", "students of", *heads]]
    for row in measured["rows"]:
        tested = f"{row['n_normal']} good, {row['n_anomalous']} with a defect"
        figures = [f"{100 * row[name]:.1f}" if name in row else "–" for name in names]
        source = f"{row['dataset']} ({row['source']})"
        about = [source, str(row["normals"]), tested, row["teacher"], f"{size_in_words(as_size(row['image_size']))} px"]
        called = "–"
        if "false_alarms" in row:
            called = f"{100 * row['found']:.0f} of defects, {100 * row['false_alarms']:.1f} of good"
        rows.append([*about, *figures, called, str(row["seconds"]), row["hardware"]])
    told = "Test part, seed 0, per cent; verdicts at a false-positive rate of 5 %; seconds from the start of `train`"
    return f"{_table(rows)}\n\n{told} to its figures, without the drawn defects that it tries as well."


def earned(measured: dict) -> str:
    """Render what the student finds beside the score that reads the teacher alone."""
    rows = [["images", "teacher's statistics", "student alone", "and its peak, times ¼", "times 1"]]
    for row in (row for row in measured["rows"] if "student_auroc" in row):
        cells = []
        for prefix in ("", "student_"):
            names = [f"{prefix}{name}" for name in ("auroc", "pixel_auroc", "pro")]
            cells.append(" / ".join(f"{100 * row[name]:.1f}" for name in names if name in row))
        both = [f"{100 * row[f'both_auroc_{weight}']:.1f}" for weight in ("0.25", "1")]
        rows.append([row["dataset"], *cells, *both])
    return f"{_table(rows)}\n\nImage AUROC, and pixel AUROC and PRO where there are masks, per cent."


def peers(measured: dict, ours: dict) -> str:
    """Image AUROC, pixel AUROC and PRO of other methods beside the default score, and their seconds."""
    default = [row | {"method": "kdad, default score"} for row in _usual(ours) if "student_auroc" in row]
    rows = [*default, *measured["rows"]]
    folders = list(dict.fromkeys(row["dataset"] for row in rows))
    cells = {(row["method"], row["dataset"]): row for row in rows}
    methods = list(dict.fromkeys(row["method"] for row in rows))
    table = [["method", *folders]]
    for method in methods:
        found = [cells.get((method, folder)) for folder in folders]
        table.append([method, *("–" if row is None else _beside_seconds(row) for row in found)])
    told = (
        "Image AUROC, and pixel AUROC and PRO where there are masks, on the test part, per cent; in brackets, seconds "
        f"of fitting and judging, of kdad also of training a student; {_machines(rows)}."
    )
    return f"{_table(table)}\n\n{told}"


def _beside_seconds(row: dict) -> str:
    figures = " / ".join(f"{100 * row[name]:.1f}" for name in ("auroc", "pixel_auroc", "pro") if name in row)
    return f"{figures} ({row['seconds']} s)"


def regions(measured: dict) -> str:
    """Defects found by the teacher's statistics alone: one row per method, one column per folder."""
    cells: dict[str, dict[str, str]] = {}
    for row in measured["rows"]:
        figures = [f"{row[name]:.1f}" for name in ("auroc", "pixel_auroc", "pro") if name in row]
        folder = f"{row['folder']}, {size_in_words(as_size(row['image_size']))} px"
        cells.setdefault(row["method"], {})[folder] = " / ".join(figures)
    folders = list(dict.fromkeys(folder for of_method in cells.values() for folder in of_method))
    rows = [[method, *(of_method.get(folder, "–") for folder in folders)] for method, of_method in cells.items()]
    seconds = [row["seconds"] for row in measured["rows"]]
    machines = "; ".join(sorted({row["hardware"] for row in measured["rows"]}))
    told = "Image AUROC, and pixel AUROC and PRO where there are masks, on the test part, per cent"
    spent = f"{min(seconds)} to {max(seconds)} seconds in all, {machines}, beside other programs"
    return f"{_table([['method', *folders], *rows])}\n\n{told}; {spent}."


def small_folders(measured: dict) -> str:
    """Render how verdicts of few normals do: one row per number of normals, one column per folder."""
    folders = list(dict.fromkeys(row["folder"] for row in measured["rows"]))
    cells: dict[int, dict[str, str]] = {}
    rates = {}
    for row in measured["rows"]:
        figures = f"{row['auroc']:.1f} / {row['false_positives']:.1f} / {row['detected']:.0f}"
        cells.setdefault(row["normals"], {})[row["folder"]] = figures
        rates[row["normals"]] = row["fpr"]
    head = ["normals", "false-positive rate asked for", *folders]
    rows = [[str(n), f"{rates[n]:.1f}", *(cells[n].get(folder, "–") for folder in folders)] for n in sorted(cells)]
    words = (
        "Image AUROC, share of good test images called anomalous, and share of defects called anomalous, per cent; "
        f"means of {measured['draws']} draws of the normals, teacher {LITE0}, the default score."
    )
    return f"{_table([head, *rows])}\n\n{words}"


def choice(measured: dict) -> str:
    """Which sum of the teacher's statistics each protocol would have chosen, and what it finds on a set it left out."""
    folders, default = measured["candidates"], measured["default"]

    def mean(name: str, of: str, of_folders: list[dict]) -> float:
        return sum(folder[of][name] for folder in of_folders) / len(of_folders)

    names = list(folders[0]["test"])
    by_pseudo = max(names, key=lambda name: mean(name, "pseudo", folders))
    rows = [
        ["left out", "chosen on the test parts of the others", "its AUROC", "pseudo-anomalies'", "default's", "best"]
    ]
    totals = []
    for left_out in folders:
        others = [folder for folder in folders if folder is not left_out]
        chosen = max(names, key=lambda name, others=others: mean(name, "test", others))
        found = left_out["test"]
        totals.append([found[chosen], found[by_pseudo], found[default], max(found.values())])
        rows.append([left_out["folder"], chosen, *(f"{figure:.1f}" for figure in totals[-1])])
    rows.append(["mean", "", *(f"**{sum(of) / len(of):.1f}**" for of in zip(*totals, strict=True))])
    pseudo = {name: mean(name, "pseudo", folders) for name in (by_pseudo, default)}
    words = (
        f"Image AUROC on the test part of the set that was left out, per cent; {len(names)} candidates. On "
        f"pseudo-anomalies, and without any test part, the choice falls on *{by_pseudo}* (there "
        f"{pseudo[by_pseudo]:.1f}); the default is *{default}* (there {pseudo[default]:.1f}). *Best* "
        "is chosen on the very test part that it is measured on."
    )
    return f"{_table(rows)}\n\n{words}"


def student_designs(measured: dict) -> str:
    """How each design of student finds pseudo-anomalies, by each reading of its patch errors."""
    readings = [name for name in measured["rows"][0] if name != "design"]
    rows = [["reading", *(row["design"] for row in measured["rows"])]]
    rows += [[name, *(f"{100 * row[name]:.1f}" for row in measured["rows"])] for name in readings]
    words = (
        f"AUROC in per cent on {measured['held_out']} held-out normals of {measured['dataset']} "
        f"({measured['source']}), {measured['draws']} pseudo-anomalies drawn into each; {measured['train']} normals "
        f"to train on, {measured['steps']} steps of {measured['batch']}, teacher {measured['teacher']}, "
        f"{measured['hardware']}. Readings are of patch errors, of single layers or summed: by the highest value of a "
        "map, by the mean of its highest hundredth, or pixel by pixel."
    )
    return f"{_table(rows)}\n\n{words}"


def speed(measured: dict[str, dict]) -> str:
    """How fast each thing is, and against what, on a processor and on a GPU."""
    gpu = "On a GPU: not measured."
    if rows := measured.get("cuda"):
        gpu = f"On a GPU:\n\n{_speeds(rows)}"
    return f"{_speeds(measured['cpu'])}\n\n{gpu}"


def _speeds(measured: dict[str, dict]) -> str:
    rows = [["what", "against", "ours", "seconds against", "seconds ours", "times as fast", "spread"]]
    for name, row in measured.items():
        seconds = [_seconds(row[name]) for name in ("baseline_seconds", "seconds")]
        spread = f"{row['lowest']:.2f}…{row['highest']:.2f}"
        rows.append([name, row["baseline"], row["ours"], *seconds, f"**{row['ratio']:.2f}**", spread])
    machines = "; ".join(dict.fromkeys(row["hardware"] for row in measured.values()))
    rounds = sorted({row["rounds"] for row in measured.values()})
    return f"{_table(rows)}\n\nMedians of {' or '.join(map(str, rounds))} rounds in turn, {machines}."


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds > 10 else f"{seconds:.2g}"


def growth(measured: dict[str, dict]) -> str:
    """How cost grows, one table for each thing that may grow."""
    parts = []
    for name, table in measured.items():
        rows = [[name, "seconds", "MiB at most"]]
        rows += [[count, str(row["seconds"]), f"{row['mib']:,}"] for count, row in table["rows"].items()]
        parts.append(f"{table['what']}\n\n{_table(rows)}")
    machines = "; ".join(dict.fromkeys(table["hardware"] for table in measured.values()))
    words = (
        "Each is a process of its own; seconds include its start, and memory leaves out code and what is mapped from "
        f"files. {machines}."
    )
    return "\n\n".join([*parts, words])


def reduced_precision(measured: dict[str, dict]) -> str:
    """Render the losses of students that compute in bfloat16, one row per teacher."""
    ways = list(next(iter(measured.values()))["aurocs"])
    rows = [["students of", *ways]]
    for name, row in measured.items():
        means = [f"{sum(values) / len(values):.2f}" for values in row["aurocs"].values()]
        rows.append([f"`{name}`", *means])
    one = next(iter(measured.values()))
    words = (
        f"AUROC in per cent on the {one['split']} split of {one['dataset']}, {one['normal_class']} normal, mean of "
        f"{len(one['aurocs'][ways[0]])} seeds, {_machines(measured.values())}."
    )
    return f"{_table(rows)}\n\n{words}"


def hardening(measured: dict[str, dict]) -> str:
    """Render the attempts to break kdad, one row per kind of attack."""
    rows = [["attack", "on", "tried", "refused in one line", "unharmed", "broken", "slowest s", "MiB at most"]]
    parts = []
    for name, attack in measured.items():
        for kind, row in attack["rows"].items():
            if "uploads" in row:
                before, arrived, after = row["mib"]
                parts.append(
                    f"{kind} at once beside a training, {row['uploads']:,} uploads: {len(row['broken'])} broken; half "
                    f"of the verdicts within {row['p50']:.0f} s, 95 % within {row['p95']:.0f} s, with all browsers on "
                    "the same processors and every page showing all that was uploaded to it. The server holds "
                    f"{before:,} MiB with one visitor, {arrived:,} with all, {after:,} after them."
                )
            else:
                counts = [row["tried"], row["refused"], row["unharmed"], len(row["broken"])]
                memory = f"{attack['mib']:,}" if name != "kills" else "–"
                rows.append([name, kind, *map(str, counts), f"{row['slowest']:g}", memory])
    machines = "; ".join(dict.fromkeys(attack["hardware"] for attack in measured.values()))
    words = (
        "Unharmed is a file that is still one, a student that scores exactly as before, a killed run that ended as an "
        f"unbroken one does, bit by bit. Memory is of the whole process. {machines}."
    )
    return "\n\n".join([_table(rows), *parts, words])


def serving(measured: dict) -> str:
    """Describe in words the experience of many clients of `kdad serve`."""
    answered, students = measured["statuses"].get("200", 0), " and ".join(f"`{name}`" for name in measured["students"])
    return (
        f"{measured['requests']:,} requests of {measured['clients']} clients at once, to {students} "
        f"(`python -m benchmarks.serving`): {answered:,} answered, {measured['wrong']} of them other than `predict` "
        f"says (to 1e-4), half within {measured['p50']:.2f} s, 95 % within {measured['p95']:.2f} s, "
        f"{measured['per_second']:.0f} a second, {measured['hardware']}."
    )


def teachers(folder: Path) -> str:
    """How each shipped teacher was trained and how well it classifies, from the cards below `folder`."""
    heads = ("accuracy on validation", "on test", "epochs", "minutes", "trained on")
    rows = [["teacher", *heads]]
    for name in shipped():
        card = _read(folder / name / CARD_FILE)
        recipe, accuracy = card["recipe"], ["–", "–"]  # of those that learned no labels
        if not without_labels(card):
            accuracy = _percents(card["accuracy"], ("validation", "test"))
        cost = f"{card['seconds'] / 60:.0f} ({card['hardware']})"
        learned = f"{', '.join(card['trained_on'])}, {len(card['classes'])} classes"
        if without_labels(card):
            learned = f"{card['images']}, no labels"
        rows.append([f"`{name}`", *accuracy, str(recipe["epochs"]), cost, f"{learned}, {origin(card)}"])
    words = "Per cent, without test-time augmentation; the test part was read once; epochs and minutes of the last run."
    return f"{_table(rows)}\n\n{words}"


def _percents(row: dict, names: tuple[str, ...]) -> list[str]:
    return [f"{100 * row[name]:.1f}" for name in names]


def _read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def score_choice(measured: dict) -> str:
    """Every candidate for the default score on the validation split, and the one that was taken."""
    rows = measured["rows"]
    names = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    head = ["candidate", *(f"{row['teacher']}, {row['normal_class']}" for row in rows), "mean"]
    table = [head]
    for name in names:
        values = [_candidate(row["figures"], name) for row in rows]
        table.append([name, *(f"{100 * value:.2f}" for value in values), f"**{100 * sum(values) / len(values):.2f}**"])
    of_cnns = LITE0 in [row["teacher"] for row in rows]
    inner = f", and only of {LITE0} were the inner patches tried" if of_cnns else ""
    words = (
        f"AUROC in per cent on the {measured['split']} split of {measured['dataset']}, seed {measured['seed']}, "
        f"{measured['hardware']}. Only a ViT has a class token{inner}: other distances are those of all patches. "
        "The default is the product of last layer and distance, of the summary with the highest figures of each kind "
        "of network."
    )
    return f"{_table(table)}\n\n{words}"


def _candidate(figures: dict[str, float], name: str) -> float:
    """A candidate's figure; without a class token, all summaries are those of the patches."""
    same = "unit length" if name.endswith("unit length") else "patches"
    return figures.get(name, figures.get(f"{name.split(', ')[0]}, {same}", 0.0))


DOCS = ("results", "defects", "teachers", "speed", "scale", "hardening", "get-started", "serving/README")
DOCUMENTS = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in DOCS)]
# What stands between the markers of each name in one of them: what it is made from, in the folder of results or
# anywhere if absolute, and how.
SECTIONS: dict[str, tuple[str, Callable[[Path], str]]] = {
    "headline": ("one_vs_rest.json", lambda file: headline(load_results(file))),
    "front": (
        "peers.json",
        lambda file: front(
            load_results(file.with_name("one_vs_rest.json")), _read(file.with_name("photographs.json")), _read(file)
        ),
    ),
    "results": ("one_vs_rest.json", lambda file: render(load_results(file))),
    "mnist": ("one_vs_rest.json", lambda file: render(load_results(file), "mnist")),
    "localisation": ("localisation.json", lambda file: localisation(_read(file))),
    "large_images": ("large_images.json", lambda file: large_images(_read(file))),
    "photographs": ("photographs.json", lambda file: photographs(_read(file))),
    "earned": ("photographs.json", lambda file: earned(_read(file))),
    "peers": ("peers.json", lambda file: peers(_read(file), _read(file.with_name("photographs.json")))),
    "published_screw": ("peers.json", lambda _: published_screw()),
    "regions": ("regions.json", lambda file: regions(_read(file))),
    "small_folders": ("small_folders.json", lambda file: small_folders(_read(file))),
    "choice": ("regions.json", lambda file: choice(_read(file))),
    "student_designs": ("student_designs.json", lambda file: student_designs(_read(file))),
    "speed": ("speed.json", lambda file: speed(_read(file))),
    "scale": (
        "speed.json",
        lambda file: scale(
            _read(file), _read(file.with_name("photographs.json")), _read(file.with_name("growth.json"))
        ),
    ),
    "install": ("install.json", lambda file: install(_read(file))),
    "growth": ("growth.json", lambda file: growth(_read(file))),
    "reduced_precision": ("reduced_precision.json", lambda file: reduced_precision(_read(file))),
    "serving": ("serving.json", lambda file: serving(_read(file))),
    "hardening": ("hardening.json", lambda file: hardening(_read(file))),
    "scores": ("scores.json", lambda file: score_choice(_read(file))),
    "teachers": (str(WEIGHTS_FOLDER), teachers),
}


def markers(name: str) -> tuple[str, str]:
    """The lines before and after a section of the README."""
    return f"<!-- {name}: begin (made by `python benchmarks/tables.py`) -->", f"<!-- {name}: end -->"


def between_markers(text: str, tables: str, name: str) -> str:
    """`text` with everything in one section replaced.

    Raises:
        UserError: not exactly one pair of markers, in order.
    """
    begin, end = markers(name)
    if not (text.count(begin) == text.count(end) == 1 and text.index(begin) < text.index(end)):
        raise UserError(f"the README, or another document, needs one line {begin!r} and, below it, one line {end!r}")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{tables}\n{end}{rest.split(end)[1]}"


def main(argv: list[str] | None = None) -> None:
    """Rewrite the tables of the README and of the documentation, and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--measured", type=Path, default=ROOT / "benchmarks" / "results", help="the folder of the results files"
    )
    parser.add_argument("--documents", nargs="+", type=Path, default=DOCUMENTS)
    args = parser.parse_args(argv)
    try:
        texts, printed = {place: place.read_text(encoding="utf-8") for place in args.documents}, []
        for name, (measured, rendered) in SECTIONS.items():
            file = args.measured / measured
            if file.exists():
                printed.append(rendered(file))
                place = next((place for place in texts if markers(name)[0] in texts[place]), args.documents[0])
                texts[place] = between_markers(texts[place], printed[-1], name)
        for place, text in texts.items():
            write_text(place, text)
    except (UserError, OSError, ValueError, KeyError) as error:
        parser.error(str(error))
    print("\n\n".join(printed))


if __name__ == "__main__":
    main()
