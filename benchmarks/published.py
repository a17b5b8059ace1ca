"""The published training procedure, implemented from its description, as the baseline of `benchmarks/speed.py`.

float32, contiguous NCHW, PIL resizing of every image at every step, and a teacher run with autograd.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss
from torch.utils.data import DataLoader, Dataset

from kdad.data.preprocessing import Preprocessing
from kdad.networks.teachers.registry import IMAGENET_MEAN, IMAGENET_STD

PIXELS = Preprocessing(256, 224, IMAGENET_MEAN, IMAGENET_STD)
BATCH = {"cpu": 8, "cuda": 64}  # images per training step
Work = Callable[[], object]


def photographs(device: str) -> list[Image.Image]:
    """Batch of photograph-sized noise images."""
    noise = np.random.default_rng(0).integers(0, 256, (BATCH[device], 480, 640, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in noise]


def resized(photos: list[Image.Image], side: int) -> np.ndarray:
    """Resize image by image, as the published code's loader does."""
    return np.stack([np.asarray(photo.resize((side, side))) for photo in photos])


def pixels_of(photos: list[Image.Image]) -> Tensor:
    """Preprocess photographs for the networks: (B, 3, S, S)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (PIXELS.mean, PIXELS.std))
    pixels = torch.from_numpy(resized(photos, PIXELS.crop[0])).permute(0, 3, 1, 2).float().div(255)
    return ((pixels - mean) / std).contiguous()


class PhotographFiles(Dataset[Tensor]):
    """Image files, read and resized on every access."""

    def __init__(self, files: Sequence[Path]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.files[index]) as photo:
            return pixels_of([photo.convert("RGB")])[0]


class Published:
    """Teacher and student, trained and run as published; `teacher` keeps its autograd graph."""

    def __init__(self, teacher: nn.Module, student: nn.Module, mse_weight: float, device: str):
        self.teacher, self.student = teacher.to(device), student.to(device)
        self.mse_weight, self.device = mse_weight, device
        self.optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)

    def losses(self, pixels: Tensor) -> Tensor:
        """Loss of each image, (B,), which is also its anomaly score."""
        pixels = pixels.to(self.device)
        losses = torch.zeros(len(pixels), device=self.device)
        for copied, target in zip(self.student(pixels), self.teacher(pixels), strict=True):
            cosine = cosine_similarity(copied.flatten(1), target.flatten(1))
            squared = mse_loss(copied, target, reduction="none").flatten(1).mean(1)
            losses = losses + 1 - cosine + self.mse_weight * squared
        return losses

    def step(self, pixels: Tensor) -> None:
        """Run one training step."""
        loss = self.losses(pixels).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def whole(self, train: Sequence[Path], test: Sequence[Path], epochs: int, batch: int) -> None:
        """Train, and score the test images."""
        for _ in range(epochs):
            for pixels in DataLoader(PhotographFiles(train), batch_size=batch, shuffle=True):
                self.step(pixels)
        self.student.eval()
        with torch.no_grad():
            for pixels in DataLoader(PhotographFiles(test), batch_size=batch):
                self.losses(pixels).cpu()


def published_step(teacher: nn.Module, student: nn.Module, mse_weight: float, device: str) -> Work:
    """Training step as published, including preprocessing."""
    photos, published = photographs(device), Published(teacher, student, mse_weight, device)
    return lambda: published.step(pixels_of(photos))


class Contiguous(nn.Module):
    """A stack of layers read at `taps`, in torch's default NCHW memory format."""

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
