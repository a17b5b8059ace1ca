"""The compact ViT is transformers' own, on disk and by what it computes, without needing it."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from helpers.miniatures import PREPROCESSING
from safetensors.torch import load_file, save_file

from kdad.errors import UserError
from kdad.networks.compact_vit import CompactViT
from kdad.networks.vgg import CompactVGG


@pytest.fixture(scope="module")
def compact_vit():
    torch.manual_seed(0)
    return CompactViT(5).eval()


@pytest.fixture(scope="module")
def compact_folder(compact_vit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compact-vit")
    compact_vit.save(folder, PREPROCESSING)
    return folder


def test_saved_compact_vit_loads_equal_to_half_precision(compact_vit, compact_folder):
    loaded = CompactViT.load(compact_folder)
    assert not loaded.training
    for name, tensor in compact_vit.state_dict().items():
        assert tensor.dtype == torch.float32, "saving must not change the model in memory"
        assert torch.equal(loaded.state_dict()[name], tensor.half().float()), name


def test_a_folder_of_an_older_version_names_all_classes(compact_vit, compact_folder, tmp_path):
    folder = shutil.copytree(compact_folder, tmp_path / "older")
    config = json.loads((folder / "config.json").read_text())
    labels = {str(index): f"LABEL_{index}" for index in range(config.pop("num_labels"))}
    (folder / "config.json").write_text(json.dumps(config | {"id2label": labels}))
    assert CompactViT.load(folder).head.weight.shape == compact_vit.head.weight.shape


def test_saved_compact_vit_is_a_plain_transformers_folder(compact_vit, compact_folder):
    from transformers import ViTForImageClassification, ViTImageProcessor

    plain = ViTForImageClassification.from_pretrained(compact_folder).float().eval()
    pixels = torch.randn(3, 3, 32, 32)
    loaded = CompactViT.load(compact_folder)
    with torch.no_grad():
        found = plain(pixels, output_hidden_states=True)
        torch.testing.assert_close(found.logits, loaded(pixels), atol=1e-4, rtol=1e-4)
        for state, ours in zip(found.hidden_states[3::3], loaded.stack(pixels), strict=True):
            torch.testing.assert_close(state, ours, atol=1e-4, rtol=1e-4)
        plain.set_attn_implementation("eager")
        theirs, ours = plain(pixels, output_attentions=True).attentions, loaded.stack.attentions(pixels)
        torch.testing.assert_close(list(theirs), ours, atol=1e-4, rtol=1e-4)
    processor = ViTImageProcessor.from_pretrained(compact_folder)
    assert tuple(processor.image_mean) == PREPROCESSING.mean
    assert (processor.size["height"], processor.size["width"]) == (32, 32)
    assert {file.name for file in compact_folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }


def test_compact_vit_fits_the_budget_and_is_twelve_blocks_at_patch_four(compact_vit):
    assert sum(p.numel() for p in compact_vit.parameters()) <= 4_000_000
    assert (len(compact_vit.stack.blocks), compact_vit.stack.patch, compact_vit.stack.size) == (12, 4, 32)


def test_compact_vit_hands_out_its_maps_and_its_logits(compact_vit):
    with torch.no_grad():
        pixels = torch.randn(2, 3, 32, 32)
        maps, logits = compact_vit.maps_and_logits(pixels, torch.arange(16).expand(2, -1))
        assert [patches.shape for patches in maps] == [(2, 64, 192), (2, 16, 192)]
        last = compact_vit.stack(pixels)[-1]
        corner = last[:, [1, 2, 9, 10]].mean(1)  # the 2×2 patches in the upper left
        torch.testing.assert_close(maps[1][:, 0], corner)
        torch.testing.assert_close(logits, compact_vit(pixels))


def test_squares_that_are_not_kept_are_not_looked_at(compact_vit):
    kept, pixels = torch.tensor([[5, 2]]), torch.randn(1, 3, 32, 32)
    other = torch.randn_like(pixels)
    for row, column in ((1, 1), (0, 2)):  # squares 5 and 2 of 4×4, eight pixels a side
        place = (..., slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
        other[place] = pixels[place]
    with torch.no_grad():
        (patches, squares), logits = compact_vit.maps_and_logits(pixels, kept)
        again = compact_vit.maps_and_logits(other, kept)
    assert patches.shape == (1, 8, 192) and squares.shape == (1, 2, 192)
    torch.testing.assert_close(([patches, squares], logits), again)


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def drop_the_head(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop("classifier.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGE = {
    "truncated weights": truncate,
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "a missing tensor": drop_the_head,
    "no config": lambda folder: (folder / "config.json").unlink(),
    "another architecture": lambda folder: CompactVGG(5).save(folder, PREPROCESSING),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_compact_vit_is_one_clear_line(damage, compact_folder, tmp_path):
    for file in compact_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path)
    with pytest.raises(UserError, match="no compact ViT") as error:
        CompactViT.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_compact_vit_skips_branches_of_some_images_in_training_alone():
    model = CompactViT(2, drop_path=0.9)
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).expand(8, -1, -1, -1)
    torch.manual_seed(0)
    trained, judged = model.train()(image), model.eval()(image)
    assert (trained - trained[0]).abs().max() > 1e-3
    torch.testing.assert_close(judged, judged[:1].expand(8, -1))
    plain = CompactViT(2).train()(image)
    torch.testing.assert_close(plain, plain[:1].expand(8, -1))


@pytest.mark.slow
def test_a_compact_vit_is_read_without_transformers_or_torchvision(compact_folder):
    code = (
        "import sys; from pathlib import Path; from kdad.networks.compact_vit import CompactViT;"
        f"CompactViT.load(Path({str(compact_folder)!r}));"
        "print(sorted({'transformers', 'torchvision', 'timm'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
