"""What must hold for any input, tried on many that nobody would think of."""

import json
import string
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from kdad.data.folder_layout import GOOD, FolderLayout
from kdad.data.images import images_below, is_hidden
from kdad.detection.detector import Detector
from kdad.errors import UserError
from kdad.evaluation import metrics
from kdad.storage import student_folder as store
from kdad.storage.layout import CONFIG
from kdad.storage.sealing import opened, sealed

settings.register_profile(
    "kdad",
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("kdad")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(["train", "test", "ground_truth", "good", "crack", "mask", "masks", ".hidden", "__MACOSX", "a"])
FILES = st.sampled_from(["0.png", "1.PNG", "0_mask.png", "._0.png", "notes.txt", "x.png", "broken.png"])
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F")


@pytest.fixture(scope="module")
def detector(student_folder, vgg_teacher):
    return Detector.load(student_folder, teacher=vgg_teacher, device="cpu")


def refused_in_one_line(error: UserError) -> bool:
    return len(str(error).splitlines()) == 1


# The parser of configurations


@given(values=JSON)
def test_any_json_is_refused_as_a_configuration(tmp_path, values):
    (tmp_path / CONFIG).write_text(json.dumps(values))
    with pytest.raises(UserError) as refusal:
        store.load_config(tmp_path)
    assert refused_in_one_line(refusal.value)


@given(data=st.data(), value=JSON)
def test_a_configuration_with_any_other_value_is_refused_or_says_just_that(student_folder, tmp_path, data, value):
    values = opened(json.loads((student_folder / CONFIG).read_text()))
    places = [values, *(inner for inner in values.values() if isinstance(inner, dict) and inner)]
    place = data.draw(st.sampled_from(places))
    place[data.draw(st.sampled_from(sorted(place)))] = value
    (tmp_path / CONFIG).write_text(json.dumps(sealed(values)))
    try:
        config = store.load_config(tmp_path)
    except UserError as error:
        assert refused_in_one_line(error)
    else:
        store.save_config(tmp_path, config)
        assert store.load_config(tmp_path) == config or value != value


@given(values=st.dictionaries(st.text(max_size=8), JSON, max_size=5))
def test_what_was_sealed_is_opened_as_it_was(values):
    values.pop("sha256", None)
    as_written = json.loads(json.dumps(sealed(values)))
    assert json.dumps(opened(as_written), sort_keys=True) == json.dumps(values, sort_keys=True)


# The walker of folders


def planted(root: Path, paths: list[tuple[list[str], str]]) -> None:
    """Small pictures in folders; what is called broken is none."""
    picture = Image.new("L", (3, 2), 200)
    for folders, name in paths:
        file = root.joinpath(*folders, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".txt") or name.startswith("broken"):
            file.write_text("no picture")
        else:
            picture.save(file)


@given(paths=st.lists(st.tuples(st.lists(NAMES, max_size=3), FILES), max_size=30), enough=st.booleans())
def test_in_any_folder_no_image_is_taken_for_two_things_and_nothing_hidden_for_any(paths, enough, capsys):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        planted(root, paths)
        if enough:
            planted(root, [(["train", "good"], f"n{index}.png") for index in range(10)])
        try:
            layout = FolderLayout(root)
            normals, tests = layout.normals, layout.tests
            layout.check_tests()
            layout.say_what_is_unused()
        except UserError as error:
            assert refused_in_one_line(error)
            return
        used = [*normals, *(file for files in tests.values() for file in files)]
        masks = [
            mask for kind, files in tests.items() if kind != GOOD for file in files for mask in layout.masks_of(file)
        ]
        assert len(set(used)) == len(used)
        assert not set(masks) & set(used)
        assert {*used, *masks} <= set(images_below(root))
        assert not any(is_hidden(part) for file in [*used, *masks] for part in file.relative_to(root).parts)
        assert not any(file.name == "broken.png" for file in used)


# Pixels to scores


@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)), mode=st.sampled_from(MODES), value=st.integers(0, 255),
    count=st.integers(1, 3),
)  # fmt: skip
def test_images_of_any_size_and_mode_have_finite_scores(detector, size, mode, value, count):
    images = [Image.new("L", size, value).convert(mode) for _ in range(count)]
    try:
        prediction = detector.predict(images)
    except UserError as error:  # deep images whose white is not clear
        assert mode in ("I;16", "I", "F") and "the value of white is unclear" in str(error)
        return
    assert prediction.heatmap.shape == (count, size[1], size[0])
    assert prediction.score.shape == prediction.p_value.shape == (count,)
    for values in (prediction.score, prediction.p_value, prediction.heatmap):
        assert np.isfinite(values).all()
    assert ((prediction.p_value > 0) & (prediction.p_value <= 1)).all()


@given(
    image=arrays.arrays(
        st.sampled_from([np.uint8, np.float32, np.float64, np.int64, np.bool_]),
        arrays.array_shapes(min_dims=0, max_dims=5, max_side=9),
    )
)
def test_any_array_is_judged_or_refused(detector, image):
    try:
        prediction = detector.predict(image)
    except UserError as error:
        assert refused_in_one_line(error)
    else:
        assert np.isfinite(prediction.score).all()


@given(text=st.text(string.printable, max_size=40))
def test_any_text_is_a_path_or_refused(detector, text):
    with pytest.raises(UserError) as refusal:
        detector.predict(text)
    assert refused_in_one_line(refusal.value)


# Figures


@st.composite
def scored(draw):
    """Scores with many ties, and which of them are anomalous, both kinds among them."""
    size = draw(st.integers(2, 60))
    scores = draw(arrays.arrays(np.float64, size, elements=st.integers(-5, 5).map(float) | st.floats(-1e9, 1e9)))
    anomalous = draw(arrays.arrays(np.bool_, size))
    anomalous[0], anomalous[-1] = True, False
    return scores, anomalous


@given(scored())
def test_auroc_is_scikit_learns_and_the_area_under_our_curve(pair):
    scores, anomalous = pair
    expected = roc_auc_score(anomalous, scores)
    assert metrics.auroc(scores, anomalous) == pytest.approx(expected)
    false_alarms, found, _ = metrics.roc_curve(scores, anomalous)
    assert np.trapezoid(found, false_alarms) == pytest.approx(expected)
    assert metrics.auroc(-scores, anomalous) == pytest.approx(1 - expected)


@given(scored(), st.integers(1, 3))
def test_pixel_figures_of_images_are_those_of_their_pixels(pair, rows):
    scores, anomalous = (np.tile(values, (rows, 1)) for values in pair)
    assert metrics.pixel_ranking([scores], [anomalous])[0] == pytest.approx(
        roc_auc_score(anomalous.ravel(), scores.ravel())
    )
    expected = average_precision_score(anomalous.ravel(), scores.ravel())
    assert metrics.pixel_ranking(list(scores[:, None]), list(anomalous[:, None]))[1] == pytest.approx(expected)


@given(scored())
def test_per_region_overlap_is_a_share_and_of_a_perfect_map_all(pair):
    scores, anomalous = (values[None] for values in pair)
    assert 0 <= metrics.pro([scores], [anomalous]) <= 1
    assert metrics.pro([anomalous.astype(float)], [anomalous]) == pytest.approx(1)
    assert torch.tensor(metrics.pixel_curves([scores], [anomalous])[2]).diff().min() >= -1e-12
