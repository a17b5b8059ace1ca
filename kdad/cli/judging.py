"""The commands about one detector: `evaluate`, `score`, `report`, `export`, `correct` and `region`."""

import argparse
import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdad.cli.options import HERE, RAY, Parser, add_device, add_engine, positive, whole_number
from kdad.errors import UserError
from kdad.files import check_output, check_output_folder, shown, write_text
from kdad.locks import exclusive_lock
from kdad.networks.teachers.registry import TIMM, split_timm

if TYPE_CHECKING:
    from kdad.cli import Command
    from kdad.detection.detector import Detector


DEFAULT_INTERVAL = 2.0  # seconds
CSV_ENDINGS = (".csv", ".tsv", ".txt", "")
CSV_HEADER = re.compile(r"\W*image\W+score\b")  # also after a spreadsheet has saved it in its own dialect


def add_commands(command: "Command") -> None:
    """Declare the commands of this file."""
    sub = command("evaluate", evaluate, "print a student's figures on the test split")
    sub.add_argument("folder", metavar="STUDENT")
    sub.add_argument("--dataset", help="another data set with the same class (default: the student's own)")
    _add_teacher(sub)
    sub.add_argument("--json", action="store_true")
    add_device(sub)

    sub = command("score", score, "score image files, or all images of directories")
    _add_images(sub)
    _add_fpr(sub)
    output = sub.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true")
    output.add_argument("--csv", metavar="FILE")
    output.add_argument(
        "--parquet",
        metavar="DIR",
        help="for very many images, also at s3://… and the like: parts that a rerun completes",
    )
    add_engine(sub)
    sub.add_argument("--watch", action="store_true", help="go on judging what arrives in directories, into --csv FILE")
    sub.add_argument("--interval", type=_seconds, help="seconds between looks of --watch (default 2)")
    sub.add_argument("--heatmaps", metavar="DIR", help="also write a heatmap PNG for every image")
    _add_method(sub)
    add_device(sub)

    sub = command("report", report, "write one HTML file about images: verdicts, heatmaps and the student's card")
    _add_images(sub)
    sub.add_argument("--output", metavar="FILE.html", default="report.html", help="default %(default)s")
    _add_fpr(sub)
    _add_method(sub)
    shown = "how many images, the most unusual, are shown; all are listed (default %(default)s)"
    sub.add_argument("--pictures", type=whole_number(0), default=200, metavar="N", help=shown)
    add_device(sub)

    _add_revisions(command)

    sub = command("export", export, "write a student, its teacher and its calibration as one ONNX file")
    sub.add_argument("folder", metavar="STUDENT")
    sub.add_argument("file", metavar="FILE.onnx")
    _add_teacher(sub)
    sub.add_argument(
        "--size", type=positive, nargs=2, metavar=("HEIGHT", "WIDTH"),
        help="of the images to come, in pixels (default: what the teacher sees)",
    )  # fmt: skip
    sub.add_argument("--opset", type=positive, default=18, help="ONNX's version of its operators (default %(default)s)")
    sub.set_defaults(device="cpu")


def _add_revisions(command: "Command") -> None:
    """Declare the commands that make a new version of a student."""
    sub = command("correct", correct, "let a student of photographs learn that images are normal, as a new version")
    _add_images(sub)
    add_device(sub)

    sub = command("region", region, "let a student of photographs look at a region of interest alone, as a new version")
    sub.add_argument("folder", metavar="STUDENT")
    marked = sub.add_mutually_exclusive_group(required=True)
    marked.add_argument("--mask", metavar="FILE", help="an image that is not black where the region is")
    marked.add_argument(
        "--box", type=float, nargs=4, metavar=("TOP", "BOTTOM", "LEFT", "RIGHT"), help="a rectangle, each side 0 to 1"
    )
    _add_teacher(sub)
    add_device(sub)


def _add_images(parser: Parser) -> None:
    """Add a student and the images that it is about."""
    parser.add_argument("folder", metavar="STUDENT")
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_DIR")
    _add_teacher(parser)


def _add_teacher(parser: Parser) -> None:
    parser.add_argument("--teacher", help="the student's teacher, if it is elsewhere: a folder, or a Hub id to fetch")


def _add_fpr(parser: Parser) -> None:
    usual = "the student's operating point, see `threshold`, or 0.05"
    parser.add_argument("--fpr", type=float, help=f"false-positive rate of the verdict (default: {usual})")


def _add_method(parser: Parser) -> None:
    words = "how heatmaps are made; see docs/results.md and docs/defects.md (default %(default)s)"
    parser.add_argument("--method", default="patch", help=words)


def _load(args: argparse.Namespace, folder: str | Path) -> "Detector":
    from kdad.detection.detector import Detector

    return Detector.load(folder, teacher=args.teacher, device=args.device)


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate a student on its own test split, or on another data set's."""
    from kdad.data.datasets import is_folder
    from kdad.data.loading import load_task
    from kdad.evaluation.evaluate import evaluate as evaluate_student
    from kdad.storage import hub

    folder = hub.resolve(args.folder)
    detector = _load(args, folder)
    config = detector.config
    dataset = args.dataset or _own_dataset(folder, config.dataset)
    tile_size = config.tile_size if is_folder(dataset) else None
    task = load_task(dataset, config.normal_class, config.preprocessing, tile_size)
    evaluation = evaluate_student(task, detector)
    if evaluation.own and Path(args.folder).is_dir():
        evaluation.save(folder)
    else:
        reason = (
            "it is a copy from the Hub; pull it first" if evaluation.own else "these are not the images of its own task"
        )
        print(f"not saved with the student: {reason}", file=sys.stderr)
    if args.json:
        print(json.dumps(evaluation.figures, indent=2))
    else:
        print_figures(evaluation.figures)


def correct(args: argparse.Namespace) -> None:
    """Make a version of a student that takes some more images for normal."""
    from kdad.data.images import find_images
    from kdad.detection.revision import check_folder
    from kdad.detection.revision import correct as make_corrected

    check_folder(Path(args.folder))
    detector, files = _load(args, args.folder), find_images(args.images)
    _say_what_changed(args, make_corrected(Path(args.folder), files, detector=detector))


def region(args: argparse.Namespace) -> None:
    """Make a version of a student that looks at a region alone."""
    import torch

    from kdad.data.masks import read_mask
    from kdad.detection.revision import check_folder, rectangle, restrict

    check_folder(Path(args.folder))
    mask = torch.from_numpy(read_mask(Path(args.mask))) if args.mask else rectangle(*args.box)
    _say_what_changed(args, restrict(Path(args.folder), mask, detector=_load(args, args.folder)))


def _say_what_changed(args: argparse.Namespace, made: Path) -> None:
    """Measure a new version where its images are, and print its figures beside those of the version before."""
    from kdad.data.loading import load_task
    from kdad.evaluation.evaluate import evaluate as evaluate_student
    from kdad.evaluation.evaluate import is_own
    from kdad.evaluation.sensitivity import try_drawn_defects
    from kdad.storage import student_folder

    detector = _load(args, made)
    print(f"student folder: {made}")
    try:
        task = load_task(
            _own_dataset(made, detector.config.dataset), detector.config.normal_class, detector.config.preprocessing, 0
        )
    except UserError as error:
        print(f"what it costs in detection was not measured: {error}", file=sys.stderr)
        return
    if not is_own(task, detector.config):
        print("what it costs in detection was not measured: its images have changed since", file=sys.stderr)
        return
    before = student_folder.load_sensitivity(Path(args.folder)) or {"lines": ["not tried"]}
    print(f"before: {before['lines'][0]}\nnow:    {try_drawn_defects(task, detector, made)[0]}")
    if task.test is not None:
        evaluation = evaluate_student(task, detector)
        evaluation.save(made)
        known = student_folder.load_evaluation(Path(args.folder))
        print(f"before: test AUROC {known['auroc']:.4f}" if known else "before: not evaluated")
        print_figures(evaluation.figures)


def _own_dataset(folder: Path, dataset: str) -> str:
    """The name, or the path on this machine, of the data set that a student was trained on."""
    from kdad.data.datasets import folder_path, is_folder
    from kdad.storage.student_folder import load_local

    place = load_local(folder).get("dataset", dataset)
    if is_folder(place) and not folder_path(place).is_dir():
        name = folder_path(place).name
        raise UserError(
            f"the images of this student are not here: say where with --dataset folder:PATH/TO/{name} of `evaluate`"
        )
    return place


def print_figures(figures: dict[str, Any]) -> None:
    """Print one line of figures, and a warning if the calibration set is small."""
    names = ("auroc", "auroc_mkd", "pixel_auroc", "pro", "pixel_ap")
    shown = [f"{name} {figures[name]:.4f}" for name in names if name in figures]
    print(
        f"{figures['dataset']}/{figures['normal_class']}: {', '.join(shown)} on {figures['split']} "
        f"({figures['n_normal']} normal, {figures['n_anomalous']} anomalous; seed {figures['seed']}; "
        f"teacher {figures['teacher']}, label overlap: {figures['label_overlap']})"
    )
    if learned := figures.get("n_learned"):
        print(f"warning: {learned} of the test images were learned as normal, so that these figures flatter")
    if wrong := figures.get("n_learned_anomalous"):
        print(f"warning: {wrong} of those that were learned as normal are labelled anomalous: are they normal, indeed?")
    _warn(figures["n_calibration"], figures["calibration"])


def _warn_of(detector: "Detector") -> None:
    """Print that warning about a detector's verdicts."""
    if detector.calibration is not None:
        _warn(len(detector.calibration), detector.calibration.kind)


def _warn(normals: int, kind: str) -> None:
    """Print a warning to standard error if verdicts rest on few normals or on a weaker calibration."""
    from kdad.detection.conformal import warning

    if caution := warning(normals, kind):
        print(f"warning: {caution}", file=sys.stderr)


def score(args: argparse.Namespace) -> None:
    """Score images, and write heatmaps of them if asked to."""
    from kdad.detection.image_files import score_files

    if args.method != "patch" and not args.heatmaps:
        raise UserError("--method is about heatmaps: give --heatmaps DIR as well")
    if args.interval is not None and not args.watch:
        raise UserError("--interval is about watching: give --watch as well")
    if args.engine != HERE and not args.parquet:
        raise UserError("--engine is about very many images: give --parquet DIR as well")
    if args.watch:
        _watch(args)
        return
    if args.parquet:
        _score_into_parts(args)
        return
    if args.csv:
        _check_csv(Path(args.csv))
        _check_unwatched(Path(args.csv))
    detector = _load(args, args.folder)
    rows: list[dict[str, Any]] = []
    try:
        for row in score_files(detector, args.images, args.fpr, args.heatmaps, args.method):
            rows.append(row)
            if not args.json and not args.csv:
                print(_line(row))
    finally:  # what was judged is kept, whatever ended it
        if args.csv and rows:
            _write_csv(Path(args.csv), rows)
        if args.json and rows:
            print(json.dumps(rows, indent=2))
    _warn_of(detector)


def _score_into_parts(args: argparse.Namespace) -> None:
    """Score the images without a row, here or on a cluster, with one progress bar."""
    from tqdm import tqdm

    from kdad.detection.bulk import ScoringJob, find, judge_here, lock_folder, remaining

    if args.heatmaps:
        raise UserError("--parquet is for scores alone; leave --heatmaps out")
    check_output_folder(Path(args.parquet))
    detector = _load(args, args.folder)
    config = detector.config
    job = ScoringJob(
        student=_from_anywhere(args.folder),
        teacher=args.teacher and _from_anywhere(args.teacher),
        out=Path(args.parquet),
        weights_sha256=config.weights_sha256,
        calibration_sha256=config.calibration_sha256,
        fpr=_rate_of_parts(args, detector),
        device=args.device,
    )
    with lock_folder(job.out):
        listing = find(args.images)
        remainder = remaining(listing, job)
        if said := str(remainder):
            print(said, file=sys.stderr)
        total, left = len(listing.images), sum(len(part.images) for part in remainder.parts)
        if args.engine == RAY:
            from kdad.cluster.scoring import judge_with_ray

            outcomes = judge_with_ray(job, remainder.parts)
        else:
            outcomes = judge_here(job, remainder.parts, detector)
        unreadable = 0
        with tqdm(total=total, initial=total - left, unit="image", dynamic_ncols=True) as bar:
            for outcome in outcomes:
                for reason in outcome.unreadable:
                    tqdm.write(f"unreadable: {reason}", file=sys.stderr)
                unreadable += len(outcome.unreadable)
                bar.update(outcome.judged + len(outcome.unreadable))
    _warn_of(detector)
    print(f"{left - unreadable} judged now, {unreadable} unreadable, {total - left} known before: {job.out}")


def _rate_of_parts(args: argparse.Namespace, detector: "Detector") -> float | None:
    """The false-positive rate that parts record, so that a later change of the operating point mixes no verdicts."""
    if args.fpr is not None or detector.operating_point is None:
        return args.fpr
    return detector.default_fpr


def _watch(args: argparse.Namespace) -> None:
    """Judge what arrives in directories until interrupted or terminated."""
    if not args.csv:
        raise UserError("--watch adds rows to a table: give --csv FILE as well")
    folders = [Path(place) for place in args.images]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{shown(folder)} is no directory; --watch looks into directories")
    file = Path(args.csv)
    _check_csv(file)
    from kdad.detection.image_files import check_heatmap_folder
    from kdad.detection.localisation import check_method
    from kdad.detection.watching import ScoreTable, Watcher

    heatmaps = Path(args.heatmaps) if args.heatmaps else None
    if heatmaps:
        check_heatmap_folder(heatmaps, args.images)
    with exclusive_lock(file.with_name(f".{file.name}.lock"), f"another run writes to {shown(file)}"):
        detector = _load(args, args.folder)
        fpr = detector.rate(args.fpr)
        detector.threshold(fpr)  # or refuse the rate now
        if heatmaps:
            check_method(detector, args.method)
        watcher = Watcher(detector, folders, ScoreTable(file, detector, fpr), fpr, heatmaps, args.method)
        _warn_of(detector)
        print(f"watching {', '.join(map(shown, folders))}; Ctrl-C ends", file=sys.stderr, flush=True)
        judged = unreadable = 0
        with until_stopped() as stopped:
            for row in watcher.run(stopped, args.interval or DEFAULT_INTERVAL):
                unreadable += row.get("error") is not None
                judged += row.get("error") is None
                print(_line(row) if row.get("error") is None else f"unreadable: {row['error']}", flush=True)
    print(f"{judged} judged, {unreadable} unreadable: {shown(file)}", file=sys.stderr)


@contextmanager
def until_stopped() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM has come since, instead of its usual effect; a second one has that effect."""
    asked: list[int] = []
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def ask(number: int, _: Any) -> None:
        asked.append(number)
        restore()

    for number in usual:
        signal.signal(number, ask)
    try:
        yield lambda: bool(asked)
    finally:
        restore()


def _seconds(text: str) -> float:
    """An argument type: a positive number of seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, not {text!r}")
    return seconds


def _from_anywhere(name: str) -> str:
    """A student's or teacher's name with the absolute path of its folder or file, if any, for other processes."""
    if name.startswith(TIMM):
        model, file = split_timm(name)
        return f"{TIMM}{model}@{Path(file).resolve()}" if file else name
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _line(row: dict[str, Any]) -> str:
    p = "uncalibrated" if row["p_value"] is None else f"p {row['p_value']:.4f}"
    return f"{row['score']:9.6f}  {p}  {'anomaly' if row['is_anomaly'] else 'normal '}  {row['image']}"


def _check_csv(file: Path) -> None:
    """Raise a `UserError` if scores must not be written to a file: of others' tables and images, none is replaced."""
    check_output(file, CSV_ENDINGS)
    if not file.exists():
        return
    with open(file, encoding="utf-8", errors="replace") as lines:
        header = lines.readline(200)
    if header and not CSV_HEADER.match(header):
        raise UserError(f"{shown(file)} holds something other than scores, and is kept; choose another name for --csv")


def _check_unwatched(file: Path) -> None:
    """Raise a `UserError` if a file holds rows of `--watch`, which one run over some images would replace."""
    from kdad.detection.watching import is_table

    if is_table(file):
        raise UserError(f"{shown(file)} is a table of --watch, and is kept; choose another name for --csv")


def _write_csv(file: Path, rows: list[dict[str, Any]]) -> None:
    import pandas

    from kdad.spreadsheets import as_csv

    write_text(file, as_csv(pandas.DataFrame(rows), "\t" if file.suffix.lower() == ".tsv" else ","))


def report(args: argparse.Namespace) -> None:
    """Judge images, and write a report on them."""
    from tqdm import tqdm

    from kdad.data.images import say
    from kdad.detection.report import Report, check_report

    file = Path(args.output)
    check_report(file)
    made = Report(_load(args, args.folder), args.fpr, args.method, args.pictures)
    judged = made.judge(args.images, lambda error: say(f"skipped {error}"))
    anomalies = sum(bool(entry.is_anomaly) for entry in tqdm(judged, unit="image", dynamic_ncols=True, disable=None))
    write_text(file, made.html())
    print(f"{shown(file)}: {len(made.entries)} images, {anomalies} anomalous")


def export(args: argparse.Namespace) -> None:
    """Export a student."""
    from kdad.detection.onnx_export import export as export_detector

    size = None if args.size is None else (args.size[0], args.size[1])
    difference = export_detector(_load(args, args.folder), Path(args.file), size=size, opset=args.opset)
    print(f"{args.file}: as torch judges, to {difference:.1g}; images in, score, p_value and heatmap out")
