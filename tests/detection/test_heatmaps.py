import numpy as np
import pytest
import torch
from PIL import Image

from kdad.data.decoding import read_image
from kdad.data.preprocessing import Preprocessing
from kdad.detection.heatmaps import HeatmapRenderer, MapNormalization
from kdad.detection.rendering import colour_range, colourise, mask_of, overlay, save_png
from kdad.detection.tiles import WholeImages


def renderer(crop: int, weights: list[float]) -> HeatmapRenderer:
    preprocessing = Preprocessing(crop, crop, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return HeatmapRenderer(WholeImages(preprocessing), torch.tensor(weights))


def test_layers_are_read_in_standard_deviations_above_the_mean():
    normalization = MapNormalization(torch.tensor([0.25, 1.0]), torch.tensor([0.125, 0.5]), torch.ones(2))
    first, second = normalization.standardise([torch.full((2, 4, 4), 0.5), torch.full((2, 2, 2), 2.0)])
    assert first.unique().tolist() == second.unique().tolist() == [2.0]
    assert second.shape == (2, 2, 2)


def test_combined_map_weighs_the_layers():
    maps = [torch.full((2, 8, 8), 0.5), torch.full((2, 2, 2), 3.0)]
    combined = renderer(16, [2.0, -0.25]).combine(maps)
    torch.testing.assert_close(combined, torch.full((2, 16, 16), 2 * 0.5 - 0.25 * 3))


def test_combined_map_is_brightest_where_the_layers_agree():
    fine, coarse = torch.full((1, 8, 8), 0.1), torch.full((1, 4, 4), 0.1)
    fine[0, 5, 2] = fine[0, 0, 7] = 1.0
    coarse[0, 2, 1] = 1.0
    peak = renderer(32, [1.0, 1.0]).combine([fine, coarse])[0].argmax()
    row, column = divmod(peak.item(), 32)
    assert (row // 4, column // 4) == (5, 2)


def test_a_layer_that_never_varies_stays_finite():
    (layer,) = MapNormalization(torch.zeros(1), torch.zeros(1), torch.ones(1)).standardise([torch.zeros(1, 2, 2)])
    assert torch.isfinite(layer).all()


def test_without_calibration_the_map_is_the_mean_patch_error():
    normalization = MapNormalization.identity(2)
    maps = [torch.full((1, 4, 4), 0.5), torch.full((1, 2, 2), 1.5)]
    combined = renderer(4, normalization.weights.tolist()).combine(normalization.standardise(maps))
    torch.testing.assert_close(combined, torch.ones(1, 4, 4))


def test_a_mask_is_what_lies_above_without_single_pixels():
    heatmap = np.zeros((12, 12))
    heatmap[3:7, 3:7] = heatmap[10, 10] = 5
    mask = mask_of(heatmap, 2)
    assert mask[4:6, 4:6].all()
    assert not mask[10, 10]
    assert mask.sum() == 12  # an ellipse of 3×3 rounds the corners


def test_colour_range_comes_from_the_normals():
    quantiles = np.linspace(1, 2, 101)
    low, high = colour_range(quantiles)
    assert low == pytest.approx(1.5)
    assert high == pytest.approx(1.99 + 0.49)


def test_colour_range_without_calibration_is_that_of_a_patch_error():
    assert colour_range(None) == (0, 2)


def brightness(picture: np.ndarray) -> np.ndarray:
    return picture.astype(float).mean(2)


def test_normal_images_stay_dark_and_anomalies_glow_on_one_scale():
    """A scale per image would light up the normal image's own maximum."""
    rng = np.random.default_rng(0)
    normals = rng.gamma(20, 1 / 20, (200, 16, 16))
    low, high = colour_range(np.quantile(normals, np.linspace(0, 1, 101)))
    normal, anomaly = rng.gamma(20, 1 / 20, (16, 16)), rng.gamma(20, 1 / 20, (16, 16))
    anomaly[4:8, 4:8] += 3
    assert np.quantile(brightness(colourise(normal, low, high)), 0.95) < 0.5 * 255
    assert brightness(colourise(normal, low, high)).max() < brightness(colourise(anomaly, low, high))[4:8, 4:8].min()


def test_colours_clip_at_the_ends_and_rise_between():
    picture = colourise(np.array([[-5.0, 0.0, 0.5, 1.0, 9.0]]), 0, 1)
    assert picture.shape == (1, 5, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture[0, 0], picture[0, 1])
    assert np.array_equal(picture[0, 3], picture[0, 4])
    assert np.all(np.diff(brightness(picture)[0, 1:4]) > 0)


def test_a_scale_of_no_width_gives_a_picture():
    assert colourise(np.full((2, 3), 0.7), 0.7, 0.7).shape == (2, 3, 3)


def test_overlay_mixes_image_and_heatmap():
    image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    heatmap = np.linspace(0, 1, 54).reshape(6, 9)
    assert overlay(image, heatmap, 0, 1).shape == (6, 9, 3)
    assert overlay(image, heatmap, 0, 1).dtype == np.uint8
    assert np.array_equal(overlay(image, heatmap, 0, 1, opacity=0), image)
    assert np.array_equal(overlay(image, heatmap, 0, 1, opacity=1), colourise(heatmap, 0, 1))
    half = (image.astype(float) + colourise(heatmap, 0, 1)) / 2
    assert np.abs(overlay(image, heatmap, 0, 1, opacity=0.5) - half).max() <= 0.5


def test_a_saved_picture_is_read_back(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    save_png(tmp_path / "new" / "picture.png", pixels)
    assert np.array_equal(read_image(tmp_path / "new" / "picture.png").permute(1, 2, 0).numpy(), pixels)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["picture.png"]


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    file = tmp_path / "picture.png"
    old = np.zeros((4, 4, 3), np.uint8)
    save_png(file, old)

    def fail_half_way(self, path, format):
        path.write_bytes(b"half a pict")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail_half_way)
    with pytest.raises(OSError, match="No space left"):
        save_png(file, old + 255)
    assert [f.name for f in tmp_path.iterdir()] == ["picture.png"]
    assert read_image(file).max() == 0
