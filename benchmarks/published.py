"""The published way of working, written from the method's description, as the baseline of `benchmarks/speed.py`.

float32, contiguous NCHW, PIL resizing every image at every step, and the teacher run with its graph.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss

from kdad.data.preprocessing import Preprocessing
from kdad.networks.registry import IMAGENET_MEAN, IMAGENET_STD

PIXELS = Preprocessing(256, 224, IMAGENET_MEAN, IMAGENET_STD)
BATCH = 8
Work = Callable[[], object]


def photographs() -> list[Image.Image]:
    """A batch of noise of the size of photographs."""
    noise = np.random.default_rng(0).integers(0, 256, (BATCH, 480, 640, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in noise]


def resized(photos: list[Image.Image], side: int) -> np.ndarray:
    """As the published code's loader does it, image by image."""
    return np.stack([np.asarray(photo.resize((side, side))) for photo in photos])


def published_step(teacher: nn.Module, student: nn.Module, mse_weight: float, device: str) -> Work:
    """A step of training as published, pixels included; `teacher` keeps its graph."""
    teacher.to(device)
    photos, optimizer = photographs(), torch.optim.Adam(student.to(device).parameters(), lr=1e-3)
    mean, std = (torch.tensor(values)[:, None, None] for values in (PIXELS.mean, PIXELS.std))

    def step() -> None:
        pixels = torch.from_numpy(resized(photos, PIXELS.crop)).permute(0, 3, 1, 2).float().div(255)
        pixels = ((pixels - mean) / std).contiguous().to(device)
        loss = torch.zeros((), device=device)
        for copied, target in zip(student(pixels), teacher(pixels), strict=True):
            cosine = cosine_similarity(copied.flatten(1), target.flatten(1)).mean()
            loss = loss + 1 - cosine + mse_weight * mse_loss(copied, target)
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
