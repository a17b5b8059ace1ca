import io

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from kdad.data import patterns
from kdad.data.datasets import DATASETS, PARQUET, at_hand, class_names
from kdad.data.loading import load_task
from kdad.data.one_vs_rest import OneVsRestTask
from kdad.data.sources import image_format, load_source
from kdad.data.task import holdout_split
from kdad.errors import UserError


@pytest.fixture(autouse=True)
def fresh_sources(monkeypatch, tmp_path):
    """No source from another test, no $KDAD_DATA, and an empty Hub cache."""
    monkeypatch.delenv("KDAD_DATA", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    load_source.cache_clear()
    yield
    load_source.cache_clear()


def test_cifar10_is_split_by_the_published_formula():
    order = torch.randperm(50_000, generator=torch.Generator().manual_seed(42))
    train, held_out = holdout_split(50_000)
    assert torch.equal(train, order[:45_000])
    assert torch.equal(held_out, order[45_000:])


@pytest.mark.parametrize("n", [10, 99, 1001, 60_000])
def test_holdout_split_is_a_partition_into_ninety_and_ten_percent(n):
    train, held_out = holdout_split(n)
    assert len(held_out) == round(n / 10)
    assert sorted(torch.cat([train, held_out]).tolist()) == list(range(n))


class NumberedSource:
    """Each image holds its own index and part, so that a test can see where it went."""

    name, classes = "numbered", ("red", "green", "blue")
    sizes = {"train": 400, "test": 90}
    codes = {"train": 1, "test": 2}

    def labels(self, part: str) -> torch.Tensor:
        return torch.arange(self.sizes[part]) % 3

    def images(self, part: str, indices: torch.Tensor) -> torch.Tensor:
        numbers = torch.stack([indices // 256, indices % 256, torch.full_like(indices, self.codes[part])], 1)
        return numbers.to(torch.uint8)[:, :, None, None].expand(-1, -1, 4, 4)


def numbers(images: torch.Tensor, part: str) -> set[int]:
    """The indices of images that all come from `part`."""
    high, low, code = images[:, :, 0, 0].long().unbind(1)
    assert (code == NumberedSource.codes[part]).all()
    found = (high * 256 + low).tolist()
    assert len(set(found)) == len(found)
    return set(found)


def test_no_image_is_both_trained_on_and_held_out():
    task = OneVsRestTask(NumberedSource(), "green")
    train, calibration = numbers(task.train, "train"), numbers(task.calibration, "train")
    validation = numbers(task.validation.images, "train")
    assert not train & validation
    assert calibration < validation
    assert train | calibration == {i for i in range(400) if i % 3 == 1}
    assert validation == set(holdout_split(400)[1].tolist())


def test_the_test_part_is_the_whole_test_file():
    test = OneVsRestTask(NumberedSource(), "green").test
    assert numbers(test.images, "test") == set(range(90))
    assert test.masks is None


def test_labels_and_anomalies_belong_to_their_images():
    task = OneVsRestTask(NumberedSource(), "green")
    for part, images in (("train", task.validation), ("test", task.test)):
        labels = torch.tensor([i % 3 for i in sorted(numbers(images.images, part))])
        order = images.images[:, 0, 0, 0].long() * 256 + images.images[:, 1, 0, 0].long()
        assert torch.equal(images.labels, labels[order.argsort().argsort()])
        assert torch.equal(images.anomalous, images.labels != 1)


def test_every_normal_class_shares_the_split():
    parts = [
        numbers(OneVsRestTask(NumberedSource(), name).validation.images, "train") for name in NumberedSource.classes
    ]
    assert parts[0] == parts[1] == parts[2]


def test_a_task_describes_itself():
    task = OneVsRestTask(NumberedSource(), "blue")
    assert (task.dataset, task.normal_class, task.normal_index, task.classes) == (
        "numbered",
        "blue",
        2,
        ("red", "green", "blue"),
    )


def test_an_unknown_data_set_lists_the_valid_ones():
    for ask in (lambda: load_task("cifar", "cat"), lambda: class_names("cifar")):
        with pytest.raises(UserError, match="unknown data set 'cifar'") as error:
            ask()
        assert all(name in str(error.value) for name in DATASETS)


@pytest.mark.parametrize("dataset", DATASETS)
def test_an_unknown_class_lists_the_valid_ones_without_reading_the_data(dataset):
    with pytest.raises(UserError, match=r"unknown class of .*'zebra'") as error:
        load_task(dataset, "zebra")
    assert all(name in str(error.value) for name in class_names(dataset))


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_data_set_has_ten_classes_or_as_many_as_photographs_of_textures(dataset):
    assert len(set(class_names(dataset))) == (3 if dataset == "photo-textures" else 10)


@pytest.mark.parametrize("dataset", ["cifar10", "mnist", "fashion-mnist"])
def test_offline_the_error_is_one_line_naming_both_ways(dataset):
    with pytest.raises(UserError) as error:
        _ = load_task(dataset, class_names(dataset)[0]).train
    message = str(error.value)
    assert "\n" not in message
    assert PARQUET[dataset].repo in message and "network" in message
    assert f"$KDAD_DATA/{dataset}/{PARQUET[dataset].folder}/train-00000-of-00001.parquet" in message
    assert not at_hand(dataset)


def test_pretraining_data_are_on_no_hub():
    with pytest.raises(UserError, match=r"\$KDAD_DATA/tiny-imagenet-32/train-00000-of-00001\.parquet"):
        load_source("tiny-imagenet-32").labels("train")


def encode(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def write_parquet(root, dataset: str, part: str, images: list[bytes], labels: list[int]):
    """A file as the Hub has it: a struct column of bytes and path, and a column of labels."""
    layout = PARQUET[dataset]
    file = root / dataset / layout.folder / f"{part}-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    column = [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(images)]
    pyarrow.parquet.write_table(pyarrow.table({layout.image_column: column, "label": labels}), file, row_group_size=7)
    return file


def random_pixels(n: int, *shape: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8))


@pytest.fixture
def data_root(monkeypatch, tmp_path):
    monkeypatch.setenv("KDAD_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_a_local_cifar10_is_read_exactly(data_root):
    pixels = random_pixels(40, 32, 32, 3)
    labels = [3 + i % 2 for i in range(40)]
    for part in ("train", "test"):
        write_parquet(data_root, "cifar10", part, [encode(image) for image in pixels], labels)
    task = load_task("cifar10", "cat")
    expected = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    assert torch.equal(task.test.images, expected)
    assert task.test.labels.tolist() == labels
    assert task.test.anomalous.tolist() == [label != 3 for label in labels]
    train, held_out = holdout_split(40)
    assert torch.equal(task.train, expected[train[train % 2 == 0]])
    assert torch.equal(task.validation.images, expected[held_out])
    assert torch.equal(task.calibration, task.validation.images[~task.validation.anomalous])
    assert at_hand("cifar10")


def test_grey_images_become_rgb(data_root):
    pixels = random_pixels(20, 28, 28)
    write_parquet(data_root, "mnist", "test", [encode(image) for image in pixels], [i % 10 for i in range(20)])
    images = load_task("mnist", "7").test.images
    assert images.shape == (20, 3, 28, 28)
    assert all(torch.equal(images[:, channel], torch.from_numpy(np.stack(pixels))) for channel in range(3))


def test_the_test_part_of_the_pretraining_data_is_called_valid(data_root):
    write_parquet(data_root, "tiny-imagenet-32", "valid", [encode(p) for p in random_pixels(3, 32, 32, 3)], [0, 201, 7])
    source = load_source("tiny-imagenet-32")
    assert source.labels("test").tolist() == [0, 201, 7]
    assert source.images("test", torch.tensor([2, 0])).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_compression_of_a_data_set_is_known(data_root, kind):
    content = io.BytesIO()
    Image.fromarray(random_pixels(1, 32, 32, 3)[0]).save(content, kind)
    write_parquet(data_root, "cifar10", "test", [content.getvalue()], [0])
    assert image_format("cifar10") == kind
    assert image_format("patterns") is None


def test_a_source_is_read_once(data_root):
    assert load_source("cifar10") is load_source("cifar10")


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def flip_bytes(file):
    content = file.read_bytes()
    file.write_bytes(content[:40] + bytes(b ^ 0xFF for b in content[40:200]) + content[200:])


DAMAGE = {
    "truncated": truncate,
    "flipped bytes": flip_bytes,
    "zero-byte": lambda file: file.write_bytes(b""),
    "a web page": lambda file: file.write_text("<html>404</html>" * 100),
    "other columns": lambda file: pyarrow.parquet.write_table(pyarrow.table({"a": [1], "label": [0]}), file),
    "images that are no struct": lambda file: pyarrow.parquet.write_table(
        pyarrow.table({"img": [b"x"], "label": [0]}), file
    ),
    "an image that is none": lambda file: pyarrow.parquet.write_table(
        pyarrow.table({"img": [{"bytes": b"no image", "path": ""}] * 20, "label": list(range(10)) * 2}), file
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_one_line(data_root, damage):
    content = [encode(image) for image in random_pixels(20, 32, 32, 3)]
    damage(write_parquet(data_root, "cifar10", "test", content, list(range(10)) * 2))
    with pytest.raises(UserError, match="cifar10") as error:
        _ = load_task("cifar10", "cat").test
    assert "\n" not in str(error.value)


def test_defects_come_with_masks_and_only_in_the_test_part():
    task = load_task("patterns-defects", "bricks")
    test = task.test
    assert not task.validation.anomalous.any()
    assert torch.equal(task.validation.images, task.calibration)
    assert test.images.shape == (400, 3, 32, 32)
    masks = np.stack(test.masks)
    assert masks.shape == (400, 32, 32)
    assert masks.any((1, 2)).tolist() == test.anomalous.tolist()
    assert torch.equal(test.anomalous, test.labels > 0)
    assert test.labels.bincount().tolist() == [200, 50, 50, 50, 50]
    assert len(patterns.DEFECTS) == 4


def test_no_normal_of_the_defects_task_is_in_two_parts():
    task = load_task("patterns-defects", "bricks")
    normals = torch.cat([task.train, task.calibration, task.test.images[~task.test.anomalous]])
    assert len(task.train) == 1080
    assert len(task.calibration) == 200
    assert len(normals.flatten(1).unique(dim=0)) == len(normals)


def test_patterns_hold_twelve_hundred_training_images_of_each_class():
    source = load_source("patterns")
    assert source.labels("train").bincount().tolist() == [1200] * 10
    assert source.labels("test").bincount().tolist() == [200] * 10
    assert at_hand("patterns")


def test_patterns_are_served_in_the_order_of_their_labels():
    source = load_source("patterns")
    indices = torch.tensor([1999, 0, 450])
    images = source.images("test", indices)
    assert source.labels("test")[indices].tolist() == [9, 0, 2]
    for image, index in zip(images, indices.tolist(), strict=True):
        drawn = patterns.normals(patterns.CLASSES[index // 200], 200, seed=1)
        assert np.array_equal(image.numpy(), drawn[index % 200])
