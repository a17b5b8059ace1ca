"""Baselines on a teacher's own features, without a student: `python benchmarks/baselines.py --teacher vgg-cifar10`.

Three baselines on the same split as the students', merged into the same results file: the distance to the
nearest training normals and the Mahalanobis distance to their mean, both on the teacher's last critical layer, and, for
a compact teacher trained on the data set's own labels, 1 − p(normal class). Nearest neighbours use the class token
alone, if there is one, as they do worse on the features of the Mahalanobis distance, `FeatureNetwork.summary`.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from kdad.data.datasets import class_names
from kdad.data.sources import load_source
from kdad.data.task import holdout_split
from kdad.devices import accelerator
from kdad.errors import UserError
from kdad.evaluation import metrics
from kdad.evaluation.results_file import RESULTS, load_results, merge_entry
from kdad.networks.compact_vit import CompactViT
from kdad.networks.teachers.loading import Teacher, load_teacher
from kdad.networks.teachers.registry import CARD_FILE, WEIGHTS_FOLDER, default_image_size
from kdad.networks.vgg import CompactVGG
from kdad.scores import SELECTION_CLASSES

ROOT = Path(__file__).resolve().parent.parent
NEIGHBOURS = 5
BATCH = 100


class Features(NamedTuple):
    """A teacher's features of N images on its last critical layer, each (N, D) float32."""

    token: np.ndarray  # the class token, or the mean over patches if there is none
    pooled: np.ndarray  # input of the default score's Gaussian, `FeatureNetwork.summary`


@torch.inference_mode()
def features_of(teacher: Teacher, source, part: str, indices: Tensor, device: str) -> Features:
    """Features of some images of one split of a data set."""
    tokens, summaries = [], []
    for chunk in indices.split(BATCH):
        features = teacher(teacher.preprocessing(source.images(part, chunk).to(device)))
        summaries.append(teacher.network.summary(features).cpu())
        tokens.append(features[-1][:, 0].float().cpu() if teacher.prefix else summaries[-1])
    return Features(torch.cat(tokens).numpy(), torch.cat(summaries).numpy())


@torch.inference_mode()
def probabilities(teacher: Teacher, source, indices: Tensor, device: str) -> np.ndarray | None:
    """p(class) of test images (N, classes) from a shipped teacher's classifier, if it was trained on these classes."""
    folder = WEIGHTS_FOLDER / teacher.name
    if source.name not in teacher.trained_on or not (folder / CARD_FILE).is_file():
        return None
    family = CompactVGG if teacher.name.startswith("vgg") else CompactViT
    classifier = family.load(folder).to(device)
    rows = [
        classifier(teacher.preprocessing(source.images("test", chunk).to(device))).softmax(1).cpu()
        for chunk in indices.split(BATCH)
    ]
    return torch.cat(rows).numpy()


def neighbour_distance(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Mean distance (N,) to the nearest training normals, on features scaled to unit length."""
    unit = [features / np.linalg.norm(features, axis=1, keepdims=True) for features in (train, test)]
    return NearestNeighbors(n_neighbors=NEIGHBOURS).fit(unit[0]).kneighbors(unit[1])[0].mean(1)


def mahalanobis(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distance (N,) to the training normals, with Ledoit–Wolf shrinkage of the covariance."""
    return LedoitWolf().fit(train).mahalanobis(test)


def measure(dataset: str, teacher: Teacher, device: str) -> dict[str, dict]:
    """Test AUROC of every class, and their mean, for each baseline."""
    source, classes = load_source(dataset), class_names(dataset)
    kept, _ = holdout_split(len(source.labels("train")))
    every = torch.arange(len(source.labels("test")))
    train, test = (
        features_of(teacher, source, part, indices, device) for part, indices in (("train", kept), ("test", every))
    )
    train_labels, test_labels = source.labels("train")[kept].numpy(), source.labels("test").numpy()
    likely = probabilities(teacher, source, every, device)
    found: dict[str, dict[str, float]] = {}
    for index, name in enumerate(classes):
        normal, anomalous = train_labels == index, test_labels != index
        scores = {
            f"{NEIGHBOURS} nearest neighbours": neighbour_distance(train.token[normal], test.token),
            "Mahalanobis distance": mahalanobis(train.pooled[normal], test.pooled),
        }
        if likely is not None:
            scores["1 − p(normal class)"] = 1 - likely[:, index].astype(np.float64)
        for score, values in scores.items():
            found.setdefault(score, {})[name] = round(metrics.auroc(values, anomalous), 6)
    return {score: {"classes": of, "mean": float(np.mean(list(of.values())))} for score, of in found.items()}


def on_validation(teacher: Teacher, device: str) -> dict[str, float]:
    """AUROC of the Mahalanobis distance on CIFAR-10's validation images, of the classes by which things are chosen."""
    source, classes = load_source("cifar10"), class_names("cifar10")
    labels = source.labels("train")
    kept, held_out = holdout_split(len(labels))
    validation = features_of(teacher, source, "train", held_out, device).pooled
    found = {}
    for name in SELECTION_CLASSES:
        index = classes.index(name)
        normals = features_of(teacher, source, "train", kept[labels[kept] == index], device).pooled
        found[name] = metrics.auroc(mahalanobis(normals, validation), (labels[held_out] != index).numpy())
    return found


def main() -> None:
    """Measure, merge, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--results", type=Path, default=ROOT / RESULTS)
    told = "print what the Mahalanobis distance tells of CIFAR-10's validation images, and merge nothing"
    parser.add_argument("--validation", action="store_true", help=told)
    args = parser.parse_args()
    try:
        teacher = load_teacher(args.teacher, image_size=default_image_size(args.teacher, args.dataset))
        device = accelerator("auto")
        if args.validation:
            if args.dataset != "cifar10":
                raise UserError("--validation is about cifar10, whose validation images choose")
            for name, auroc in on_validation(teacher.to(device), device).items():
                print(f"{name}: {100 * auroc:.2f}")
            return
        entry = load_results(args.results).get(f"{args.dataset}/{teacher.name}")
        if entry is None or entry["teacher_sha256"] != teacher.sha256:
            raise UserError(f"{args.results} has no students of this teacher yet: run a sweep with it first")
        found = measure(args.dataset, teacher.to(device), device)
    except UserError as error:
        parser.error(str(error))
    merge_entry(args.results, entry | {"baselines": found})
    for score, figures in found.items():
        print(f"{score}: {100 * figures['mean']:.2f}")


if __name__ == "__main__":
    main()
