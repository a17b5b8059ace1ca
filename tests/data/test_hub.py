"""A data set from a Hub."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdad.data.datasets import CIFAR10_CLASSES
from kdad.data.sources import load_source

CIFAR10 = "uoft-cs/cifar10"


def cifar_parquet(images: np.ndarray, labels: list[int]) -> bytes:
    """A parquet file in CIFAR-10's layout, holding images (N, 32, 32, 3) as PNG."""
    import pyarrow
    import pyarrow.parquet

    encoded = []
    for image in images:
        png = io.BytesIO()
        Image.fromarray(image).save(png, "PNG")
        encoded.append({"bytes": png.getvalue(), "path": None})
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"img": encoded, "label": labels}), file)
    return file.getvalue()


@pytest.fixture
def cifar():
    """Images (N, 32, 32, 3) and labels of a tiny CIFAR-10; the sources of other tests are forgotten."""
    load_source.cache_clear()
    yield np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), [i % 10 for i in range(20)]
    load_source.cache_clear()


def parquet_names() -> list[str]:
    return [f"plain_text/{part}-00000-of-00001.parquet" for part in ("train", "test")]


def test_cifar10_is_fetched_part_by_part(hub, cifar):
    images, labels = cifar
    train, test = parquet_names()
    hub.add(CIFAR10, {train: cifar_parquet(images, labels), test: cifar_parquet(images[:5], labels[:5])}, "datasets")
    source = load_source("cifar10")
    assert source.classes == CIFAR10_CLASSES
    assert source.labels("test").tolist() == labels[:5]
    assert not any(train in request for request in hub.requests if request.startswith("GET"))
    read = source.images("train", torch.tensor([7, 3]))
    assert np.array_equal(read.permute(0, 2, 3, 1).numpy(), images[[7, 3]])


def test_cifar10_on_disk_needs_no_hub(hub, cifar, tmp_path, monkeypatch):
    local = tmp_path / "data" / "cifar10" / parquet_names()[1]
    local.parent.mkdir(parents=True)
    local.write_bytes(cifar_parquet(*cifar))
    monkeypatch.setenv("KDAD_DATA", str(tmp_path / "data"))
    assert load_source("cifar10").labels("test").tolist() == cifar[1]
    assert not hub.requests


@pytest.mark.parametrize("damage", ["no repository", "no file", "cut off"])
def test_cifar10_that_cannot_be_fetched_says_both_ways_to_get_it(damage, hub, cifar, refusal):
    train, test = parquet_names()
    if damage != "no repository":
        hub.add(CIFAR10, {(train if damage == "no file" else test): cifar_parquet(*cifar)}, "datasets")
    if damage == "cut off":
        hub.cut_off.add(Path(test).name)
    message = refusal(load_source("cifar10").labels, "test")
    assert CIFAR10 in message
    assert f"$KDAD_DATA/cifar10/{test}" in message


def test_a_fetch_that_failed_is_tried_again(hub, cifar, refusal):
    hub.add(CIFAR10, {parquet_names()[1]: cifar_parquet(*cifar)}, "datasets")
    hub.cut_off.add(Path(parquet_names()[1]).name)
    refusal(load_source("cifar10").labels, "test")
    hub.cut_off.clear()
    assert load_source("cifar10").labels("test").tolist() == cifar[1]


def test_cifar10_without_a_network_gives_up_at_once(no_network, cifar, refusal):
    start = time.monotonic()
    assert "$KDAD_DATA/cifar10/" in refusal(load_source("cifar10").labels, "train")
    assert time.monotonic() - start < 5


def test_a_fetched_file_that_is_no_parquet_is_refused(hub, cifar, refusal):
    hub.add(CIFAR10, {parquet_names()[1]: b"<html>a login page</html>"}, "datasets")
    assert "not a readable parquet file" in refusal(load_source("cifar10").labels, "test")
