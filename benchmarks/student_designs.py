"""Student designs for a full-size CNN teacher: `python benchmarks/student_designs.py FOLDER --source "who made it"`.

Students of several designs copy `lite0-imagenet` on the training normals of a folder, with the same recipe and number
of steps. They are evaluated on held-out normals and on pseudo-anomalies drawn into them; the test split is not read.
Readings of their patch errors are compared too: each layer, and the sum of the two finer ones, by a map's peak, by the
mean of its highest hundredth, and by its peak plus the teacher's own distance of the whole image, both scaled by their
spread among held-out normals.
For comparison without a student: the Mahalanobis distance of every patch, and that of the whole image alone.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from kdad.data.datasets import FOLDER, dataset_slug
from kdad.data.loading import load_task
from kdad.data.preprocessing import resample
from kdad.data.pseudo_anomalies import draw_pseudo_anomalies
from kdad.detection.discrepancy import all_errors, distillation_loss, layer_errors
from kdad.detection.mahalanobis import Gaussian
from kdad.devices import hardware
from kdad.errors import UserError
from kdad.evaluation import metrics
from kdad.files import write_json
from kdad.networks.conv_student import ConvStudent
from kdad.networks.teachers.loading import Teacher, load_teacher
from kdad.networks.teachers.registry import LITE0
from kdad.networks.vgg import tokens
from kdad.scores import logarithm

RESULTS = Path(__file__).resolve().parent / "results" / "student_designs.json"
STEPS, BATCH, RATE = 200, 16, 3e-3
DRAWS = 3
TOP = 0.01
READINGS = {"stride 8": (1, 0, 0), "stride 16": (0, 1, 0), "final": (0, 0, 1), "strides 8 and 16": (1, 1, 0)}
Copy = Callable[[Tensor, list[Tensor]], list[Tensor]]  # from pixels and teacher features to student features


def convolutions(width_in: int, width: int, stride: int) -> nn.Sequential:
    """Two 3×3 convolutions with batch norm and ReLU, the first strided."""
    layers: list[nn.Module] = []
    for inside, step in ((width_in, stride), (width, 1)):
        layers += [nn.Conv2d(inside, width, 3, step, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class NarrowCopy(nn.Module):
    """A narrower copy of the teacher: one stage per stride from 2 on (STFPM, arXiv 2103.04257, and the paper)."""

    def __init__(self, channels: tuple[int, ...], widths: tuple[int, ...] = (16, 24, 32, 48, 64)):
        super().__init__()
        self.stages = nn.ModuleList(convolutions(*pair, 2) for pair in zip((3, *widths), widths, strict=False))
        self.projections = nn.ModuleList(nn.Conv2d(w, c, 1) for w, c in zip(widths[-3:], channels, strict=True))

    def forward(self, pixels: Tensor, target: list[Tensor]) -> list[Tensor]:
        read = []
        for stage in self.stages:
            read.append(pixels := stage(pixels))
        return [tokens(project(x)) for project, x in zip(self.projections, read[-3:], strict=True)]


class ReverseDecoder(nn.Module):
    """Decoder of the teacher's layers from a bottleneck over them (Deng and Li 2022, arXiv 2201.10703)."""

    def __init__(self, channels: tuple[int, ...], width: int = 64):
        super().__init__()
        last = len(channels) - 1
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1), *(convolutions(width, width, 2) for _ in range(last - index)))
            for index, c in enumerate(channels)
        )
        self.neck = convolutions(width * len(channels), width, 1)
        self.up = nn.ModuleList(convolutions(width, width, 1) for _ in channels)
        self.projections = nn.ModuleList(nn.Conv2d(width, c, 1) for c in reversed(channels))

    def forward(self, pixels: Tensor, target: list[Tensor]) -> list[Tensor]:
        maps = [layer.transpose(1, 2).unflatten(2, (int(layer.shape[1] ** 0.5), -1)) for layer in target]
        x = self.neck(torch.cat([down(layer) for down, layer in zip(self.down, maps, strict=True)], 1))
        read = []
        for index, (up, project) in enumerate(zip(self.up, self.projections, strict=True)):
            x = up(interpolate(x, scale_factor=2, mode="bilinear") if index else x)
            read.append(tokens(project(x)))
        return read[::-1]


class FromPixels(nn.Module):
    """Adapter for a student that needs pixels only."""

    def __init__(self, student: nn.Module):
        super().__init__()
        self.student = student

    def forward(self, pixels: Tensor, target: list[Tensor]) -> list[Tensor]:
        return self.student(pixels)


def designs(teacher: Teacher) -> dict[str, Callable[[], nn.Module]]:
    """Factories of the untrained students, by design."""
    strides, channels = teacher.network.strides, teacher.network.channels
    return {
        "patch embedding": lambda: FromPixels(ConvStudent(strides=strides, channels=channels)),
        "narrow copy": lambda: NarrowCopy(channels),
        "reverse decoder": lambda: ReverseDecoder(channels),
    }


@torch.no_grad()
def features(teacher: Teacher, images: Tensor) -> list[Tensor]:
    """Teacher features of uint8 images (N, 3, S, S), per layer."""
    parts = [teacher(teacher.preprocessing(batch)) for batch in images.split(32)]
    return [torch.cat(layer) for layer in zip(*parts, strict=True)]


def train(student: nn.Module, teacher: Teacher, images: Tensor, target: list[Tensor]) -> nn.Module:
    """Train for `STEPS` steps with the one-cycle schedule on images whose teacher features are `target`."""
    optimizer = torch.optim.Adam(student.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    generator = torch.Generator().manual_seed(0)
    student.train()
    for _ in range(STEPS):
        chosen = torch.randperm(len(images), generator=generator)[:BATCH]
        known = [layer[chosen] for layer in target]
        with torch.autocast("cpu", torch.bfloat16):
            copied = student(teacher.preprocessing(images[chosen]), known)
        loss = distillation_loss(layer_errors(copied, known), mse_weight=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return student.eval()


@torch.no_grad()
def errors(copy: Copy, teacher: Teacher, images: Tensor, target: list[Tensor]) -> list[Tensor]:
    """Patch errors (N, h, w) of every layer."""
    parts = []
    for chosen in torch.arange(len(images)).split(32):
        known = [layer[chosen] for layer in target]
        copied = copy(teacher.preprocessing(images[chosen]), known)
        parts.append(all_errors(copied, known, teacher.prefix, teacher.grids)[1])
    return [torch.cat(layer) for layer in zip(*parts, strict=True)]


def distances(target: list[Tensor], train_target: list[Tensor], teacher: Teacher) -> list[Tensor]:
    """Mahalanobis distance (N, h, w) of every patch from all patches of training normals, per layer."""
    maps = []
    for layer, normal, grid in zip(target, train_target, teacher.grids, strict=True):
        gaussian = Gaussian.fit([normal.flatten(0, 1)[:: max(1, normal.shape[1] // 64)]])
        maps.append(gaussian.distance(layer.flatten(0, 1)).view(len(layer), *grid))
    return maps


def whole_distances(target: list[Tensor], train_target: list[Tensor], teacher: Teacher) -> np.ndarray:
    """Mahalanobis distance (N,) of every image's summary from those of training normals."""
    summary = teacher.network.summary
    return Gaussian.fit([summary(train_target)]).distance(summary(target)).numpy()


def figures(normal: list[Tensor], pseudo: list[Tensor], masks: np.ndarray, whole: np.ndarray) -> dict[str, float]:
    """Pixel AUROC, and image AUROC by each way to reduce a map to one number, for every reading.

    Args:
        normal, pseudo: patch errors (N, h, w) of every layer, of held-out normals and of pseudo-anomalies.
        masks: anomalous pixels of the pseudo-anomalies, bool (N, H, W).
        whole: distances (N,) of all these images, normals first.
    """
    units = [(layer.mean(), layer.std()) for layer in normal]
    found = {}
    for name, weights in READINGS.items():
        combined = [_combined(maps, units, weights, masks.shape[1:]) for maps in (normal, pseudo)]
        anomalous = np.repeat([False, True], [len(maps) for maps in combined])
        flat = torch.cat(combined).flatten(1)
        highest = flat.topk(round(TOP * flat.shape[1]), 1).values
        peaks, normals = highest[:, 0].numpy(), len(combined[0])
        weight = peaks[:normals].std() / max(np.log(whole[:normals]).std(), 1e-12)
        found |= {
            f"{name}, peak": metrics.auroc(peaks, anomalous),
            f"{name}, highest hundredth": metrics.auroc(highest.mean(1).numpy(), anomalous),
            f"{name}, peak + distance": metrics.auroc(peaks + weight * logarithm(whole), anomalous),
            f"{name}, pixels": metrics.pixel_ranking(combined[1].numpy(), masks)[0],
        }
    found["distance alone"] = metrics.auroc(whole, anomalous)
    return {name: round(value, 4) for name, value in found.items()}


def _combined(maps: list[Tensor], units: list, weights: tuple[int, ...], size: tuple[int, int]) -> Tensor:
    """Weighted sum (N, H, W) of standardised maps."""
    standard = [(layer - mean) / std for layer, (mean, std) in zip(maps, units, strict=True)]
    kept = [(weight, layer) for weight, layer in zip(weights, standard, strict=True) if weight]
    return sum(weight * resample(layer[:, None], *size, "bilinear")[:, 0] for weight, layer in kept)


def run(folder: Path, source: str) -> dict:
    """Figures of every design on one folder's held-out normals."""
    dataset = f"{FOLDER}{folder}"
    teacher = load_teacher(LITE0)
    task = load_task(dataset, "good", teacher.preprocessing)
    held_out = task.validation.images
    drawn = [draw_pseudo_anomalies(held_out.permute(0, 2, 3, 1).contiguous().numpy(), seed) for seed in range(DRAWS)]
    anomalous, masks = (np.concatenate([getattr(part, of) for part in drawn]) for of in ("images", "masks"))
    anomalous = torch.from_numpy(anomalous).permute(0, 3, 1, 2)
    shown = torch.cat([task.train, task.train.flip(-1)])
    known, known_good, known_anomalous = (features(teacher, images) for images in (shown, held_out, anomalous))
    whole = np.concatenate([whole_distances(layers, known, teacher) for layers in (known_good, known_anomalous)])
    rows = []
    for name, make in designs(teacher).items():
        torch.manual_seed(0)
        student = train(make(), teacher, shown, known)
        maps = [errors(student, teacher, *pair) for pair in ((held_out, known_good), (anomalous, known_anomalous))]
        rows.append({"design": name, **figures(*maps, masks, whole)})
        print(rows[-1], flush=True)
    maps = [distances(layers, known, teacher) for layers in (known_good, known_anomalous)]
    rows.append({"design": "no student: Mahalanobis distance", **figures(*maps, masks, whole)})
    print(rows[-1], flush=True)
    return {
        "dataset": dataset_slug(dataset), "source": source, "teacher": LITE0, "steps": STEPS, "batch": BATCH,
        "train": len(task.train), "held_out": len(held_out), "draws": DRAWS, "hardware": hardware("cpu"), "rows": rows,
    }  # fmt: skip


def main() -> None:
    """Measure, and save for `benchmarks/tables.py`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", required=True, help="who made the images, for the table")
    args = parser.parse_args()
    try:
        write_json(RESULTS, run(args.folder, args.source))
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
