"""A teacher that remembers answers as the teacher itself, and asks it no second time."""

from dataclasses import replace

import pytest
import torch

from kdad.networks.vgg import ConvStack
from kdad.training import feature_cache
from kdad.training.feature_cache import CachedTeacher, Views, cache_features, fingerprint


class Counting(ConvStack):
    """A network that counts the images it was shown."""

    def __init__(self, network):
        super().__init__(list(network.features), network.taps)
        self.shown = 0

    def forward(self, pixels):
        self.shown += len(pixels)
        return super().forward(pixels)


@pytest.fixture
def counted(vgg_teacher):
    return replace(vgg_teacher, network=Counting(vgg_teacher.network))


def some_images(n, seed=0):
    return torch.randint(0, 256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_remembered_features_equal_the_teachers_in_any_order(vgg_teacher):
    images = some_images(10)
    cached = cache_features(vgg_teacher, images.split(4))
    order = torch.tensor([7, 0, 7, 3])
    pixels = vgg_teacher.preprocessing(images[order])
    for remembered, direct in zip(cached(pixels), vgg_teacher(pixels), strict=True):
        torch.testing.assert_close(remembered, direct)


def test_seen_images_cost_the_teacher_nothing_and_new_ones_are_computed(counted):
    images = some_images(6)
    cached = cache_features(counted, images.split(3))
    counted.network.shown = 0
    cached(counted.preprocessing(images[:4]))
    assert counted.network.shown == 0
    mixed = counted.preprocessing(torch.cat([images[:1], some_images(2, seed=1)]))
    torch.testing.assert_close(cached(mixed), counted(mixed))
    assert counted.network.shown > 0


def test_a_cache_stands_in_for_its_teacher(vgg_teacher):
    cached = cache_features(vgg_teacher, [some_images(3)])
    for name in ("name", "sha256", "trained_on", "preprocessing", "prefix", "grids", "network"):
        assert getattr(cached, name) == getattr(vgg_teacher, name)
    torch.testing.assert_close(
        cached.to("cpu")(cached.preprocessing(some_images(3))), cached(cached.preprocessing(some_images(3)))
    )


def test_memories_add_up(counted, vgg_teacher):
    first, second = some_images(4), some_images(4, seed=1)
    cached = cache_features(cache_features(counted, [first]), [second])
    counted.network.shown = 0
    for images in (first, second):
        torch.testing.assert_close(cached(counted.preprocessing(images)), vgg_teacher(counted.preprocessing(images)))
    assert counted.network.shown == 0


def test_nothing_is_remembered_twice(vgg_teacher):
    first, second = some_images(4), some_images(4, seed=1)
    cached = cache_features(cache_features(vgg_teacher, [first]), [first, second])
    assert [len(memory.keys) for memory in cached.caches] == [len(first), len(second)]
    assert cached.knows(first) and cached.knows(second) and not cached.knows(torch.cat([first, some_images(1, seed=2)]))
    assert cache_features(cached, [second, first]) is cached


def test_one_grey_level_changes_the_fingerprint(vgg_teacher):
    image = some_images(1)
    changed = image.clone()
    changed[0, 0, 0, 0] ^= 1
    assert fingerprint(vgg_teacher.preprocessing(image)) != fingerprint(vgg_teacher.preprocessing(changed))


@pytest.mark.parametrize("side", [1, 4, 7])
def test_any_one_value_changes_the_fingerprint_if_only_in_sign(side):
    pixels = torch.randn(1, 3, side, side)
    before, keys = fingerprint(pixels), set()
    for index in range(pixels.numel()):
        changed = pixels.clone()
        changed.view(-1)[index] *= -1
        keys.add(int(fingerprint(changed)))
    assert len(keys) == pixels.numel() and int(before) not in keys


def test_alike_images_have_fingerprints_of_their_own(vgg_teacher):
    images = 100 + torch.arange(2)[torch.randint(2, (5000, 3, 32, 32), generator=torch.Generator().manual_seed(0))]
    assert len(fingerprint(vgg_teacher.preprocessing(images.byte())).unique()) == len(images.unique(dim=0))


def test_too_little_memory_leaves_the_teacher_as_it_is(vgg_teacher, monkeypatch):
    images = [some_images(4)]
    assert isinstance(cache_features(vgg_teacher, images), CachedTeacher)
    monkeypatch.setattr(feature_cache, "free_bytes", lambda device: 1000)
    assert cache_features(vgg_teacher, images) is vgg_teacher


def test_training_shows_each_view_to_the_teacher_once(counted, tiny_task, tmp_path):
    from kdad.networks.recipes import Recipe
    from kdad.training.distillation import train_student

    train_student(tiny_task, counted, tmp_path, recipe=Recipe(epochs=5, batch_size=8, flip=True), device="cpu")
    views = 2 * len(tiny_task.train) + len(tiny_task.validation.images)
    pseudo_anomalies, probing = len(tiny_task.train), 2  # calibrating makes the former of training images
    assert counted.network.shown == views + pseudo_anomalies + probing


def test_views_are_the_images_and_then_mirror_images():
    images, others = some_images(5), some_images(3, seed=1)
    shown = torch.cat(list(Views([images, others], [others], "cpu")))
    assert torch.equal(shown, torch.cat([images, others, others.flip(-1)]))
    assert not Views([], [], "cpu")


def test_targets_of_a_student_in_half_precision_are_close_and_else_the_same(vgg_teacher):
    images = some_images(6)
    pixels = vgg_teacher.preprocessing(images)
    exact = vgg_teacher(pixels)
    for plain, target in zip(exact, vgg_teacher.targets(pixels), strict=True):
        assert torch.equal(plain, target)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = vgg_teacher.targets(pixels)
        again = vgg_teacher(pixels)
        remembered = cache_features(vgg_teacher, [images]).targets(pixels)
    for plain, target, call, recalled in zip(exact, rounded, again, remembered, strict=True):
        assert torch.equal(plain, call)
        torch.testing.assert_close(plain, recalled)
        error = 1 - torch.nn.functional.cosine_similarity(plain.flatten(1), target.float().flatten(1))
        assert 1e-8 < error.max() < 1e-3


def test_what_was_remembered_is_let_go_with_the_run(vgg_teacher, tiny_task, tmp_path, monkeypatch):
    """Several students in one process, as in a sweep, must not add up what their teachers remember."""
    import gc
    import weakref

    from kdad.networks.recipes import Recipe
    from kdad.training import distillation

    kept = []

    def watched(teacher, views):
        cached = cache_features(teacher, views)
        kept.append(weakref.ref(cached.caches[0].layers[0]))
        return cached

    monkeypatch.setattr(distillation, "cache_features", watched)
    gc.disable()
    try:
        distillation.train_student(tiny_task, vgg_teacher, tmp_path, recipe=Recipe(epochs=1), device="cpu")
    finally:
        gc.enable()
    assert len(kept) == 1 and kept[0]() is None
