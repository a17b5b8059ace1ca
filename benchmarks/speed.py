"""How fast, and against what: `python benchmarks/speed.py [ROW …]`; without names, all rows.

A row runs a baseline and its subject in turn, in one process, for several rounds; the table gives the median ratio, its
spread, and both medians. Baselines of training are written here from the method's description, as the published code
works: float32, contiguous NCHW, PIL resizing every image at every step, and the teacher run with its graph. Networks
have random weights, so nothing is downloaded: how long a step takes does not depend on them.
"""

import argparse
import json
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss

from kdad.data.preprocessing import Preprocessing
from kdad.detection.detector import Detector
from kdad.devices import hardware
from kdad.errors import UserError, one_of
from kdad.files import write_json
from kdad.jobs import manager
from kdad.networks.provenance import UNKNOWN
from kdad.networks.registry import IMAGENET_MEAN, IMAGENET_STD
from kdad.networks.students import OPTIMIZERS, build_student, preset
from kdad.networks.teachers import Teacher
from kdad.networks.vgg import imagenet_vgg16, paper_student
from kdad.networks.vit import ViTFeatures
from kdad.training.distillation import Distillation
from kdad.training.loop import half_precision

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "speed.json"
STUDENTS = ROOT / "trained_students" / "cifar10"
PIXELS = Preprocessing(256, 224, IMAGENET_MEAN, IMAGENET_STD)
BATCH = 8
IMAGES = 1000
LATENCIES = 60
WATCHED_SECONDS = 30.0
SECONDS_PER_LOOK = 0.5
Work = Callable[[], None]


@dataclass(frozen=True)
class Row:
    """`baseline` and `ours` say in words what is compared; `prepare` gives both, ready to run, while it is entered."""

    baseline: str
    ours: str
    prepare: Callable[[], "Prepared"]
    rounds: int = 5


Prepared = Iterator[tuple[Callable[[], float], Callable[[], float]]]  # each returns the seconds of its unit of work


def timed(work: Work) -> Callable[[], float]:
    """`work`, returning how long it took."""

    def run() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return run


def photographs() -> list[Image.Image]:
    """A batch of noise of the size of photographs."""
    noise = np.random.default_rng(0).integers(0, 256, (BATCH, 480, 640, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in noise]


def resized(photos: list[Image.Image], side: int) -> np.ndarray:
    """As the published code's loader does it, image by image."""
    return np.stack([np.asarray(photo.resize((side, side))) for photo in photos])


def published_step(teacher: Callable[[Tensor], list[Tensor]], student: nn.Module, mse_weight: float) -> Work:
    """A step of training as published, pixels included; `teacher` keeps its graph."""
    photos, optimizer = photographs(), torch.optim.Adam(student.parameters(), lr=1e-3)
    mean, std = (torch.tensor(values)[:, None, None] for values in (PIXELS.mean, PIXELS.std))

    def step() -> None:
        pixels = torch.from_numpy(resized(photos, PIXELS.crop)).permute(0, 3, 1, 2).float().div(255)
        pixels = ((pixels - mean) / std).contiguous()
        loss = torch.zeros(())
        for copied, target in zip(student(pixels), teacher(pixels), strict=True):
            cosine = cosine_similarity(copied.flatten(1), target.flatten(1)).mean()
            loss = loss + 1 - cosine + mse_weight * mse_loss(copied, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def our_step(teacher: Teacher) -> Work:
    """A step of training as `kdad train` takes it, on images that were read and resized once."""
    architecture, recipe = preset(teacher)
    module = Distillation(build_student(architecture), teacher, None, recipe, seed=0).train()  # type: ignore[arg-type]
    optimizer = OPTIMIZERS[recipe.optimizer](module.student.parameters(), lr=recipe.learning_rate)
    images = torch.from_numpy(resized(photographs(), PIXELS.resize)).permute(0, 3, 1, 2).contiguous()
    warnings.filterwarnings("ignore", message=".*self.log.*")

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half_precision("cpu")):
            loss = module.training_step([images], 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


class Contiguous(nn.Module):
    """A stack of layers read at `taps`, in NCHW as torch makes it by itself."""

    def __init__(self, features: nn.Sequential, taps: tuple[int, ...]):
        super().__init__()
        self.features, self.taps = features.to(memory_format=torch.contiguous_format), taps

    def forward(self, x: Tensor) -> list[Tensor]:
        read = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                read.append(x)
        return read


def vgg_step() -> Prepared:
    """The `vgg16-imagenet` preset."""
    from torchvision.models import vgg16

    def layers_and_taps() -> tuple[nn.Sequential, tuple[int, ...]]:
        layers = vgg16(weights=None).features
        return layers, imagenet_vgg16(layers).taps

    student = paper_student()
    published = published_step(Contiguous(*layers_and_taps()), Contiguous(student.features, student.taps), 0.01)
    teacher = Teacher("vgg16-imagenet", "0" * 64, UNKNOWN, PIXELS, imagenet_vgg16(layers_and_taps()[0]))
    yield timed(published), timed(our_step(teacher))


def vit_step() -> Prepared:
    """The `vit-base-cifar10` preset."""
    from transformers import ViTConfig, ViTModel

    def features() -> ViTFeatures:
        return ViTFeatures(ViTModel(ViTConfig()), PIXELS.crop).eval()

    teacher = Teacher("vit-base-cifar10", "0" * 64, UNKNOWN, PIXELS, features())
    student = build_student(preset(teacher)[0]).train()
    yield timed(published_step(features(), student, 0.01)), timed(our_step(teacher))


def command(name: str) -> Callable[[], Prepared]:
    """`python -m kdad score STUDENT one.png`, against starting Python with torch alone."""

    def prepare() -> Prepared:
        score = [sys.executable, "-m", "kdad", "score", str(STUDENTS / name / "cat"), str(ROOT / "docs" / "home.png")]
        torch_alone = [sys.executable, "-c", "import torch"]
        yield _running(torch_alone), _running(score)

    return prepare


def _running(arguments: list[str]) -> Callable[[], float]:
    return timed(lambda: subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True) and None)


def ten_students(name: str) -> Callable[[], Prepared]:
    """Ten students of one teacher on the same images, as a sweep judges them, against one after the other."""

    def prepare() -> Prepared:
        first = Detector.load(STUDENTS / name / "cat", device="cpu")
        images = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
        detectors = [
            Detector.load(folder, teacher=first.teacher, device="cpu") for folder in sorted((STUDENTS / name).iterdir())
        ]

        def separately() -> None:
            for detector in detectors:
                for batch in images.split(100):
                    detector.predict(batch)

        def together() -> None:
            for batch in images.split(100):
                features = first.teacher_features(batch)
                for detector in detectors:
                    detector.judge(features, batch)

        yield timed(separately), timed(together)

    return prepare


def latency(name: str) -> Callable[[], float]:
    """The median seconds of one 32 px image through a loaded detector."""
    detector = Detector.load(STUDENTS / name / "cat", device="cpu")
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


def while_training(name: str) -> Callable[[], Prepared]:
    """One image beside a job of the app that trains, against one image alone."""

    def prepare() -> Prepared:
        one = latency(name)
        with tempfile.TemporaryDirectory() as folder, training(Path(folder)) as job:

            def beside() -> float:
                job.resume()
                seconds = one()
                job.pause()
                return seconds

            job.pause()
            yield one, beside

    return prepare


def training_watched() -> Prepared:
    """Seconds per epoch of a job that trains, alone and beside one who looks at two images a second."""
    detector = Detector.load(STUDENTS / "vgg-cifar10" / "cat", device="cpu")
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    looks = round(WATCHED_SECONDS / SECONDS_PER_LOOK)
    with tempfile.TemporaryDirectory() as folder, training(Path(folder)) as job:

        def looking() -> None:
            for _ in range(looks):
                detector.predict(image)
                time.sleep(SECONDS_PER_LOOK)

        yield lambda: job.pace(lambda: time.sleep(WATCHED_SECONDS)), lambda: job.pace(looking)


class TrainingJob:
    """A job that trains for as long as it is let."""

    def __init__(self, job: manager.Job):
        self.job = job

    def position(self) -> float:
        """Epochs done."""
        return manager.find(self.job.folder).status.position

    def pace(self, meanwhile: Work) -> float:
        """Seconds per epoch while something else is done."""
        started, before = time.monotonic(), self.position()
        meanwhile()
        return (time.monotonic() - started) / (self.position() - before)

    def pause(self) -> None:
        """Let it stand still."""
        self._signal("SIGSTOP")

    def resume(self) -> None:
        """Let it go on, and get to work."""
        self._signal("SIGCONT")
        time.sleep(1)

    def _signal(self, name: str) -> None:
        pid = manager.find(self.job.folder).status.pid
        assert pid is not None
        os.killpg(pid, getattr(signal, name))


@contextmanager
def training(folder: Path) -> Iterator[TrainingJob]:
    """A student of `patterns` in training, as the app's training page starts it."""
    arguments = ["train", "--dataset", "patterns", "--normal-class", "stripes", "--teacher", "vgg-cifar10"]
    job = manager.start(folder / "jobs", [*arguments, "--epochs", "100000", "--out", str(folder)], folder / "student")
    running = TrainingJob(job)
    try:
        while not running.position() > 1:
            if not manager.find(job.folder).active:
                raise UserError(f"the job beside which to measure ended: {manager.find(job.folder).status.message}")
            time.sleep(0.5)
        yield running
    finally:
        running.resume()
        manager.stop(job, grace=5)


COMPACT = ("vgg-cifar10", "vit-cifar10")
ROWS: dict[str, Row] = {
    "training step, `vgg16-imagenet` preset, 8 images": Row("as published", "`train`", vgg_step),
    "training step, `vit-base-cifar10` preset, 8 images": Row("as published", "`train`", vit_step),
} | {
    what.format(name): Row(baseline, ours, prepare(name), rounds)
    for what, baseline, ours, prepare, rounds in (
        ("`score STUDENT one.png`, `{}`", "`import torch` alone", "the whole command", command, 5),
        ("ten students on 1,000 images, `{}`", "one after the other", "the teacher asked once", ten_students, 3),
        ("one image, `{}`, while a job trains", "nothing beside it", "a job beside it", while_training, 5),
    )
    for name in COMPACT
}
ROWS["an epoch of a job that trains"] = Row("nobody looks", "two images a second beside it", training_watched, 3)


def measure(row: Row, rounds: int | None = None) -> dict:
    """Baseline and subject in turn, once to warm up and then for some rounds."""
    prepared = row.prepare()
    baseline, subject = next(prepared)
    pairs = [(baseline(), subject()) for _ in range((rounds or row.rounds) + 1)][1:]
    next(prepared, None)  # what was started for it ends
    ratios = [one / other for one, other in pairs]
    return {
        "baseline": row.baseline,
        "ours": row.ours,
        "baseline_seconds": round(statistics.median(one for one, _ in pairs), 5),
        "seconds": round(statistics.median(other for _, other in pairs), 5),
        "ratio": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
        "rounds": len(pairs),
        "hardware": hardware("cpu"),
    }


def main(argv: list[str] | None = None) -> None:
    """Measure, merge into the results for `benchmarks/tables.py`, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="any part of a row's name")
    parser.add_argument("--rounds", type=int, help="how many, if not each row's own number")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    try:
        known = json.loads(args.results.read_text()) if args.results.is_file() else {}
        chosen = [name for name in ROWS if not args.rows or any(part in name for part in args.rows)]
        if not chosen:
            one_of("row", args.rows[0], ROWS)
        for name in chosen:
            known[name] = measure(ROWS[name], args.rounds)
            write_json(args.results, {name: known[name] for name in ROWS if name in known})
            print(name, known[name], flush=True)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
