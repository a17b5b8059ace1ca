"""Teaching compact teachers what a guide sees, on sixty images."""

import json

import numpy as np
import pytest
import torch
from helpers.miniatures import Crash
from helpers.tiny_source import TinySource, interrupted_and_whole, taught

from kdad.data.task import holdout_split
from kdad.errors import UserError
from kdad.networks.compact_vit import CompactViT
from kdad.networks.features import in_squares
from kdad.networks.teachers.loading import load_teacher
from kdad.networks.vgg import CompactVGG
from kdad.training.pretraining import guide_features, pretrain
from kdad.training.pretraining.classification import SQUARES
from kdad.training.pretraining.guide_features import Guide, Whitening, resized
from kdad.training.pretraining.unlabelled import UnlabelledDistillation, mirrored_views

LITE0 = "lite0-imagenet"

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def source(monkeypatch, tmp_path):
    tiny = TinySource()
    monkeypatch.setattr(pretrain, "load_source", lambda _: tiny)
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path / "cache"))
    return tiny


@pytest.fixture(scope="module")
def guide():
    return Guide(load_teacher(LITE0, image_size=64))


@pytest.fixture
def known_features(monkeypatch, tmp_path_factory):
    """What the guide sees, computed by the first test that asks for it."""
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path_factory.getbasetemp() / "guide-features"))


def seen(guide, source):
    return guide_features.guide_features(guide, source, torch.arange(60))


def only_folder(tmp_path):
    (folder,) = (tmp_path / "cache" / "guides").iterdir()
    return folder


@pytest.mark.parametrize(("backbone", "family"), [("vgg", CompactVGG), ("vit", CompactViT)])
def test_a_network_taught_without_labels_loads_as_a_teacher(
    tmp_path, source, backbone, family, monkeypatch, known_features
):
    monkeypatch.setattr(TinySource, "labels", unread(TinySource.labels))
    card = taught(backbone, tmp_path / "mine", distil_from=LITE0)
    teacher = load_teacher(str(tmp_path / "mine"))
    assert teacher.trained_on == ("imagenet-1k",)
    assert family.load(tmp_path / "mine").head.out_features == 1000
    assert {part for part, _ in source.asked} == {"train"}  # nothing is read from the test part
    assert (card["images"], card["classes"], card["distil_from"]) == ("patterns", [], LITE0)
    assert set(card["agreement"]) == {"validation"} and "accuracy" not in card
    words = (tmp_path / "mine" / "README.md").read_text()
    assert "patterns, without labels; those of imagenet-1k reached it through lite0-imagenet" in words
    assert "Trained from scratch, copying features and soft answers of lite0-imagenet." in words


def test_a_network_that_knew_labels_says_so_when_it_is_taught_on_without(tmp_path, known_features):
    taught("vgg", tmp_path / "first")
    card = taught("vgg", tmp_path / "mine", start_from=str(tmp_path / "first"), distil_from=LITE0)
    assert card["trained_on"] == ["imagenet-1k", "patterns"]
    words = (tmp_path / "mine" / "README.md").read_text()
    assert "of imagenet-1k, patterns reached it through lite0-imagenet and the weights that it started from." in words


def unread(labels):
    """`labels` of which nothing but their number can be read."""

    class Number:
        def __init__(self, values):
            self.values = values

        def __len__(self):
            return len(self.values)

    return lambda source, part: Number(labels(source, part))


@pytest.mark.parametrize("backbone", ["vgg", "vit"])
def test_the_held_out_tenth_is_not_copied_from(tmp_path, monkeypatch, backbone, known_features):
    shown, step = [], UnlabelledDistillation.training_step

    def watched(module, batch, index):
        shown.append(module.images[batch[0]])
        return step(module, batch, index)

    monkeypatch.setattr(UnlabelledDistillation, "training_step", watched)
    taught(backbone, tmp_path / "mine", distil_from=LITE0)
    kept, _ = holdout_split(60)
    fitted = {image.numpy().tobytes() for image in torch.cat(shown)}
    assert fitted == {image.numpy().tobytes() for image in TinySource().images("train", kept)}


def test_a_vit_is_shown_whole_images_in_the_last_epoch(tmp_path, monkeypatch, known_features):
    shown, squares = [], UnlabelledDistillation._squares

    def watched(module, n, device):
        chosen = squares(module, n, device)
        shown.append(chosen.shape[1])
        return chosen

    monkeypatch.setattr(UnlabelledDistillation, "_squares", watched)
    taught("vit", tmp_path / "mine", distil_from=LITE0, epochs=3)
    assert shown == [6, 6, 16]


def test_a_guide_gives_the_grids_of_compact_networks_and_its_own_logits(guide, source):
    images = source.images("train", torch.arange(3))
    maps, logits = guide(images)
    assert [tuple(layer.shape) for layer in maps] == [(3, 64, 112), (3, 16, 512)]
    with torch.no_grad():
        torch.testing.assert_close(logits, guide.model(guide.teacher.preprocessing(images)))


def test_resizing_keeps_where_things_are():
    patches = torch.arange(25.0).view(1, 25, 1)
    assert torch.equal(resized(patches, (5, 5), 5), patches)
    smaller = resized(patches, (5, 5), 4)[0, :, 0].view(4, 4)
    assert (smaller.diff(dim=0) > smaller.diff(dim=1).max()).all()  # rows count by five, columns by one


def test_whitened_components_are_uncorrelated_and_of_variance_one():
    torch.manual_seed(0)
    patches = torch.randn(500, 6) @ torch.randn(6, 6) + 3
    whitened = Whitening.fit(patches, 4)(patches)
    torch.testing.assert_close(torch.cov(whitened.T), torch.eye(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(whitened.mean(0), torch.zeros(4), atol=1e-4, rtol=0)


def test_rows_hold_what_the_guide_sees(tmp_path, guide, source):
    features = seen(guide, source)
    places = torch.tensor([7, 3])
    maps, logits = guide(source.images("train", places))
    remembered = features[places]
    folder = only_folder(tmp_path)
    for layer, whitening, kept in zip(maps, guide_features._whitenings(folder), remembered.maps, strict=True):
        torch.testing.assert_close(kept.float(), whitening(layer), atol=2e-2, rtol=2e-3)
    torch.testing.assert_close(remembered.logits.float(), logits, atol=2e-2, rtol=2e-3)
    assert {file.name for file in folder.iterdir()} == {"features.npy", "components.safetensors", "record.json"}


def test_what_was_seen_is_not_looked_at_again(tmp_path, monkeypatch, guide, source, capsys):
    first = np.array(seen(guide, source).rows)
    assert f"guide features of 60 pictures: 0.00 GB in {only_folder(tmp_path)}" in capsys.readouterr().err
    monkeypatch.setattr(Guide, "__call__", None)
    assert np.array_equal(seen(guide, source).rows, first)


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_file_is_computed_anew(tmp_path, guide, source, damage):
    first = np.array(seen(guide, source).rows)
    file = only_folder(tmp_path) / "features.npy"
    content = bytearray(file.read_bytes())
    file.write_bytes(content[:-10] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    assert np.array_equal(seen(guide, source).rows, first)


def test_other_pictures_or_another_size_have_a_file_of_their_own(tmp_path, monkeypatch, guide, source):
    seen(guide, source)
    seen(Guide(load_teacher(LITE0, image_size=96)), source)
    monkeypatch.setattr(TinySource, "fingerprint", lambda source, part: "another")
    seen(guide, source)
    assert len(list((tmp_path / "cache" / "guides").iterdir())) == 3


def test_looking_goes_on_where_it_was_interrupted(tmp_path, monkeypatch, guide, source):
    whole = np.array(seen(guide, source).rows)
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(guide_features, "CHUNK", 20)
    rows, asked = guide_features._rows, []

    def interrupted(*arguments):
        asked.append(arguments[-1].tolist())
        if len(asked) == 2:
            raise Crash
        return rows(*arguments)

    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(guide_features, "_rows", interrupted)
        seen(guide, source)
    monkeypatch.setattr(
        guide_features, "_rows", lambda *arguments: (asked.append(arguments[-1].tolist()), rows(*arguments))[1]
    )
    assert np.allclose(seen(guide, source).rows, whole, atol=1e-2)
    assert [chunk[0] for chunk in asked] == [0, 20, 20, 40]


def test_a_mirrored_picture_has_mirrored_maps():
    fine, coarse = torch.arange(2 * 64.0).view(2, 64, 1), torch.arange(2 * 16.0).view(2, 16, 1)
    view = mirrored_views(guide_features.GuideView([fine, coarse], torch.zeros(2, 5)), torch.tensor([True, False]))
    assert view.maps[0][0, :8, 0].tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert view.maps[1][0, 4:8, 0].tolist() == [7, 6, 5, 4]
    assert torch.equal(view.maps[1][1], coarse[1])
    assert [layer.shape for layer in in_squares(view.maps, SQUARES.expand(2, -1))] == [fine.shape, coarse.shape]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"distil_from": LITE0, "image_sizes": [16, 32]}, "leave out --image-sizes"),
        ({"distil_from": "timm:no_such_model"}, "timm has no model"),
    ],
)
def test_guides_and_sizes_that_do_not_fit_are_refused(tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        taught("vgg", tmp_path / "mine", **options)
    assert not (tmp_path / "mine").exists() and not (tmp_path / "cache").exists()


def test_a_guide_needs_a_classifier_and_room(tmp_path, monkeypatch, guide, source, vit_teacher):
    with pytest.raises(UserError, match="cannot guide without labels: it is no CNN of timm"):
        Guide(vit_teacher)
    usage = guide_features.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(guide_features.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="set KDAD_CACHE to a folder on a larger disk"):
        seen(guide, source)


def test_what_is_left_of_another_file_is_no_beginning(tmp_path, guide, source):
    first = np.array(seen(guide, source).rows)
    folder = only_folder(tmp_path)
    (folder / "features.npy").replace(folder / "features.npy.part")
    (folder / "components.safetensors").unlink()
    assert np.array_equal(seen(guide, source).rows, first)


def test_two_runs_do_not_fill_one_file(tmp_path, monkeypatch, guide, source):
    def meanwhile(*_):
        with pytest.raises(UserError, match="is being filled by another run"):
            seen(guide, source)
        raise Crash

    monkeypatch.setattr(guide_features, "_compute", meanwhile)
    with pytest.raises(Crash):
        seen(guide, source)


def test_a_cache_that_cannot_be_written_is_a_mistake(tmp_path, monkeypatch, guide, source):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set KDAD_CACHE to a folder that can be written"):
        seen(guide, source)


@pytest.mark.parametrize("backbone", ["vgg", "vit"])
def test_an_interrupted_run_ends_as_an_unbroken_one(tmp_path, monkeypatch, backbone, known_features):
    options = {"distil_from": LITE0, "batch_size": 27}
    broken, whole = interrupted_and_whole(monkeypatch, UnlabelledDistillation, tmp_path, backbone, **options)
    assert broken["model.safetensors"] == whole["model.safetensors"]
    assert json.loads(broken["teacher.json"])["agreement"]
