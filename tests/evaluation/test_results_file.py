"""The results file: entries merge, stay whole, and become lines beside the published ones."""

import json

import pytest

from kdad.evaluation.published import REFERENCES
from kdad.evaluation.results_file import (
    Figure,
    cell,
    images_of,
    lines,
    load_results,
    merge_entry,
    provenance_of,
)
from kdad.scores import SELECTION_CLASSES


@pytest.fixture
def file(tmp_path):
    return tmp_path / "deep" / "results.json"


def names(found) -> list[str]:
    return [line.name for line in found]


def test_no_file_is_no_entry(file):
    assert load_results(file) == {}


def test_a_rerun_replaces_its_entry_and_keeps_the_others(file, entry):
    merge_entry(file, entry("vgg-cifar10", 0.9))
    merge_entry(file, entry("vit-cifar10", 0.8))
    merge_entry(file, entry("vgg-cifar10", 0.95))
    entries = load_results(file)
    assert {key: value["mean"]["auroc"] for key, value in entries.items()} == {
        "cifar10/vgg-cifar10": 0.95,
        "cifar10/vit-cifar10": 0.8,
    }
    assert [path.name for path in file.parent.iterdir()] == ["results.json"]


@pytest.mark.parametrize(("sha256", "kept"), [("abc", True), ("another", False)])
def test_baselines_stay_as_long_as_their_teacher_does(file, entry, sha256, kept):
    baselines = {"nearest neighbours": {"classes": {"cat": 0.8}, "mean": 0.8}}
    merge_entry(file, entry(baselines=baselines))
    merge_entry(file, entry(teacher_sha256=sha256))
    assert ("baselines" in load_results(file)["cifar10/vgg-cifar10"]) is kept


def test_baselines_measured_anew_replace_the_old(file, entry):
    for value in (0.8, 0.9):
        merge_entry(file, entry(baselines={"nearest neighbours": {"classes": {"cat": value}, "mean": value}}))
    assert load_results(file)["cifar10/vgg-cifar10"]["baselines"]["nearest neighbours"]["mean"] == 0.9


@pytest.mark.parametrize("lost", ["classes", "mean", "family", "hardware", "image_format"])
def test_an_entry_that_lacks_something_is_refused(file, entry, refusal, lost):
    merge_entry(file, entry())
    broken = json.loads(file.read_text())
    del broken["cifar10/vgg-cifar10"][lost]
    file.write_text(json.dumps(broken))
    assert "is no results file" in refusal(load_results, file)
    assert "is no results file" in refusal(merge_entry, file, entry())


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}'])
def test_a_damaged_file_is_refused(tmp_path, refusal, content):
    (tmp_path / "results.json").write_text(content)
    assert "is no results file" in refusal(load_results, tmp_path / "results.json")


def test_ours_come_with_their_baselines_before_the_published_lines(entry):
    baselines = {"nearest neighbours": {"classes": {"cat": 0.8}, "mean": 0.85}}
    found = lines({"a": entry(baselines=baselines), "b": entry(dataset="mnist")}, "cifar10", "auroc_mkd")
    published = [reference.name for reference in REFERENCES if reference.dataset == "cifar10"]
    assert names(found) == ["vgg-cifar10", "nearest neighbours on vgg-cifar10", *published]
    assert [str(line.mean) for line in found] == ["88.00 ± 0.40", "85.00", "87.18", "96.83", "98.30", "98.60", "96.20"]
    assert not [line for line in found[:2] if line.published]


def test_the_headline_leaves_out_the_classes_that_chose_the_score(entry):
    known = entry("vgg-cifar10", 0.9)
    known["classes"] = {
        name: {score: figures | {"values": [0.5, 0.5, 0.5]} for score, figures in scores.items()}
        if name in SELECTION_CLASSES
        else scores
        for name, scores in known["classes"].items()
    }
    (ours, *published) = lines({"a": known}, "cifar10", "auroc")
    assert str(ours.headline) == "90.00 ± 1.00"
    references = [reference for reference in REFERENCES if reference.dataset == "cifar10"]
    for line, reference in zip(published, references, strict=True):
        kept = [value for name, value in reference.classes.items() if name not in SELECTION_CLASSES]
        if not kept:  # no figure of a class is published
            assert line.headline is None
            continue
        assert line.headline.mean == pytest.approx(sum(kept) / len(kept) / 100)
    assert str(lines({"a": entry(dataset="mnist")}, "mnist", "auroc")[0].headline) == "90.00 ± 1.00"


def test_published_means_are_those_of_their_classes():
    for reference in (known for known in REFERENCES if known.classes):
        assert reference.mean == pytest.approx(sum(reference.classes.values()) / len(reference.classes), abs=0.005)


def test_the_square_has_one_cell_for_each_architecture_and_labels_seen(entry):
    entries = {name: entry(name) for name in ("vgg-cifar10", "vgg-lite0", "vit-cifar10")}
    found = {
        (family, seen): names(cell(entries, "cifar10", "auroc", family, seen))
        for family in ("vgg", "vit")
        for seen in (False, True)
    }
    assert found == {
        ("vgg", False): ["vgg-lite0", "VGG-16, published"],
        ("vgg", True): ["vgg-cifar10"],
        ("vit", False): ["Transformaly (ViT-B/16 of ImageNet-21k), published"],
        ("vit", True): ["vit-cifar10", "ViT-B/16, published"],
    }


def test_a_teacher_of_unknown_training_is_in_no_cell(entry):
    entries = {"a": entry(label_overlap="unknown")}
    assert not [
        line for seen in (True, False) for line in cell(entries, "cifar10", "auroc", "vgg", seen) if not line.published
    ]


@pytest.mark.parametrize(("figure", "text"), [(Figure(0.91234), "91.23"), (Figure(0.5, 0.0051), "50.00 ± 0.51")])
def test_figures_are_in_per_cent(figure, text):
    assert str(figure) == text


def test_seeds_and_lossy_images_are_said(entry):
    assert "seed 0;" in provenance_of(entry(seeds=1))
    assert "mean of seeds 0 to 2;" in provenance_of(entry())
    assert images_of(entry()) == ""
    assert "re-encoded as JPEG" in images_of(entry(image_format="JPEG"))
