"""The README's tables come from the results file, between two markers, and nowhere else."""

import json

import pytest

from benchmarks.tables import (
    DOCUMENTS,
    SECTIONS,
    between_markers,
    front,
    headline,
    install,
    main,
    markers,
    render,
    scale,
)
from kdad.evaluation.results_file import merge_entry
from kdad.networks.teachers.registry import WEIGHTS_FOLDER, shipped

BEGIN, END = markers("results")
WHERE_BEGIN, WHERE_END = markers("localisation")


@pytest.fixture
def files(tmp_path, entry):
    """A results file with one entry and a README with markers, as arguments."""
    merge_entry(
        tmp_path / "one_vs_rest.json", entry(baselines={"nearest neighbours": {"classes": {"cat": 0.8}, "mean": 0.8}})
    )
    first, then = markers("headline")
    others = "\n".join([*markers("teachers"), *markers("mnist")])
    (tmp_path / "README.md").write_text(
        f"# before\n\n{first}\nold\n{then}\n\n{others}\n\n{BEGIN}\nold 12.34\n{END}\n\nafter\n"
    )
    return ["--measured", str(tmp_path), "--documents", str(tmp_path / "README.md")]


def test_the_marked_part_of_the_readme_is_rewritten_and_the_rest_kept(files, tmp_path, capsys):
    main(files)
    text = (tmp_path / "README.md").read_text()
    first, _ = markers("headline")
    assert text.startswith(f"# before\n\n{first}\nMean test AUROC on CIFAR-10 one-vs-rest")
    assert f"\n{BEGIN}\n| students of |" in text
    assert text.endswith(f"{END}\n\nafter\n")
    assert "old 12.34" not in text
    assert text.split(BEGIN)[1].split(END)[0].strip() in capsys.readouterr().out
    main(files)
    assert (tmp_path / "README.md").read_text() == text


def test_the_caption_tells_of_the_data_set_at_hand(entry):
    text = render({"mnist/vgg-cifar10": entry(dataset="mnist")}, "mnist")
    assert "Deep SVDD, published: test split" in text
    assert "PANDA" not in text and "leave out cat and airplane" not in text
    assert "leave out cat and airplane" in render({"cifar10/vgg-cifar10": entry()})


USUAL = {"teacher": "lite0-imagenet", "device": "cpu"}


def test_localisation_has_a_place_of_its_own(files, tmp_path):
    names = ("auroc", "pixel_auroc", "pixel_auroc_without_good", "pro", "pro_without_good", "pixel_ap")
    row = {"teacher": "vgg-cifar10", "method": "patch", **dict.fromkeys(names, 0.9754), "images": 400, "ms": 2.14}
    rows = [row | {"hardware": hardware} for hardware in ("one CPU", "another CPU", "one CPU")]
    measured = {"dataset": "patterns-defects", "texture": "bricks", "seed": 0, "rows": rows}
    (tmp_path / "localisation.json").write_text(json.dumps(measured))
    with open(tmp_path / "README.md", "a") as readme:
        readme.write(f"{WHERE_BEGIN}\nold\n{WHERE_END}\nlast\n")
    main(files)
    text = (tmp_path / "README.md").read_text()
    assert "| vgg-cifar10 | patch | 97.5 | 97.5 | 97.5 | 97.5 | 97.5 | 97.5 | 400 | 2.1 |" in text
    assert "test split, half of the images with a defect, seed 0, another CPU; one CPU; per cent" in text
    assert text.endswith(f"{WHERE_END}\nlast\n") and "old" not in text.split(WHERE_BEGIN)[1]


def test_large_images_too(files, tmp_path):
    row = {"auroc": 1.0, "pixel_auroc": 0.9998, "pro": 0.999, "pixel_ap": 0.9, "train_s": 68.4, "ms_an_image": 1100.0}
    row |= {"hardware": "a CPU", "memory_gb": 3.21}
    looked_at = [("vgg-cifar10", 32, 128), ("lite0-imagenet", 256, 0)]
    counts = {"side": 1024, "defect": 20, "train_images": 24, "test_images": 20}
    measured = {
        "seed": 0, **counts,
        "rows": [{"teacher": teacher, "side": side, "tile": tile, **row} for teacher, side, tile in looked_at],
    }  # fmt: skip
    (tmp_path / "large_images.json").write_text(json.dumps(measured))
    begin, end = markers("large_images")
    with open(tmp_path / "README.md", "a") as readme:
        readme.write(f"{begin}\n{end}\n")
    main(files)
    text = (tmp_path / "README.md").read_text()
    assert "| vgg-cifar10 | tiles of 128 px | 100.0 | 100.0 | 99.9 | 90.0 | 68 | 1100 |" in text
    assert "| lite0-imagenet | whole images, read at 256 px | 100.0 | 100.0 | 99.9 | 90.0 | 68 | 1100 |" in text
    assert "Defects of 20 px in images of 1024 px, 24 normal images to train on, 20 to test" in text


def test_photographs_and_designs_too(files, tmp_path):
    row = {"dataset": "tiles", "source": "A. Maker", "auroc": 0.9514, "normals": 281, **USUAL}
    counts = {"n_normal": 96, "n_anomalous": 115, "seconds": 99, "hardware": "a CPU", "image_size": [320, 288]}
    more = {"found": 0.87, "false_alarms": 0.0104, "both_auroc_0.25": 0.95, "both_auroc_1": 0.9}
    student = {"dataset": "screws", "student_auroc": 0.6, "student_pixel_auroc": 0.98, "student_pro": 0.8, **more}
    rows = [row | counts, row | counts | student]
    (tmp_path / "photographs.json").write_text(json.dumps({"rows": rows}))
    peer = {"dataset": "screws", "method": "PaDiM", "auroc": 0.7, "pixel_auroc": 0.9, "pro": 0.8, "seconds": 9}
    (tmp_path / "peers.json").write_text(json.dumps({"rows": [peer | {"hardware": "a CPU"}]}))
    designs = {
        "dataset": "tiles", "source": "A. Maker", "teacher": "lite0-imagenet", "steps": 2, "batch": 3, "train": 4,
        "held_out": 5, "draws": 6, "hardware": "a CPU",
        "rows": [{"design": "one", "peak": 0.7}, {"design": "other", "peak": 0.6}],
    }  # fmt: skip
    (tmp_path / "student_designs.json").write_text(json.dumps(designs))
    with open(tmp_path / "README.md", "a") as readme:
        for name in ("photographs", "earned", "peers", "published_screw", "front", "student_designs"):
            readme.write("\n".join(markers(name)) + "\n")
    main(files)
    text = (tmp_path / "README.md").read_text()
    assert "| tiles (A. Maker) | 281 | 96 good, 115 with a defect | lite0-imagenet | 320×288 px | 95.1 | – |" in text
    assert "| – | – | 99 | a CPU |" in text and "| – | 87 of defects, 1.0 of good | 99 | a CPU |" in text
    assert "| screws | 95.1 | 60.0 / 98.0 / 80.0 | 95.0 | 90.0 |" in text
    assert "| kdad, default score | 95.1 (99 s) |" in text and "| PaDiM | 70.0 / 90.0 / 80.0 (9 s) |" in text
    assert "PatchCore 94.3 (ResNet-18) to 96.0 (WideResNet-50), EfficientAD 96.0 (S) to 97.5 (M)" in text
    assert "| CIFAR-10, one class against the rest, labels seen (`vgg-cifar10`) | 90.0 | – |" in text
    assert "| reading | one | other |" in text and "| peak | 70.0 | 60.0 |" in text


def test_the_front_table_has_ours_beside_theirs_as_run_and_as_published(entry):
    about = {"dataset": "mvtec-screw", "auroc": 0.97, "pixel_auroc": 0.99, "seconds": 72, **USUAL}
    peer = {"dataset": "mvtec-screw", "method": "PaDiM", "auroc": 0.842, "pixel_auroc": 0.962}
    others = [{"dataset": "elpv-mono"}, {"device": "cuda", "seconds": 9}, {"teacher": "vgg-cifar10"}]
    rows = [about | other for other in ({}, *others)]
    text = front({"cifar10/vgg-cifar10": entry()}, {"rows": rows}, {"rows": [peer]})
    assert text.count("| MVTec screw |") == 1
    padim = "84.2 / 96.2; published: 75.9 (ResNet-18) to 84.5 (WideResNet-50)"
    assert f"| MVTec screw | 97.0 / 99.0 | published: 94.3 (ResNet-18) to 96.0 (WideResNet-50) | {padim} |" in text
    assert "| 72 |" in text and "elpv" not in text and "61 of training |" in text
    assert "98.5 (Reverse Distillation) on screw, 98.6 on all classes of CIFAR-10 without its labels (MSAD)." in text


def test_what_many_take_follows_from_what_one_takes():
    several, one = "ten students on 1,000 images, `{}`", "a student of a CIFAR-10 class, `vgg-cifar10`"
    cpu = {several.format(name): {"baseline_seconds": 36} for name in ("vgg-cifar10", "vit-cifar10")}
    tiles = {"rows": [{"dataset": "magnetic-tile-blowholes", "normals": 381, "seconds": 36, **USUAL}]}
    text = scale({"cpu": cpu | {one: {"seconds": 90}}}, tiles, {"scored": {"rows": {"1,000": {"seconds": 36}}}})
    assert "| images of 32 px, `vgg-cifar10` | 3.6 ms |" in text
    assert "| 100 million images of 32 px, `vgg-cifar10` | 200 | 12 min |" in text
    assert "| photographs of 320 × 240, `lite0-imagenet` at 256 px | 36.0 ms |" in text
    assert "| 100 million photographs of 320 × 240, `lite0-imagenet` at 256 px | 2,000 | 2 h 0 min |" in text
    assert "| 10,000 students of 381 photographs, `lite0-imagenet` | 200 | 12 min |" in text


def test_what_an_installation_takes():
    row = {"megabytes": 2005, "seconds": 60, "python": "3.11.7", "torch": "2.13.0+cpu", "system": "Linux, x86_64"}
    assert "| small | 2,005 | 60 | 3.11.7 | 2.13.0+cpu | Linux, x86_64 |" in install({"small": row})


def test_every_section_has_its_place_in_one_document():
    texts = [place.read_text(encoding="utf-8") for place in DOCUMENTS]
    for name in SECTIONS:
        assert sum(text.count(markers(name)[0]) for text in texts) == 1, name


def test_what_regions_tell_and_what_each_protocol_would_have_chosen(files, tmp_path):
    about = {"method": "position Gaussians", "image_size": [320, 288], "seconds": 58, "hardware": "a CPU"}
    rows = [
        about | {"folder": "tiles", "auroc": 95.14},
        about | {"folder": "cells", "auroc": 88.0, "pixel_auroc": 91.0, "pro": 72.25},
        about
        | {"folder": "cells", "method": "neighbours", "auroc": 70.0, "pixel_auroc": 71.0, "pro": 72.0, "seconds": 61},
    ]
    folders = [
        {"folder": "tiles", "test": {"a": 90, "b": 80, "c": 85}, "pseudo": {"a": 60, "b": 60, "c": 90}},
        {"folder": "cells", "test": {"a": 70, "b": 95, "c": 75}, "pseudo": {"a": 70, "b": 60, "c": 65}},
    ]
    measured = {"rows": rows, "candidates": folders, "default": "a"}
    (tmp_path / "regions.json").write_text(json.dumps(measured))
    with open(tmp_path / "README.md", "a") as readme:
        for name in ("regions", "choice"):
            readme.write("\n".join(markers(name)) + "\n")
    main(files)
    text = (tmp_path / "README.md").read_text()
    assert "| method | tiles, 320×288 px | cells, 320×288 px |" in text
    assert "| position Gaussians | 95.1 | 88.0 / 91.0 / 72.2 |" in text
    assert "| neighbours | – | 70.0 / 71.0 / 72.0 |" in text
    assert "58 to 61 seconds in all, a CPU" in text
    assert "| tiles | b | 80.0 | 85.0 | 90.0 | 90.0 |" in text
    assert "| cells | a | 70.0 | 75.0 | 70.0 | 95.0 |" in text
    assert "| mean |  | **75.0** | **80.0** | **80.0** | **92.5** |" in text


def test_how_well_each_shipped_teacher_classifies_comes_from_its_card(files, tmp_path):
    main(files)
    begin, end = markers("teachers")
    table = (tmp_path / "README.md").read_text().split(begin)[1].split(end)[0]
    for name in shipped():
        card = json.loads((WEIGHTS_FOLDER / name / "teacher.json").read_text())
        accuracy = card.get("accuracy")  # none of what learned without labels
        validation, test = (f"{100 * accuracy[split]:.1f}" if accuracy else "–" for split in ("validation", "test"))
        assert f"| `{name}` | {validation} | {test} | {card['recipe']['epochs']} |" in table


def rows(tables: str, part: int) -> dict[str, dict[str, str]]:
    """The cells of each row of one of the tables, by its first cell and the column's head."""
    table = [part for part in tables.split("\n\n") if part.startswith("|")][part]
    heads, _, *lines = (line[2:-2].split(" | ") for line in table.splitlines())
    return {first: dict(zip(heads[1:], rest, strict=True)) for first, *rest in lines}


SUMMARY, SQUARE, CLASSES = range(3)


def test_every_figure_has_its_provenance(entry):
    text = render({"cifar10/vgg-cifar10": entry("vgg-cifar10", 0.951)})
    ours, published = (rows(text, SUMMARY)[name] for name in ("vgg-cifar10", "VGG-16, published"))
    scores = ("default score", "last layer alone", "published score")
    assert ours["labels of the anomalies"] == "seen (same)"
    assert [ours[score] for score in scores] == ["95.10 ± 1.00", "94.10 ± 1.00", "93.10 ± 1.00"]
    assert ours["all classes"] == "95.10 ± 0.40"
    assert ours["selection"].startswith("test split; mean of seeds 0 to 2; last epoch")
    assert ours["one student"] == "61 s (cpu, x86_64, 2 threads)"
    assert published["labels of the anomalies"] == "not seen (related)"
    assert [published[score] for score in scores] == ["–", "–", "88.03"]
    assert published["all classes"] == "87.18"
    assert published["selection"] == "test split; checked on the test set during training"
    for system, cat, mean in (
        ("vgg-cifar10", "95.10 ± 1.00", "**95.10 ± 0.40**"),
        ("VGG-16, published", "77.02", "**87.18**"),
        ("ViT-B/16, published", "93.55", "**96.83**"),
    ):
        row = rows(text, CLASSES)[system]
        assert (row["cat"], row["mean of all"]) == (cat, mean)


def test_a_teacher_of_two_data_sets_has_a_row_in_each_with_its_own_cost(entry):
    entries = {"a": entry(), "b": entry(dataset="mnist", seconds_per_student=7.0)}
    costs = [rows(render(entries, dataset), SUMMARY)["vgg-cifar10"]["one student"] for dataset in ("cifar10", "mnist")]
    assert costs == ["61 s (cpu, x86_64, 2 threads)", "7 s (cpu, x86_64, 2 threads)"]


def test_baselines_stand_beside_ours(entry):
    baselines = {"nearest neighbours": {"classes": {"cat": 0.93, "deer": 0.935}, "mean": 0.9325}}
    text = render({"a": entry(baselines=baselines)})
    row = rows(text, SUMMARY)["nearest neighbours on vgg-cifar10"]
    assert [row[name] for name in ("default score", "last layer alone", "published score")] == ["93.50", "–", "–"]
    row = rows(text, CLASSES)["nearest neighbours on vgg-cifar10"]
    assert (row["cat"], row["dog"]) == ("93.00", "–")


def test_the_square_says_what_is_not_measured(entry):
    found = rows(render({"cifar10/vit-cifar10": entry("vit-cifar10", 0.9)}), SQUARE)
    assert list(found["VGG"].values()) == ["not measured (vgg-lite0)", "not measured (vgg-cifar10)"]
    assert list(found["ViT"].values()) == ["not measured (vit-lite0)", "90.00 ± 1.00 (vit-cifar10)"]


def test_the_headline_keeps_seen_and_unseen_labels_apart(entry):
    entries = {f"cifar10/{name}": entry(name, auroc) for name, auroc in (("vgg-cifar10", 0.985), ("vgg-lite0", 0.871))}
    text = headline(entries)
    assert "**98.5 %** with a teacher that was trained on CIFAR-10 *with the labels" in text
    assert (
        "**87.1 %** with one that saw labels of related classes, none of CIFAR-10 (`vgg-lite0`, mean of seeds 0 to 2)"
        in text
    )
    assert "VGG-16, published: 88.03 %, labels not seen" in text


def test_what_each_side_of_the_square_changes(entry):
    entries = {f"cifar10/{name}": entry(name, auroc) for name, auroc in (("vgg-cifar10", 0.985), ("vgg-lite0", 0.871))}
    assert "- having seen the labels changes a VGG teacher's students by +11.40 points" in render(entries)
    assert "Like for like" not in render({"cifar10/vgg-cifar10": entry()})


def test_without_results_the_command_that_makes_them_is_named():
    assert "`python -m kdad sweep --dataset cifar10" in render({})


@pytest.mark.parametrize("text", ["no marker", f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}", BEGIN])
def test_a_readme_without_its_markers_is_refused(refusal, text):
    assert "the README, or another document, needs" in refusal(between_markers, text, "tables", "results")


def test_a_mistake_leaves_the_readme_alone(files, tmp_path, capsys):
    readme = (tmp_path / "README.md").read_text()
    (tmp_path / "one_vs_rest.json").write_text("{")
    with pytest.raises(SystemExit) as caught:
        main(files)
    assert caught.value.code == 2
    assert "is no results file" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == readme
