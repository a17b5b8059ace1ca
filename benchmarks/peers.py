"""PaDiM and PatchCore as anomalib has them, beside the default score: `python -m benchmarks.peers FOLDER…`.

With the EfficientNet-Lite0 weights, images and image size that `kdad train` takes, fitted on all training normals. The
rest is anomalib's default, but for what it has none for: PaDiM keeps as many channels as it does of a ResNet-18, and
PatchCore as small a coreset as the smallest of its paper, for a larger one takes hours on a CPU.

anomalib is no dependency of kdad: `pip install anomalib`, in an environment of its own.
"""

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.regions import LAYERS, figures_of
from kdad.data.datasets import FOLDER
from kdad.data.folders import FolderTask, ImageFiles
from kdad.devices import hardware
from kdad.files import read_json_if_there, write_json
from kdad.networks.teachers.loading import Teacher, load_teacher
from kdad.networks.teachers.registry import LITE0, TEACHERS, default_image_size
from kdad.networks.teachers.timm_weights import lite0

RESULTS = Path(__file__).resolve().parent / "results" / "peers.json"
BACKBONE = "tf_efficientnet_lite0"
PADIM_CHANNELS = 100
CORESET = 0.01


class Judged(NamedTuple):
    """The score of an image, and its map (h, w)."""

    score: float
    anomaly_map: Tensor


class Peer(Protocol):
    """A method that is fitted on normals."""

    def fit(self, pixels: Iterable[Tensor]) -> None:
        """Learn from normalised images (1, 3, H, W)."""

    def judge(self, pixels: Tensor) -> Judged:
        """Judge one normalised image (1, 3, H, W)."""


class Anomalib:
    """A model of anomalib whose backbone has EfficientNet-Lite0's weights.

    Args:
        model: it, as its constructor leaves it.
        finish: what ends its fitting.
    """

    def __init__(self, model: Any, finish: Callable[[Any], None]):
        weights = lite0(TEACHERS[LITE0].place)[0].state_dict()
        missing = model.feature_extractor.feature_extractor.load_state_dict(weights, strict=False).missing_keys
        assert not missing, missing
        self._model, self._finish = model, finish

    def fit(self, pixels: Iterable[Tensor]) -> None:
        self._model.train()
        self._model.feature_extractor.eval()
        for image in pixels:
            self._model(image)
        self._finish(self._model)
        self._model.eval()

    @torch.inference_mode()
    def judge(self, pixels: Tensor) -> Judged:
        found = self._model(pixels)
        return Judged(float(found.pred_score.flatten()[0]), found.anomaly_map.reshape(found.anomaly_map.shape[-2:]))


def padim() -> Peer:
    """PaDiM (arXiv 2011.08785) of three layers, each upsampled to the finest."""
    from anomalib.models.image.padim.torch_model import PadimModel

    torch.manual_seed(0)  # which channels it keeps is drawn
    model = PadimModel(BACKBONE, list(LAYERS), pre_trained=False, n_features=PADIM_CHANNELS)
    return Anomalib(model, lambda model: model.fit())


def patchcore() -> Peer:
    """PatchCore (arXiv 2106.08265) of the layers at strides 16 and 32."""
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    torch.manual_seed(0)
    model = PatchcoreModel(list(LAYERS[1:]), BACKBONE, pre_trained=False)
    return Anomalib(model, lambda model: model.subsample_embedding(CORESET))


PEERS: dict[str, Callable[[], Peer]] = {"PaDiM": padim, "PatchCore": patchcore}


def measure(folder: Path, name: str) -> dict:
    """Figures in 0…1 of one peer on the test part, and the seconds of fitting and judging."""
    teacher = load_teacher(LITE0, image_size=default_image_size(LITE0, f"{FOLDER}{folder}"), layers=LAYERS)
    task = FolderTask(folder, teacher.preprocessing)
    started = time.perf_counter()
    peer = PEERS[name]()
    peer.fit(_prepared(teacher, ImageFiles(task.layout.normals, task.max_value)))
    assert task.test is not None
    judged = [peer.judge(pixels) for pixels in _prepared(teacher, task.test.images)]
    seconds = round(time.perf_counter() - started)
    about = {"dataset": folder.name, "method": name, "image_size": list(teacher.preprocessing.resize)}
    found = figures_of(task, np.array([each.score for each in judged]), [each.anomaly_map.float() for each in judged])
    figures = {name: round(figure, 4) for name, figure in found.items()}
    return {**about, **figures, "seconds": seconds, "hardware": hardware("cpu")}


def _prepared(teacher: Teacher, images: Iterable[Tensor]) -> Iterable[Tensor]:
    return (teacher.preprocessing(image[None]) for image in images)


def main(argv: list[str] | None = None) -> None:
    """Measure folders, and replace their rows in the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--methods", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    for folder in args.folders:
        for method in args.methods:
            row = measure(folder.resolve(), method)
            known = read_json_if_there(args.results).get("rows", [])
            kept = [other for other in known if (other["dataset"], other["method"]) != (row["dataset"], method)]
            write_json(args.results, {"rows": [*kept, row]})
            print(row, flush=True)


if __name__ == "__main__":
    main()
