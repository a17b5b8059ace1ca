"""The inspect page: every control, every empty state, and the same score as everywhere else."""

import io
import re
import shutil
import zipfile

import numpy as np
import pytest
from helpers.miniatures import reseal
from helpers.page import control, rerun, texts
from PIL import Image

from kdad.data.decoding import read_image
from kdad.detection.detector import Detector
from kdad.storage.operating_point import Costs, OperatingPoint, save_operating_point
from ui.inspect import overview
from ui.shared.page import ROOT

INSPECT = "pages/2_Inspect.py"
DOTS, STRIPES = "patterns/tiny-vgg/dots", "patterns/tiny-vgg/stripes"


@pytest.fixture
def inspect(open_page):
    return lambda **arguments: open_page(INSPECT, **arguments)


def choose(at, label: str, value):
    """Set one of the buttons in a row (segmented control or pills) and run."""
    control(at, "button_group", label).set_value(value)
    return rerun(at)


def cards(at) -> list[str]:
    return [button.label for button in at.button if str(button.key).startswith("card-")]


def verdicts(at) -> list[str]:
    return re.findall(r"\[(?:\*\*)?(normal|anomaly)", "\n".join(caption.value for caption in at.caption))


def shares(at) -> list[str]:
    """How unusual each card says its image is or, of a student without calibration, its score."""
    return re.findall(r"\] ([\d.]+ %)|^score (-?\d+\.\d{3})$", "\n".join(caption.value for caption in at.caption), re.M)


def why(at) -> str:
    """What the page says made the score, part by part."""
    return next(caption.value for caption in at.caption if caption.value.startswith("Score "))


def reading(at) -> str:
    """p-value and score, and what a change did to it."""
    return next(caption.value for caption in at.caption if "p-value" in caption.value).replace("\\", "")


def exact_score(at) -> bytes:
    """The third chart, the image among held-out normals, with the score in all its digits."""
    return at.get("vega_lite_chart")[2].proto.SerializeToString(deterministic=True)


def heatmap_of(at) -> list[bytes]:
    """The data of the second chart: the picture under its heatmap, and the values of its cells."""
    return [dataset.data.data for dataset in at.get("vega_lite_chart")[1].proto.datasets]


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def upload(at, *files: tuple[str, bytes]):
    choose(at, "Images from", "Upload")
    at.file_uploader[0].set_value([(name, content, "image/png") for name, content in files])
    return rerun(at)


def copied(students_root, tmp_path, key: str = DOTS, **changes):
    """A root with one copy of a student whose config.json says `changes`."""
    shutil.copytree(students_root / key, tmp_path / key)
    reseal(tmp_path / key / "config.json", **changes)
    return tmp_path


def test_it_opens_with_samples_that_are_judged(inspect):
    at = inspect()
    assert cards(at)[:4] == ["normal 1", "normal 2", "normal 3", "scratch"]
    assert len(verdicts(at)) == len(cards(at)) == 9
    assert "normal dots images (fewer than 100: a rough estimate)." in texts(at)


def test_a_score_that_is_a_product_shows_its_factors(inspect):
    at = inspect()
    said = re.match(
        r"Score (\S+) = (\S+) \(a typical normal\) ([+−]) (\S+) \((.*?)\) ([+−]) (\S+) \((.*?)\)\.", why(at)
    )
    total, ordinary, sign, first, name, other_sign, second, other = said.groups()
    assert {name, other} == {"student's error", "teacher's distance"}
    parts = [float(value) * (1 if of == "+" else -1) for of, value in ((sign, first), (other_sign, second))]
    assert parts[0] >= parts[1]
    assert float(total) == pytest.approx(float(ordinary) + sum(parts), abs=0.03)
    titles = [f"**{title[0].upper()}{title[1:]}**" for title in (name, other)]
    shown = [caption.value.split(",")[0] for caption in at.caption]
    assert [caption for caption in shown if caption in titles] == titles


def test_only_cards_that_two_students_judge_differently_can_be_shown(inspect, monkeypatch):
    """The two are copies of one student: the second is made to let everything pass."""
    verdict = overview.verdict
    strict = DOTS.split("/")[-1]
    monkeypatch.setattr(
        overview, "verdict", lambda detector, *of: detector.folder.name == strict and verdict(detector, *of)
    )
    at = inspect(student=DOTS, compare=STRIPES, fpr="20 %")
    pairs = [caption.value for caption in at.caption if caption.value.count("**") == 4]
    differing = sum(len(set(re.findall(r"(normal|anomaly)", pair))) == 2 for pair in pairs)
    assert len(pairs) == 9
    assert 0 < differing < 9
    control(at, "button_group", "Show").set_value("Judged differently")
    assert len(cards(rerun(at))) == differing


def test_a_link_carries_the_whole_view(inspect):
    query = {
        "fpr": "20 %",
        "method": "patch",
        "layer": "2",
        "opacity": "10",
        "image": "scratch",
        "change": "Blur",
        "blur": "8",
    }
    at = inspect(student=STRIPES, **query)
    assert control(at, "select_slider", "False-positive rate").value == 0.2
    assert control(at, "selectbox", "Method").value == "patch"
    assert control(at, "button_group", "Critical layer").value == 2
    assert control(at, "slider", "Opacity").value == 10
    assert control(at, "slider", "Blur").value == 8
    assert "scratch · defect" in [heading.value for heading in at.subheader]


def test_a_curve_shows_what_more_of_a_change_would_do(inspect):
    at = choose(inspect(), "Change the image", "Noise")
    charts = len(at.get("vega_lite_chart"))
    control(at, "toggle", "Curve over strength").set_value(True)
    assert len(rerun(at).get("vega_lite_chart")) == charts + 1


def test_a_cold_link_chooses_the_students(inspect):
    at = inspect(student=STRIPES, compare=DOTS)
    assert control(at, "selectbox", "Student").value == STRIPES
    assert control(at, "multiselect", "Compare").value == [DOTS]


@pytest.mark.parametrize("link", ["nobody", "../../etc/passwd", "**bold**"])
def test_a_link_to_a_student_that_is_not_here_says_so(inspect, link):
    at = inspect(student=link)
    assert "cannot be chosen here" in at.warning[0].value
    assert control(at, "selectbox", "Student").value == DOTS


def test_two_students_judge_the_same_image_side_by_side(inspect):
    at = inspect()
    assert texts(at).count("p-value") == 1
    control(at, "multiselect", "Compare").set_value([STRIPES])
    rerun(at)
    assert texts(at).count("p-value") == 2
    assert "normal dots images" in texts(at)
    assert "normal stripes images" in texts(at)


def test_a_higher_false_positive_rate_never_calls_fewer_images_anomalous(inspect):
    at = inspect()
    rate = control(at, "select_slider", "False-positive rate")
    counts = []
    for value in (1 / 21, 0.05, 0.1, 0.2):
        rate.set_value(value)
        rerun(at)
        rate = control(at, "select_slider", "False-positive rate")
        counts.append(verdicts(at).count("anomaly"))
    assert counts == sorted(counts)
    assert rate.options[0] == "4.76 %"


def test_the_rate_is_said_with_its_uncertainty(inspect):
    assert "Set on 20 held-out normals: the true rate lies between" in texts(inspect())


def test_the_layer_changes_the_heatmap_and_never_the_score(inspect):
    at = inspect(method="patch")
    before, heatmap = shares(at), heatmap_of(at)
    choose(at, "Critical layer", 4)
    assert shares(at) == before
    assert heatmap_of(at) != heatmap


def test_per_image_contrast_says_what_it_costs(inspect):
    at = inspect()
    assert "cannot be compared" not in texts(at)
    control(at, "toggle", "Per-image contrast").set_value(True)
    heatmap = heatmap_of(at)
    assert "cannot be compared" in texts(rerun(at))
    assert heatmap_of(at) != heatmap


def test_opacity_changes_the_picture_alone(inspect):
    at = inspect()
    before, heatmap = shares(at), heatmap_of(at)
    control(at, "slider", "Opacity").set_value(0)
    assert shares(rerun(at)) == before
    assert heatmap_of(at) != heatmap


def test_a_card_opens_its_image(inspect):
    at = inspect()
    next(button for button in at.button if button.label == "normal 2").click()
    assert "normal 2 · normal" in [heading.value for heading in rerun(at).subheader]


def test_draw_others_changes_the_samples(inspect):
    at = inspect()
    before = shares(at)
    next(button for button in at.button if button.label == "Draw others").click()
    assert shares(rerun(at)) != before


def test_samples_of_another_texture_come_with_a_word_of_caution(inspect):
    at = inspect()
    assert not at.info
    control(at, "selectbox", "Sample images").set_value("rings")
    assert "should look unusual" in rerun(at).info[0].value


def test_each_change_to_the_image_shows_what_it_did_to_the_score(inspect):
    at = inspect()
    untouched, score = reading(at), exact_score(at)
    changes = {
        "Noise": ("Noise", "noise"),
        "Blur": ("Blur", "blurred"),
        "Rotate": ("Angle", "rotated"),
        "Erase": ("Size", "erased"),
        "Paste": ("Row", "a built-in texture"),
    }
    for change, (slider, words) in changes.items():
        choose(at, "Change the image", change)
        assert words in reading(at)
        before = exact_score(at)
        moved = control(at, "slider", slider)
        moved.set_value(moved.max)
        assert exact_score(rerun(at)) not in (before, score)
    assert reading(choose(at, "Change the image", "Nothing")) == untouched


def test_a_square_can_be_pasted_from_another_image(inspect):
    at = choose(inspect(), "Change the image", "Paste")
    control(at, "selectbox", "Paste from").set_value("normal 1")
    assert "a square of normal 1" in reading(rerun(at))


def test_all_students_of_a_teacher_are_ranked(inspect):
    at = inspect()
    control(at, "toggle", "Run all 2 students").set_value(True)
    assert re.search(r"is least unusual as \*\*(dots|stripes)\*\*", texts(rerun(at)))


def test_a_lone_student_cannot_be_ranked_and_the_page_says_how_to_get_more(inspect, students_root, tmp_path):
    at = inspect(root=copied(students_root, tmp_path))
    assert "only student" in texts(at)
    assert "python -m kdad sweep --dataset patterns" in at.code[0].value


def test_an_uploaded_image_scores_as_it_does_in_python(inspect, students_root):
    content = png(noise(40, 60))
    at = upload(inspect(student=DOTS), ("photo.png", content))
    detector = Detector.load(students_root / DOTS, device="cpu")
    expected = detector.predict(read_image(io.BytesIO(content), "photo")[None]).score[0]
    assert f"score {expected:.3f}" in reading(at)


def test_bad_files_are_named_beside_the_good_ones(inspect):
    at = inspect()
    at = upload(
        at, ("good.png", png(noise(8, 8))), ("broken.png", b"no image"), ("empty.png", b""),
        ("huge.png", bytes(21 * 2**20)), ("good.png", png(noise(300, 20))),
    )  # fmt: skip
    assert cards(at) == ["good.png", r"good.png \(2\)"]
    assert len(at.error) == 3
    for name, error in zip(("huge.png", "broken.png", "empty.png"), at.error, strict=True):
        assert error.value.startswith(name)
    assert "20 MB" in at.error[0].value


def test_nothing_uploaded_yet_says_what_to_do(inspect):
    at = choose(inspect(), "Images from", "Upload")
    assert "Drop one or more images" in at.info[0].value
    assert not at.metric


def test_a_photo_from_the_camera_is_judged(inspect):
    at = choose(inspect(), "Images from", "Camera")
    assert "Take a photo" in at.info[0].value
    at.get("camera_input")[0].set_value(("camera-input-1.jpg", png(noise(30, 40)), "image/jpeg"))
    assert len(verdicts(rerun(at))) == 1
    assert cards(at) == ["photo"]


def test_the_gallery_shows_test_images_of_any_class(inspect):
    at = choose(inspect(student=DOTS), "Images from", "Data set")
    assert cards(at)[0] == "dots 400"
    control(at, "selectbox", "Kind").set_value("rings")
    rerun(at)
    assert cards(at)[0] == "rings 600"
    assert len(cards(at)) == 12
    at.get("pagination")[0].set_value(17)
    assert cards(rerun(at))[-1] == "rings 799"


def test_the_gallery_of_a_data_set_that_is_not_here_says_so(inspect, students_root, tmp_path, monkeypatch):
    monkeypatch.setenv("KDAD_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    at = inspect(root=copied(students_root, tmp_path / "root", dataset="cifar10", normal_class="cat"))
    choose(at, "Images from", "Data set")
    assert "not on this machine" in at.info[0].value
    assert not at.metric


def test_a_student_without_calibration_scores_and_says_what_it_lacks(inspect, students_root, tmp_path):
    root = copied(students_root, tmp_path)
    (root / DOTS / "calibration.safetensors").unlink()
    at = inspect(root=root)
    assert len(shares(at)) == 9
    assert not verdicts(at)
    assert "not calibrated" in texts(at)
    assert f"python -m kdad evaluate {root / DOTS}" in [code.value for code in at.code]


def test_no_student_at_all_says_how_to_train_one(inspect, tmp_path):
    at = inspect(root=tmp_path)
    assert "No student" in at.info[0].value
    assert at.code[0].value.startswith("python -m kdad train")


def test_a_link_to_what_is_usual_wins_over_what_was_chosen_before(inspect):
    """Streamlit itself takes no parameter from a link that equals a widget's default."""
    at = inspect(student=STRIPES, source="Upload")
    assert control(at, "selectbox", "Student").value == STRIPES
    rerun(at.switch_page("pages/1_Train_or_load.py"))
    at.switch_page(INSPECT)
    at.query_params.update(student=DOTS, source="Samples")
    rerun(at)
    assert control(at, "selectbox", "Student").value == DOTS
    assert control(at, "button_group", "Images from").value == "Samples"
    control(at, "selectbox", "Student").set_value(STRIPES)
    assert control(rerun(at), "selectbox", "Student").value == STRIPES  # on the page itself, choices stay


def test_only_layers_that_all_students_have_can_be_chosen(inspect):
    one, other = (f"patterns-defects/{teacher}/bricks" for teacher in ("vgg-cifar10", "lite0-imagenet"))
    at = inspect(root=ROOT / "trained_students", student=one, method="patch", layer="4")
    assert control(at, "button_group", "Critical layer").value == 4
    control(at, "multiselect", "Compare with").set_value([other])
    assert len(control(rerun(at), "button_group", "Critical layer").options) == 4


def test_a_damaged_student_is_reported_and_the_others_work(inspect, students_root, tmp_path):
    shutil.copytree(students_root, tmp_path, dirs_exist_ok=True)
    (tmp_path / DOTS / "config.json").write_text("[]")
    at = inspect(root=tmp_path)
    assert DOTS.replace("-", r"\-") in at.warning[0].value
    assert len(verdicts(at)) == 9


def test_truncated_weights_are_one_clear_message(inspect, students_root, tmp_path):
    root = copied(students_root, tmp_path)
    weights = root / DOTS / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    at = inspect(root=root)
    assert "cannot be used" in at.error[0].value
    assert not at.metric


def test_other_methods_draw_another_map_and_say_what_it_means(inspect, monkeypatch):
    monkeypatch.setattr("kdad.detection.localisation.SAMPLES", 2)
    at = inspect()
    assert control(at, "selectbox", "Method").options == [
        "score",
        "patch",
        "gradients",
        "smoothgrad",
        "guided-backprop",
    ]
    usual = heatmap_of(at)
    for method in ("gradients", "smoothgrad", "guided-backprop"):
        control(at, "selectbox", "Method").set_value(method)
        assert heatmap_of(rerun(at)) != usual
        assert f"{method} has no unit:" in texts(at)
        assert control(at, "button_group", "Critical layer").disabled
    control(at, "selectbox", "Method").set_value("score")
    assert heatmap_of(rerun(at)) == usual


def test_outlines_show_what_is_found_and_what_is_true(inspect):
    at = inspect()
    plain = heatmap_of(at)
    control(at, "toggle", "Outlines").set_value(True)
    assert heatmap_of(rerun(at)) != plain


def decide(at, label: str):
    next(button for button in at.button if button.label == label).click()
    return rerun(at)


def test_pictures_are_accepted_and_rejected_one_after_another(inspect):
    at = inspect(image="normal 1")
    assert shown_in_detail(decide(at, "Accept")) == "normal 2"
    assert shown_in_detail(decide(at, "Reject")) == "normal 3"
    assert shown_in_detail(decide(at, "Previous")) == "normal 2"
    assert control(at, "button_group", "Show").options[-3:] == ["Open (7)", "Accepted (1)", "Rejected (1)"]
    control(at, "button_group", "Show").set_value("Rejected")
    assert cards(rerun(at)) == ["normal 2"]
    assert "Accepted (1)" in control(decide(at, "Undecide"), "button_group", "Show").options


def shown_in_detail(at) -> str:
    return next(heading.value for heading in at.subheader if " · " in heading.value).split(" · ")[0]


def test_the_most_unusual_can_come_first(inspect):
    at = inspect()
    before = cards(at)
    control(at, "toggle", "Most unusual first").set_value(True)
    ordered = [float(share) for share, _ in shares(rerun(at)) for share in [share.removesuffix(" %")]]
    assert ordered == sorted(ordered, reverse=True)
    assert sorted(cards(at)) == sorted(before)


def zipped(**images) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in images.items():
            archive.writestr(f"batch/{name}.png", content)
    return file.getvalue()


def test_a_zip_file_of_images_is_judged_and_what_cannot_be_read_is_named(inspect):
    at = upload(inspect(), ("mugs.zip", zipped(a=png(noise(8, 9)), b=b"no image", c=png(noise(30, 20)))))
    assert sorted(cards(at)) == ["a.png", "c.png"]
    assert len(at.error) == 1 and "b.png" in at.error[0].value


def test_many_uploads_are_shown_in_pages_the_most_unusual_first(inspect):
    images = {f"i{number:02}": png(noise(6, 6, number)) for number in range(30)}
    at = upload(inspect(), ("mugs.zip", zipped(**images)))
    assert len(cards(at)) == 24
    at.get("pagination")[0].set_value(2)
    assert len(cards(rerun(at))) == 6


@pytest.fixture
def place_root(place_student_folder, tmp_path):
    """A student that remembers normals, where the app looks for it."""
    shutil.copytree(place_student_folder, tmp_path / DOTS)
    return tmp_path


def test_accepted_false_alarms_are_learned_as_a_new_version(inspect, place_root):
    at = inspect(root=place_root, fpr="50 %", source="Upload")
    at = upload(at, ("glare.png", png(np.full((32, 32, 3), 255, np.uint8))), ("noise.png", png(noise(32, 32))))
    assert verdicts(at).count("anomaly") == 1
    decide(at, "Accept")
    decide(at, "Learn that this accepted image is normal")
    assert control(at, "selectbox", "Student").value == f"{DOTS}-v2"
    assert "1 image learned as normal" in texts(at).replace("\\", "")
    assert verdicts(at).count("anomaly") == 0
    assert (place_root / DOTS / "config.json").is_file()


def test_a_mask_makes_a_version_that_looks_at_a_region(inspect, place_root):
    at = inspect(root=place_root)
    mask = np.zeros((32, 32, 3), np.uint8)
    mask[:16] = 255
    next(widget for widget in at.file_uploader if widget.label.startswith("A mask")).set_value(
        [("mask.png", png(mask), "image/png")]
    )
    decide(rerun(at), "Look there alone")
    assert control(at, "selectbox", "Student").value == f"{DOTS}-v2"
    assert "50 % of the image is looked at" in texts(at).replace("\\", "")


def test_students_that_remember_no_normals_offer_no_revision(inspect):
    labels = [button.label for button in inspect().button]
    assert "Look there alone" not in labels


def test_the_operating_point_of_a_student_is_the_default_rate(inspect, students_root, tmp_path):
    shutil.copytree(students_root / DOTS, tmp_path / DOTS)
    digests = Detector.load(tmp_path / DOTS).config.weights_sha256, ""
    save_operating_point(tmp_path / DOTS, OperatingPoint(3 / 21, Costs(10, 1, 0.02), 0.9, 10, *digests))
    shutil.copytree(students_root / STRIPES, tmp_path / STRIPES)
    at = inspect(root=tmp_path, student=DOTS)
    assert control(at, "select_slider", "False-positive rate").value == 3 / 21
    control(at, "selectbox", "Student").set_value(STRIPES)
    assert control(rerun(at), "select_slider", "False-positive rate").value == 0.05
    linked = inspect(root=tmp_path, student=DOTS, fpr="20 %")
    assert control(linked, "select_slider", "False-positive rate").value == 0.2
