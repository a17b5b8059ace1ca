"""What a teacher's statistics find without a student: left out in closed form as if computed anew without the image."""

import json

import pytest
import torch

from benchmarks import regions

GRID = (2, 3)


@pytest.fixture
def features():
    """Of twenty normals and five test images at six positions, in four dimensions."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(20, 6, 4, generator=generator), 3 * torch.randn(5, 6, 4, generator=generator)


def test_a_left_out_image_is_as_far_from_the_others_as_if_it_had_never_been_there(features, monkeypatch):
    train, test = features
    shrinkage = 0.3
    monkeypatch.setattr(regions, "_shrinkage", lambda off: torch.full((6,), shrinkage))
    found = regions.gaussian_distances(train, test, GRID)
    scale = (train - train.mean(0)).square().mean((0, 2))
    for index in (0, 7):
        others = torch.cat([train[:index], train[index + 1 :]])
        for position in range(6):
            covariance = (1 - shrinkage) * torch.cov(others[:, position].T, correction=0)
            covariance += shrinkage * scale[position] * torch.eye(4)
            off = train[index, position] - others[:, position].mean(0)
            expected = (off @ torch.linalg.solve(covariance, off)).log()
            torch.testing.assert_close(found.train[index, position], expected, rtol=1e-4, atol=1e-4)


def test_the_nearest_patch_is_of_another_image_and_within_one_position(features):
    train, test = features
    found = regions.neighbour_distances(train, test, GRID)
    close = [(row, column) for row in range(2) for column in range(3)]
    for position, (row, column) in enumerate(close):
        near = [at for at, (r, c) in enumerate(close) if abs(r - row) <= 1 and abs(c - column) <= 1]
        expected = (train[1:, near] - train[0, position]).square().sum(2).min().log()
        torch.testing.assert_close(found.train[0, position], expected, rtol=1e-4, atol=1e-4)
        expected = (train[:, near] - test[0, position]).square().sum(2).min().log()
        torch.testing.assert_close(found.test[0, position], expected, rtol=1e-4, atol=1e-4)


def test_far_images_are_more_than_normals_are(features):
    for measure in (regions.gaussian_distances, regions.neighbour_distances):
        train, test = measure(*features, GRID).standardised()
        assert abs(float(train.mean())) < 0.05
        assert float(test.mean()) > 1


def test_a_row_per_method_and_folder_and_a_new_run_replaces_them(defect_folder, tmp_path):
    file = tmp_path / "regions.json"
    for _ in range(2):
        regions.main([str(defect_folder), "--results", str(file)])
    rows = json.loads(file.read_text())["rows"]
    assert [row["method"] for row in rows] == [*regions.METHODS, *regions.SUMS]
    assert {row["folder"] for row in rows} == {"screws"}
    assert all(row["auroc"] == 100 and row["pixel_auroc"] > 90 for row in rows), rows
    assert str(tmp_path) not in file.read_text()
