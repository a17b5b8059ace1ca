"""The baselines beside the students: distances by hand, and the shape of what goes into the results file."""

import numpy as np
import pytest
import torch

from benchmarks import baselines
from benchmarks.baselines import mahalanobis, measure, neighbour_distance
from kdad.data import patterns
from kdad.data.task import holdout_split


class TinySource:
    """Twelve training and four test images of each of two textures."""

    name, counts, classes = "patterns", {"train": 12, "test": 4}, ("dots", "stripes")

    def labels(self, part):
        return torch.arange(2).repeat_interleave(self.counts[part])

    def images(self, part, indices):
        drawn = [patterns.normals(name, self.counts[part], len(part)) for name in self.classes]
        return torch.from_numpy(np.concatenate(drawn))[indices]


def test_the_distance_to_neighbours_ignores_length():
    rng = np.random.default_rng(0)
    train = rng.normal([5, 0, 0], 0.1, (30, 3))
    near, far = neighbour_distance(train, np.array([[50.0, 0.1, 0.1], [0.0, 3.0, 0.0]]))
    assert near < 0.05
    assert far == pytest.approx(np.sqrt(2), abs=0.1)


def test_the_mahalanobis_distance_knows_which_way_normals_vary():
    rng = np.random.default_rng(0)
    train = rng.normal(0, [10, 1], (2000, 2))
    along, across = mahalanobis(train, np.array([[10.0, 0.0], [0.0, 10.0]]))
    assert along == pytest.approx(1, rel=0.2)
    assert across == pytest.approx(100, rel=0.2)


def test_every_class_has_a_figure_and_labels_nobody_taught_give_no_probability(vgg_teacher, monkeypatch):
    monkeypatch.setattr(baselines, "load_source", lambda _: TinySource())
    monkeypatch.setattr(baselines, "class_names", lambda _: TinySource.classes)
    found = measure("patterns", vgg_teacher, "cpu")
    assert found.keys() == {"5 nearest neighbours", "Mahalanobis distance"}
    for figures in found.values():
        assert figures["classes"].keys() == {"dots", "stripes"}
        assert figures["mean"] == pytest.approx(np.mean(list(figures["classes"].values())))


def test_on_validation_only_what_chooses_is_measured_and_held_out_images_alone(vgg_teacher, monkeypatch):
    monkeypatch.setattr(baselines, "load_source", lambda _: TinySource())
    monkeypatch.setattr(baselines, "class_names", lambda _: TinySource.classes)
    monkeypatch.setattr(baselines, "SELECTION_CLASSES", ("stripes",))
    monkeypatch.setattr(TinySource, "counts", {"train": 40, "test": 0})
    read, images = [], TinySource.images
    monkeypatch.setattr(TinySource, "images", lambda self, part, rows: read.append(rows) or images(self, part, rows))
    found = baselines.on_validation(vgg_teacher, "cpu")
    assert found.keys() == {"stripes"} and 0 <= found["stripes"] <= 1
    kept, held_out = holdout_split(80)
    judged, learned = read
    assert judged.tolist() == held_out.tolist()
    assert learned.tolist() == [row for row in kept.tolist() if row >= 40]
