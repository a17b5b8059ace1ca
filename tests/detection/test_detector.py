"""Scores, p-values and heatmaps of a trained student, by the one path that all callers share."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.miniatures import save_vgg_teacher
from PIL import Image

from kdad.data import images
from kdad.data.folders import FolderTask
from kdad.detection.calibration import calibrate, fit_statistics
from kdad.detection.detector import Detector
from kdad.detection.discrepancy import layer_errors
from kdad.detection.explanation import explain
from kdad.detection.mahalanobis import Gaussian
from kdad.errors import UserError
from kdad.evaluation import metrics
from kdad.networks.recipes import Recipe
from kdad.networks.students import build_student
from kdad.networks.teachers.loading import load_teacher
from kdad.scores import DISTANT_ERROR, DISTANT_PEAK, LOCAL_DISTANCE, PEAK, last_layer_error
from kdad.storage import student_folder as store
from kdad.training.distillation import finish, train_student

PREDICTED, MEASURED = ("score", "p_value", "is_anomaly", "heatmap"), ("layer_scores", "layer_errors", "distance")


@pytest.fixture(scope="module")
def detector(student_folder, vgg_teacher):
    return Detector.load(student_folder, teacher=vgg_teacher, device="cpu")


@pytest.fixture
def pictures(tiny_task):
    return tiny_task.test.images[10:30]


def noise(*shape, seed=0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def arrays_of(prediction) -> dict[str, np.ndarray]:
    """Everything that a prediction says, and what it is read from."""
    predicted = {name: getattr(prediction, name) for name in PREDICTED}
    return predicted | {name: getattr(prediction.measurement, name) for name in MEASURED}


def assert_equal_predictions(one, other, tolerance=0.0):
    expected = arrays_of(other)
    for name, array in arrays_of(one).items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("score", [DISTANT_ERROR, DISTANT_PEAK, LOCAL_DISTANCE, PEAK])
def test_save_and_load_give_equal_scores(tmp_path, student_folder, tiny_task, vgg_teacher, pictures, score):
    config = replace(store.load_config(student_folder), score=score)
    torch.manual_seed(3)
    student = build_student(config.architecture)
    store.round_to_half(student.eval())
    fitted = fit_statistics(student, vgg_teacher, tiny_task, score)
    held_out = [(fitted, tiny_task.calibration)]
    finish(tmp_path, config, fitted, vgg_teacher, held_out, tiny_task.train)
    store.save_local(tmp_path, config.dataset, vgg_teacher.name)
    calibration = calibrate(fitted, vgg_teacher, held_out, tiny_task.train, config.score, config.tile_size)
    in_memory = Detector(config, student, vgg_teacher, calibration)
    reloaded = Detector.load(tmp_path, device="cpu")
    assert_equal_predictions(reloaded.predict(pictures), in_memory.predict(pictures))


def test_prediction_shapes_and_types(detector):
    prediction = detector.predict(noise(5, 3, 20, 30))
    assert len(prediction) == 5
    arrays = arrays_of(prediction)
    shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes == {
        "score": (5,),
        "p_value": (5,),
        "is_anomaly": (5,),
        "heatmap": (5, 20, 30),
        "layer_scores": (5, 4),
        "layer_errors": (5, 4, 2),
        "distance": (5,),
    }
    assert all(array.dtype == (bool if name == "is_anomaly" else np.float32) for name, array in arrays.items())


def test_the_score_is_read_from_the_error_table_and_the_distance(detector, vgg_teacher, tiny_task, pictures):
    pixels = vgg_teacher.preprocessing(pictures)
    with torch.no_grad():
        errors = layer_errors(detector.student(pixels), vgg_teacher(pixels))
        train = vgg_teacher(vgg_teacher.preprocessing(tiny_task.train))
        distance = Gaussian.fit([vgg_teacher.network.summary(train)]).distance(
            vgg_teacher.network.summary(vgg_teacher(pixels))
        )
    prediction = detector.predict(pictures)
    np.testing.assert_allclose(prediction.measurement.layer_errors, errors, atol=1e-6)
    np.testing.assert_allclose(prediction.measurement.distance, distance, rtol=1e-3)
    np.testing.assert_allclose(prediction.score, (last_layer_error(errors) * distance).log(), atol=1e-3)
    np.testing.assert_allclose(prediction.measurement.layer_scores, errors[..., 0] + 0.01 * errors[..., 1], atol=1e-6)


def in_double(network):
    """The network with its sums in double precision: some processors add up a batch of one in another order."""
    network = deepcopy(network).double()
    network.register_forward_pre_hook(lambda _, pixels: (pixels[0].double(),))
    network.register_forward_hook(lambda _module, _pixels, layers: [layer.float() for layer in layers])
    return network


@pytest.mark.parametrize("most", [1, 3, 20])
def test_batch_size_does_not_change_the_result(monkeypatch, detector, pictures, most):
    teacher = replace(detector.teacher, network=in_double(detector.teacher.network))
    exact = Detector(detector.config, in_double(detector.student), teacher, detector.calibration)
    whole = exact.predict(pictures)
    monkeypatch.setattr("kdad.data.images.batch_size", lambda *_: most)
    assert_equal_predictions(exact.predict(pictures), whole, tolerance=1e-5)


def test_one_image_scores_the_same_alone_and_among_others(detector, pictures):
    among = detector.predict(pictures)
    alone = [detector.predict(pictures[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose([a.score[0] for a in alone], among.score[:3], rtol=0, atol=1e-5)


def test_large_images_go_through_in_small_batches():
    assert images.batch_size(32, 32) == 64
    assert images.batch_size(3000, 4000) == 1
    assert images.batch_size(20_000, 3000) == 1


def test_tensor_pil_images_and_arrays_agree(detector, pictures):
    arrays = [image.permute(1, 2, 0).numpy() for image in pictures]
    of_tensor = detector.predict(pictures)
    assert_equal_predictions(detector.predict(arrays), of_tensor)
    assert_equal_predictions(detector.predict(np.stack(arrays)), of_tensor)
    assert_equal_predictions(detector.predict([Image.fromarray(array) for array in arrays]), of_tensor)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 7), (33, 32), (300, 500)])
def test_any_size_is_judged_and_the_heatmap_has_it(detector, size):
    prediction = detector.predict(noise(2, 3, *size))
    assert prediction.heatmap.shape == (2, *size)
    assert np.isfinite(prediction.heatmap).all()
    assert np.isfinite(prediction.score).all()


def test_every_part_of_an_oblong_image_counts(detector):
    plain = torch.full((1, 3, 40, 160), 128, dtype=torch.uint8)
    changed = plain.clone()
    changed[..., 140:] = noise(1, 3, 40, 20)
    before, after = detector.predict(plain), detector.predict(changed)
    assert before.score[0] != after.score[0]
    fine = [prediction.heatmap_at(40, 160, layer=0)[0] for prediction in (before, after)]
    difference = np.abs(fine[1] - fine[0]).mean(0)
    assert difference[120:].mean() > 2 * difference[:40].mean()


def test_predicting_with_shared_teacher_features_equals_predict(detector, pictures):
    features = detector.teacher_features(pictures)
    assert_equal_predictions(detector.predict_with_features(pictures, features), detector.predict(pictures))


def test_p_values_and_verdicts_count_calibration_normals(detector, pictures):
    normals = detector.calibration_scores
    assert normals.shape == (20,)
    prediction = detector.predict(pictures, fpr=0.1)
    p_values = [(1 + sum(float(n) >= float(s) for n in normals)) / 21 for s in prediction.score]
    np.testing.assert_allclose(prediction.p_value, p_values, rtol=1e-6)
    assert prediction.is_anomaly.tolist() == [p <= 0.1 for p in p_values]
    assert len(set(prediction.is_anomaly.tolist())) == 2  # both verdicts occur


def test_the_default_rate_is_five_per_cent_or_the_lowest_that_can_be_held(detector, student_folder, vgg_teacher):
    images = noise(30, 3, 32, 32)
    default = detector.predict(images).is_anomaly
    assert default.tolist() == detector.predict(images, fpr=0.05).is_anomaly.tolist()
    names = ("layer_errors", "distances", "peaks")
    few = replace(detector.calibration, **{name: getattr(detector.calibration, name)[:9] for name in names})
    small = Detector(detector.config, detector.student, vgg_teacher, few)
    assert small.predict(images).is_anomaly.tolist() == (small.predict(images).p_value <= 0.1).tolist()


@pytest.mark.parametrize("fpr", [0.01, 0, 1, -0.5, 7, float("nan"), float("inf")])
def test_a_rate_that_cannot_be_held_is_refused(detector, fpr):
    with pytest.raises(UserError, match="false-positive rate"):
        detector.predict(noise(1, 3, 32, 32), fpr=fpr)


def test_without_calibration_there_are_scores_and_no_p_values(detector, vgg_teacher, pictures):
    uncalibrated = Detector(detector.config, detector.student, vgg_teacher, None)
    prediction = uncalibrated.predict(pictures)
    np.testing.assert_allclose(prediction.score, np.log(prediction.measurement.layer_errors[:, -1, 0]), rtol=1e-6)
    np.testing.assert_array_equal(
        prediction.measurement.layer_errors, detector.predict(pictures).measurement.layer_errors
    )
    assert np.isnan(prediction.p_value).all()
    assert not prediction.is_anomaly.any()
    assert np.isfinite(prediction.heatmap).all()
    assert uncalibrated.calibration_scores is None


def test_verdicts_at_any_rate_agree_with_those_of_a_prediction(detector, pictures):
    prediction = detector.predict(pictures)
    assert detector.default_fpr == 0.05
    np.testing.assert_array_equal(detector.is_anomaly(prediction), prediction.is_anomaly)
    for fpr in (0.05, 0.1, 0.5):
        expected = detector.predict(pictures, fpr=fpr).is_anomaly
        np.testing.assert_array_equal(detector.is_anomaly(prediction, fpr), expected)
        assert (prediction.score[expected] > detector.threshold(fpr)).all()
    assert "20 held-out normals" in detector.guarantee(0.1)


def test_a_score_is_placed_among_the_normals(detector, tiny_task):
    prediction = detector.predict(tiny_task.calibration)
    shares = detector.share_below(prediction)
    assert shares[prediction.score.argmin()] == 0
    assert shares[prediction.score.argmax()] == pytest.approx(19 / 20, abs=0.06)
    assert detector.deviations(prediction).mean() == pytest.approx(0, abs=1e-3)
    assert detector.deviations(prediction).std() == pytest.approx(1, abs=1e-3)


def test_without_calibration_nothing_is_anomalous_and_nothing_is_promised(detector, vgg_teacher, pictures):
    bare = Detector(detector.config, detector.student, vgg_teacher, None)
    prediction = bare.predict(pictures)
    assert not bare.is_anomaly(prediction, 0.5).any()
    assert (bare.threshold(), bare.guarantee(0.05), bare.normals) == (np.inf, "", None)
    assert np.isnan(bare.share_below(prediction)).all() and np.isnan(bare.deviations(prediction)).all()


def test_records_have_a_row_for_every_image(detector, vgg_teacher, pictures):
    names = [f"{index}.png" for index in range(len(pictures))]
    prediction = detector.predict(pictures)
    records = prediction.to_records(names)
    assert [record["image"] for record in records] == names
    for index, record in enumerate(records):
        alone = prediction.only(index)
        assert (record["score"], record["p_value"]) == (float(alone.score[0]), float(alone.p_value[0]))
        assert record["is_anomaly"] is bool(alone.is_anomaly[0])
        np.testing.assert_allclose(alone.heatmap[0], prediction.heatmap[index], atol=1e-6)
    bare = Detector(detector.config, detector.student, vgg_teacher, None)
    assert {record["p_value"] for record in bare.predict(pictures).to_records(names)} == {None}


def test_heatmaps_are_in_standard_deviations_of_normal_patches(detector, tiny_task):
    heatmap = detector.predict(tiny_task.calibration).heatmap
    assert heatmap.mean() == pytest.approx(0, abs=0.05)
    assert heatmap.std() == pytest.approx(1, rel=0.02)


def test_the_colour_scale_keeps_normal_images_dark(detector, tiny_task):
    low, high = detector.colour_range
    heatmap = detector.predict(tiny_task.calibration).heatmap
    assert low < high
    assert np.mean(heatmap > (low + high) / 2) < 0.02


def test_a_teacher_can_be_given_by_its_name(student_folder, vgg_folder, vit_folder, detector, pictures, refusal):
    named = Detector.load(student_folder, teacher=str(vgg_folder), device="cpu")
    assert_equal_predictions(named.predict(pictures), detector.predict(pictures))
    assert "SHA-256" in refusal(Detector.load, student_folder, teacher=str(vit_folder), device="cpu")


def test_another_teacher_is_a_clear_error(student_folder, vit_teacher):
    with pytest.raises(UserError, match=r"SHA-256.*get the original teacher"):
        Detector.load(student_folder, teacher=vit_teacher, device="cpu")


def test_a_retrained_teacher_is_a_clear_error(tmp_path, student_folder):
    teacher = save_vgg_teacher(tmp_path / "tiny-vgg", seed=1)
    shutil.copytree(student_folder, tmp_path / "student")
    store.save_local(tmp_path / "student", "patterns", str(teacher))
    with pytest.raises(UserError, match="SHA-256"):
        Detector.load(tmp_path / "student", device="cpu")


def test_two_threads_at_once_give_the_same_results(student_folder, detector):
    batches = [noise(8, 3, 24 + i, 40, seed=i) for i in range(8)]
    alone = [detector.predict(batch) for batch in batches]
    shared = Detector.load(student_folder, device="cpu")
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(shared.predict, batches))
    for one, other in zip(together, alone, strict=True):
        assert_equal_predictions(one, other, tolerance=1e-6)


def test_predicting_leaves_gradients_and_modes_alone(detector, pictures):
    detector.predict(pictures)
    assert not any(module.training for module in detector.student.modules())
    assert all(p.grad is None for p in detector.student.parameters())
    assert torch.is_grad_enabled()


def test_training_images_of_the_class_score_lower_than_noise(detector, tiny_task):
    known, strange = detector.predict(tiny_task.train).score, detector.predict(noise(20, 3, 32, 32)).score
    labels = np.repeat([False, True], [len(known), len(strange)])
    assert metrics.auroc(np.concatenate([known, strange]), labels) > 0.9


def test_the_heatmap_at_the_input_s_size_is_the_prediction_s(detector, pictures):
    prediction = detector.predict(pictures)
    np.testing.assert_allclose(prediction.heatmap_at(32, 32), prediction.heatmap, rtol=1e-5)
    assert prediction.heatmap_at(50, 70).shape == (len(pictures), 50, 70)


def test_the_heatmaps_of_the_layers_have_the_heatmap_of_all_as_their_mean(detector, pictures):
    prediction = detector.predict(pictures)
    layers = [prediction.heatmap_at(32, 32, layer) for layer in range(4)]
    weighed = np.tensordot(detector.calibration.normalization.weights.numpy(), np.stack(layers), 1)
    np.testing.assert_allclose(weighed, prediction.heatmap, rtol=1e-4, atol=1e-4)


def test_patch_maps_of_calibration_normals_are_standardised(detector, tiny_task):
    prediction = detector.predict(tiny_task.calibration)
    assert [patches.shape[1:] for patches in prediction.measurement.patch_maps] == detector.teacher.grids
    assert [float(patches.mean()) for patches in prediction.measurement.patch_maps] == pytest.approx([0] * 4, abs=1e-4)
    assert [float(patches.std()) for patches in prediction.measurement.patch_maps] == pytest.approx([1] * 4, rel=1e-4)


def test_the_layer_scores_of_calibration_normals_are_those_of_a_prediction(detector, tiny_task):
    expected = detector.predict(tiny_task.calibration).measurement.layer_scores
    np.testing.assert_allclose(detector.normals.layer_scores, expected, rtol=1e-4)


def test_a_teacher_that_reads_oblong_images_is_copied_and_explained(tmp_path):
    for index in range(12):
        pixels = np.random.default_rng(index).integers(90, 110, (50, 100, 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    teacher = load_teacher("lite0-imagenet", image_size=(64, 128))
    task = FolderTask(tmp_path / "photos", teacher.preprocessing)
    recipe = Recipe(epochs=1, batch_size=8)
    folder = train_student(task, teacher, tmp_path / "out", recipe=recipe, device="cpu")
    oblong = Detector.load(folder, device="cpu")
    assert oblong.teacher.preprocessing.resize == oblong.config.image_size == (64, 128)
    assert oblong.teacher.grids == [(8, 16), (4, 8), (2, 4)]
    image = noise(1, 3, 50, 100)
    prediction = oblong.predict(image)
    assert prediction.heatmap.shape == (1, 50, 100)
    contributions = explain(oblong, image)
    assert sum(part.value for part in contributions) == pytest.approx(float(prediction.score[0]), abs=1e-4)
    assert {part.heatmap.shape for part in contributions} == {(50, 100)}
