"""Charts: cells lie where their patches are, and a chart is valid Vega-Lite."""

import numpy as np
import pytest

from ui.inspect import charts


def test_cells_cover_the_picture_in_reading_order():
    cells = charts.grid_cells(2, 3, np.arange(6).reshape(2, 3))
    assert cells["value"].tolist() == [0, 1, 2, 3, 4, 5]
    assert cells[["row", "column"]].iloc[5].tolist() == [2, 3]
    area = (cells["right"] - cells["left"]) * (cells["bottom"] - cells["top"])
    assert area.sum() == pytest.approx(1)
    assert cells.iloc[5][["top", "bottom", "left", "right"]].tolist() == pytest.approx([0.5, 1, 2 / 3, 1])


def test_a_border_moves_the_cells_inwards():
    cells = charts.grid_cells(4, 4, border=0.0625)
    assert (cells["top"].min(), cells["bottom"].max()) == (0.0625, 0.9375)


@pytest.mark.parametrize("clickable", [True, False])
def test_only_a_clickable_picture_has_the_cell_selection(clickable):
    chart = charts.picture(np.zeros((10, 20, 3), np.uint8), charts.grid_cells(8, 8), "", clickable=clickable)
    names = {parameter["name"] for parameter in chart["params"]}
    assert (charts.CELL in names) == clickable


def test_a_wide_picture_takes_less_height():
    wide, tall = (
        charts.picture(np.zeros((*shape, 3), np.uint8), charts.grid_cells(1, 1), "") for shape in ((5, 10), (10, 5))
    )
    assert wide["height"] == charts.PICTURE_HEIGHT / 2
    assert tall["height"] == charts.PICTURE_HEIGHT


def test_a_picture_is_described_once_and_its_data_are_each_ones_own():
    dark, bright = (
        charts.picture(np.full((4, 4, 3), level, np.uint8), charts.grid_cells(1, 1), "", box=(0, 1, 0, 1))
        for level in (0, 255)
    )
    assert dark["layer"] == bright["layer"] and dark["layer"] is not bright["layer"]
    assert dark["datasets"]["picture"]["url"][0] != bright["datasets"]["picture"]["url"][0]
    assert {layer["data"]["name"] for layer in dark["layer"]} == set(dark["datasets"])


def test_the_histogram_counts_every_normal():
    normals = np.random.default_rng(0).normal(size=200)
    spec = charts.among_normals(normals, 9.0, 2.0).to_dict()
    counts = [row["images"] for rows in spec["datasets"].values() for row in rows if "images" in row]
    assert sum(counts) == 200


def test_the_histogram_of_equal_scores_is_drawn():
    assert charts.among_normals(np.ones(5), 1.0, 1.0).to_dict()["layer"]


@pytest.mark.parametrize("normals", [None, np.random.default_rng(0).random((50, 4))])
def test_layers_are_in_order(normals):
    names = ["1 (32×32)", "2 (16×16)", "3 (8×8)", "4 (4×4)"]
    spec = charts.layers(np.arange(4.0), normals, names).to_dict()
    assert len(spec["layer"]) == (1 if normals is None else 3)
    assert all(layer["encoding"]["y"]["sort"] == names for layer in spec["layer"])
