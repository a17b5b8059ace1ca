"""Training images in a file instead of in memory: the same images, and a full disk is told at once."""

import errno

import pytest
import torch
from PIL import Image

from kdad.data import memmap
from kdad.data.folders import FolderTask
from kdad.data.memmap import memmap_stack
from kdad.data.preprocessing import Preprocessing
from kdad.errors import UserError

SMALL = Preprocessing(32, 32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def some_images(n):
    return list(torch.randint(0, 256, (n, 3, 5, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8))


@pytest.mark.parametrize("large", [0, 2**40], ids=["in a file", "in memory"])
def test_a_stack_holds_its_images_and_can_be_indexed_and_written(monkeypatch, tmp_path, large):
    monkeypatch.setattr(memmap, "LARGE", large)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    images = some_images(7)
    stacked = memmap_stack(iter(images), (7, 3, 5, 5))
    assert torch.equal(stacked, torch.stack(images))
    assert torch.equal(stacked[torch.tensor([6, 0])], torch.stack([images[6], images[0]]))
    assert not list(tmp_path.iterdir()), "the file has no name"


@pytest.mark.parametrize("count", [6, 8])
def test_another_number_of_images_is_an_error(count):
    with pytest.raises(ValueError):
        memmap_stack(some_images(count), (7, 3, 5, 5))


def test_a_disk_without_room_is_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr(memmap, "LARGE", 0)
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(memmap.os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match=r"no room for .* GiB .*No space left.*set TMPDIR"):
        memmap_stack(some_images(2), (2, 3, 5, 5))


def test_a_folder_that_leaves_memory_is_the_same_task(monkeypatch, tmp_path):
    for index in range(12):
        Image.new("RGB", (40, 50), (20 * index, index, 0)).save(tmp_path / f"{index}.png")
    in_memory, in_file = FolderTask(tmp_path, SMALL), FolderTask(tmp_path, SMALL)
    expected = in_memory.train, in_memory.validation.images
    monkeypatch.setattr(memmap, "LARGE", 0)
    for one, other in zip(expected, (in_file.train, in_file.validation.images), strict=True):
        assert torch.equal(one, other)
