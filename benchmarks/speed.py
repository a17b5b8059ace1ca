"""Speed comparisons: `python -m benchmarks.speed [ROW …]`; without names, all rows.

A row runs a baseline and its subject alternately, in one process, for several rounds; the table shows the median ratio,
its spread, and both medians. Training baselines are in `benchmarks/published.py`; where there is nothing to compare
with, the baseline is a target time. Full-size networks have random weights, to avoid downloads; these do not affect
the time of a step.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vgg16

from benchmarks.growth import folder_of, photograph
from benchmarks.pages import TWO, cold_link, first_sample, home_page, hundred_uploads, page_switch, step_of
from benchmarks.published import PIXELS, Contiguous, Published, Work, photographs, published_step, resized
from benchmarks.timing import Prepared, Row, Seconds, measure, timed, wanted
from kdad.data.datasets import FOLDER
from kdad.data.decoding import read_image
from kdad.data.images import in_advance
from kdad.data.loading import load_task
from kdad.detection.detector import Detector
from kdad.detection.image_files import score_files
from kdad.detection.revision import correct
from kdad.devices import accelerator
from kdad.errors import UserError, one_of
from kdad.evaluation.evaluate import evaluate
from kdad.files import read_json_if_there, write_json
from kdad.jobs import manager
from kdad.networks.students import build_student, preset
from kdad.networks.teachers.loading import Teacher, load_teacher
from kdad.networks.teachers.provenance import UNKNOWN
from kdad.networks.teachers.registry import LITE0, default_reading
from kdad.networks.vgg import imagenet_vgg16, paper_student
from kdad.networks.vit import ViTFeatures
from kdad.training.distillation import OPTIMIZERS, Distillation, train_student
from kdad.training.loop import half_precision

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "speed.json"
STUDENTS = ROOT / "trained_students" / "cifar10"
BRICKS = ROOT / "trained_students" / "patterns-defects" / "lite0-imagenet" / "bricks"
IMAGES = 1000
PICTURES = 8
LATENCIES = 60
MATRIX = 4096
NORMALS, FEW, TESTED = 300, 100, 20
CUT = {  # on a CPU 200 epochs would take half a day as published, and batches of 128 more than 24 GB
    "cpu": {"epochs": 5, "batch_size": 64},
    "cuda": {},
}
WATCHED_SECONDS = 30.0
SECONDS_PER_LOOK = 0.5
Networks = Callable[[], tuple[torch.nn.Module, torch.nn.Module]]  # teacher and student


def our_step(teacher: Teacher, device: str) -> Work:
    """Training step as in `kdad train`, on images read and resized beforehand."""
    architecture, recipe = preset(teacher.to(device))
    module = Distillation(build_student(architecture), teacher, None, recipe, seed=0)  # type: ignore[arg-type]
    module.to(device).train()
    optimizer = OPTIMIZERS[recipe.optimizer](module.student.parameters(), lr=recipe.learning_rate)
    photos = torch.from_numpy(resized(photographs(device), PIXELS.resize[0]))
    images = photos.permute(0, 3, 1, 2).contiguous().to(device)
    warnings.filterwarnings("ignore", message=".*self.log.*")

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=half_precision(device)):
            loss = module.training_step([images], 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def vgg_published() -> tuple[torch.nn.Module, torch.nn.Module]:
    """Teacher and student of `vgg16-imagenet` as published, untrained."""
    student = paper_student()
    return Contiguous(vgg16().features, vgg_teacher().network.taps), Contiguous(student.features, student.taps)


def vgg_teacher() -> Teacher:
    """The `vgg16-imagenet` teacher, untrained."""
    return Teacher("vgg16-imagenet", "0" * 64, UNKNOWN, PIXELS, imagenet_vgg16(vgg16().features))


def vit_published() -> tuple[torch.nn.Module, torch.nn.Module]:
    """Teacher and student of `vit-base-cifar10` as published, untrained."""
    return vit_base(), build_student(preset(vit_teacher())[0]).train()


def vit_base() -> ViTFeatures:
    """The network of `vit-base-cifar10`."""
    from transformers import ViTConfig, ViTModel

    return ViTFeatures(ViTModel(ViTConfig()), PIXELS.crop[0]).eval()


def vit_teacher() -> Teacher:
    """The `vit-base-cifar10` teacher, untrained."""
    return Teacher("vit-base-cifar10", "0" * 64, UNKNOWN, PIXELS, vit_base())


def training_step(published: Networks, teacher: Callable[[], Teacher]) -> Callable[[str], Prepared]:
    """Time of a training step."""

    def prepare(device: str) -> Prepared:
        yield timed(published_step(*published(), 0.01, device)), timed(our_step(teacher(), device))

    return prepare


def whole_student(published: Networks, teacher: Callable[[], Teacher]) -> Callable[[str], Prepared]:
    """Time of a student of photographs with the preset's schedule, from files to the scores of test images.

    If training is `CUT` short, one-off costs weigh more, so the ratio is an underestimate.
    """

    def prepare(device: str) -> Prepared:
        with tempfile.TemporaryDirectory() as work:
            root = Path(work) / "photographs"
            for kind, count in {"train/good": NORMALS, "test/good": TESTED, "test/odd": TESTED}.items():
                folder_of(count, root / kind)
            recipe = preset(teacher())[1]
            recipe = replace(recipe, **{name: min(most, getattr(recipe, name)) for name, most in CUT[device].items()})
            good, tested = sorted(root.glob("train/*/*")), sorted(root.glob("test/*/*"))

            def as_published() -> None:
                Published(*published(), recipe.mse_weight, device).whole(good, tested, recipe.epochs, recipe.batch_size)

            def ours() -> None:
                asked = teacher()
                task = load_task(f"{FOLDER}{root}", "good", asked.preprocessing)
                folder = train_student(task, asked, Path(work), recipe=recipe, device=device, overwrite=True)
                evaluate(task, Detector.load(folder, teacher=asked, device=device))

            yield timed(as_published), timed(ours)

    return prepare


def vit_products(device: str) -> Prepared:
    """Time of a `vit-base-cifar10` training step, against its multiplications alone, as large matrix products."""
    step = our_step(vit_teacher(), device)
    with FlopCounterMode(display=False) as counter:
        step()
    dtype = torch.bfloat16 if half_precision(device) else torch.float32
    left, right, left_by_right = (torch.randn(MATRIX, MATRIX, dtype=dtype, device=device) for _ in range(3))
    product = timed(lambda: torch.mm(left, right, out=left_by_right))
    yield lambda: product() * counter.get_total_flops() / (2 * MATRIX**3), timed(step)


def correction(device: str) -> Prepared:
    """Time in which a student of photographs learns that one more is normal."""
    with tempfile.TemporaryDirectory() as work:
        root = Path(work) / "photographs"
        folder_of(NORMALS, root)
        dataset = f"{FOLDER}{root}"
        size, layers = default_reading(LITE0, dataset)
        teacher = load_teacher(LITE0, image_size=size, layers=layers)
        task = load_task(dataset, "good", teacher.preprocessing)
        recipe = replace(preset(teacher)[1], epochs=1)
        folder = train_student(task, teacher, Path(work), recipe=recipe, device=device)
        detector = Detector.load(folder, teacher=teacher, device=device)
        alarm = photograph(320, 240, NORMALS)
        yield wanted(10, 10)(device), timed(lambda: correct(folder, [alarm], detector=detector))


def command(name: str) -> Callable[[str], Prepared]:
    """Time of `python -m kdad score STUDENT one.png`, against starting Python and importing torch."""

    def prepare(device: str) -> Prepared:
        score = [sys.executable, "-m", "kdad", "score", str(STUDENTS / name / "cat"), str(ROOT / "docs" / "home.png")]
        torch_alone = [sys.executable, "-c", "import torch"]
        yield _running(torch_alone), _running([*score, "--device", device])

    return prepare


def train_command(name: str) -> Callable[[str], Prepared]:
    """Time of `python -m kdad train`, from start to test AUROC."""

    def prepare(device: str) -> Prepared:
        with tempfile.TemporaryDirectory() as out:
            task = ["--dataset", "cifar10", "--normal-class", "cat", "--teacher", name, "--out", out, "--overwrite"]
            yield wanted(45, 10)(device), _running([sys.executable, "-m", "kdad", "train", *task, "--device", device])

    return prepare


def _running(arguments: list[str], status: int = 0) -> Seconds:
    def run() -> None:
        ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
        if ended.returncode != status:
            raise UserError(f"{' '.join(arguments)} ended with {ended.returncode}: {ended.stderr[-300:]}")

    return timed(run)


def small_folder(device: str) -> Prepared:
    """Time of `train` on a small folder of large photographs, by default, from start to figures."""
    with tempfile.TemporaryDirectory() as work:
        yield wanted(60, 30)(device), _train_on(megapixels(Path(work) / "data"), work, device)


def beside_a_busy_program(device: str) -> Prepared:
    """The same beside a program that keeps one processor busy, against nothing beside it."""
    with tempfile.TemporaryDirectory() as work:
        alone = _train_on(megapixels(Path(work) / "data"), work, device)

        def beside() -> float:
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            try:
                return alone()
            finally:
                busy.kill()
                busy.wait()

        yield alone, beside


def broken_folder(device: str) -> Prepared:
    """Time in which `train` says that a folder holds no images: its start, up to where it looks at them."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "data"
        folder.mkdir()
        (folder / "0.jpg").write_text("no image")
        yield _running([sys.executable, "-c", "import torch"]), _train_on(folder, work, device, status=2)


def megapixels(folder: Path) -> Path:
    """A folder of normal photographs of a megapixel, and others to test on."""
    for kind, count in {"train/good": FEW, "test/good": TESTED, "test/odd": TESTED}.items():
        (folder / kind).mkdir(parents=True)
        for index in range(count):
            photograph(1000, 1000, 10_000 * len(kind) + index).save(folder / kind / f"{index:03}.jpg", quality=90)
    return folder


def _train_on(folder: Path, work: str, device: str, status: int = 0) -> Seconds:
    out = ["--out", f"{work}/out", "--overwrite", "--device", device]
    return _running([sys.executable, "-m", "kdad", "train", "--dataset", f"{FOLDER}{folder}", *out], status)


def pictures(device: str) -> Prepared:
    """Time of `score` on a directory of 12-megapixel JPEGs, against the slower of decoding and scoring alone."""
    detector = Detector.load(BRICKS, device=device)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{index}.jpg" for index in range(PICTURES)]
        for index, file in enumerate(files):
            photograph(4000, 3000, index).save(file, quality=90)
        images = [read_image(file) for file in files]
        decoding = timed(lambda: [None for _ in in_advance(read_image, files)])
        scoring = timed(lambda: [None for _ in detector.predict_each(images)])
        yield lambda: max(decoding(), scoring()), timed(lambda: list(score_files(detector, [folder], None, None)))


def ten_students(name: str) -> Callable[[str], Prepared]:
    """Time of ten students of one teacher on the same images, scored together as in a sweep, against one by one."""

    def prepare(device: str) -> Prepared:
        first = Detector.load(STUDENTS / name / "cat", device=device)
        images = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
        detectors = [
            Detector.load(folder, teacher=first.teacher, device=device)
            for folder in sorted((STUDENTS / name).iterdir())
        ]

        def separately() -> None:
            for detector in detectors:
                for batch in images.split(100):
                    detector.predict(batch)

        def together() -> None:
            for batch in images.split(100):
                features = first.teacher_features(batch)
                for detector in detectors:
                    detector.predict_with_features(batch, features)

        yield timed(separately), timed(together)

    return prepare


def latency(name: str, device: str) -> Seconds:
    """Median seconds for one 32 px image with a loaded detector."""
    detector = Detector.load(STUDENTS / name / "cat", device=device)
    images = torch.randint(0, 256, (LATENCIES, 1, 3, 32, 32), dtype=torch.uint8)

    def run() -> float:
        seconds = []
        for image in images:
            started = time.perf_counter()
            detector.predict(image)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    run()
    return run


def one_image(name: str, on_cpu: float) -> Callable[[str], Prepared]:
    """Latency of one image."""

    def prepare(device: str) -> Prepared:
        yield wanted(on_cpu, 0.003)(device), latency(name, device)

    return prepare


def while_training(name: str) -> Callable[[str], Prepared]:
    """Latency of one image during a training job of the app, against one image alone."""

    def prepare(device: str) -> Prepared:
        one = latency(name, device)
        with tempfile.TemporaryDirectory() as folder, training(Path(folder)) as job:

            def beside() -> float:
                job.resume()
                seconds = one()
                job.pause()
                return seconds

            job.pause()
            yield one, beside

    return prepare


def training_watched(device: str) -> Prepared:
    """Seconds per epoch of a training job, alone and while two images per second are scored."""
    detector = Detector.load(STUDENTS / "vgg-cifar10" / "cat", device=device)
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    looks = round(WATCHED_SECONDS / SECONDS_PER_LOOK)
    with tempfile.TemporaryDirectory() as folder, training(Path(folder)) as job:

        def looking() -> None:
            for _ in range(looks):
                detector.predict(image)
                time.sleep(SECONDS_PER_LOOK)

        yield lambda: job.pace(lambda: time.sleep(WATCHED_SECONDS)), lambda: job.pace(looking)


class TrainingJob:
    """A training job that runs until stopped."""

    def __init__(self, job: manager.Job):
        self.job = job

    def position(self) -> float:
        """Number of epochs completed, with fractions."""
        return manager.find(self.job.folder).status.position

    def pace(self, meanwhile: Work) -> float:
        """Seconds per epoch while `meanwhile` runs."""
        started, before = time.monotonic(), self.position()
        meanwhile()
        return (time.monotonic() - started) / (self.position() - before)

    def pause(self) -> None:
        """Suspend the job."""
        self._signal("SIGSTOP")

    def resume(self) -> None:
        """Resume the job, and give it time to get going."""
        self._signal("SIGCONT")
        time.sleep(1)

    def _signal(self, name: str) -> None:
        pid = manager.find(self.job.folder).status.pid
        assert pid is not None
        os.killpg(pid, getattr(signal, name))


@contextmanager
def training(folder: Path) -> Iterator[TrainingJob]:
    """Train a student of `patterns` as a job, as started by the app's training page."""
    arguments = ["train", "--dataset", "patterns", "--normal-class", "stripes", "--teacher", "vgg-cifar10"]
    job = manager.start(folder / "jobs", [*arguments, "--epochs", "100000", "--out", str(folder)], folder / "student")
    running = TrainingJob(job)
    try:
        while not running.position() > 1:
            if not manager.find(job.folder).active:
                raise UserError(f"the background training ended: {manager.find(job.folder).status.message}")
            time.sleep(0.5)
        yield running
    finally:
        running.resume()
        manager.stop(job, grace=5)


COMPACT = {"vgg-cifar10": 0.005, "vit-cifar10": 0.010}  # teacher: target seconds per image on a CPU
ROWS: dict[str, Row] = {
    "training step, `vgg16-imagenet` preset": Row("as published", "`train`", training_step(vgg_published, vgg_teacher)),
    "training step, `vit-base-cifar10` preset": Row(
        "as published", "`train`", training_step(vit_published, vit_teacher)
    ),
    "a whole student of 300 photographs, `vgg16-imagenet` preset": Row(
        "as published", "`train` with calibration, and `evaluate`", whole_student(vgg_published, vgg_teacher), 1
    ),
    "a whole student of 300 photographs, `vit-base-cifar10` preset": Row(
        "as published", "`train` with calibration, and `evaluate`", whole_student(vit_published, vit_teacher), 1
    ),
    "a step of the `vit-base-cifar10` preset, share of the processor's rate": Row(
        "its products alone", "the whole step", vit_products
    ),
    "100 photographs of a megapixel": Row("wanted", "`train` to figures", small_folder, 1),
    "100 photographs of a megapixel, beside a busy program": Row(
        "nothing beside it", "one program beside it", beside_a_busy_program, 1
    ),
    "a folder without images": Row("`import torch` alone", "`train`, until it says so", broken_folder, 3),
}
for name, limit in COMPACT.items():
    ROWS |= {
        f"a student of a CIFAR-10 class, `{name}`": Row("wanted", "`train` to AUROC", train_command(name), 2),
        f"ten students on 1,000 images, `{name}`": Row(
            "one after the other", "the teacher asked once", ten_students(name), 3
        ),
        f"one image, `{name}`": Row("wanted", "`predict`", one_image(name, limit)),
        f"one image, `{name}`, while a job trains": Row("nothing beside it", "a job beside it", while_training(name)),
        f"`score STUDENT one.png`, `{name}`": Row("`import torch` alone", "the whole command", command(name)),
    }
ROWS |= {
    "an epoch of a job that trains": Row("nobody looks", "two images a second beside it", training_watched, 3),
    "`score` of 8 JPEGs of 12 megapixels": Row("the slower of decoding and scoring", "both at once", pictures),
    "home page, from the server's start": Row("an empty page of Streamlit's", "usable", home_page),
    "the first sample, from the command": Row("wanted", "judged", first_sample, 3),
    "100 uploads of a megapixel": Row("wanted", "judged and sorted", hundred_uploads, 2),
    "a correction, of 300 normals": Row("wanted", "a new version", correction, 3),
    "a cold link that compares two students": Row("wanted", "complete", cold_link, 3),
    "a switch of page, to the curves": Row("wanted", "complete", page_switch),
    "a step of noise under two students": Row("wanted", "complete", step_of("Noise", f"{TWO}&change=Noise", 0.5), 8),
    "a step of the false-positive rate, likewise": Row(
        "wanted", "complete", step_of("False-positive", f"{TWO}&fpr=0.5+%25", 0.3), 3
    ),
}


def main(argv: list[str] | None = None) -> None:
    """Measure, merge into the results for `benchmarks/tables.py`, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="any part of a row's name")
    parser.add_argument("--rounds", type=int, help="number of rounds (default: set per row)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # clean up what rows have started
    try:
        device = accelerator(args.device)
        chosen = [name for name in ROWS if not args.rows or any(part in name for part in args.rows)]
        if not chosen:
            one_of("row", args.rows[0], ROWS)
        for name in chosen:
            result = measure(ROWS[name], device, args.rounds)
            known = read_json_if_there(args.results)
            rows = known.get(device, {}) | {name: result}
            write_json(args.results, known | {device: {name: rows[name] for name in ROWS if name in rows}})
            print(name, result, flush=True)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
