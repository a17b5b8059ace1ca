"""CSV for spreadsheets: names stay text, numbers stay numbers."""

import csv
import io

import pandas
import pytest

from kdad.spreadsheets import as_csv


@pytest.mark.parametrize("name", ["=1+1.png", "+1.png", "-1.png", "@SUM(A1).png", "\t=1.png", "\r=1.png"])
def test_what_a_spreadsheet_would_run_is_text(name):
    table = pandas.DataFrame({"image": [name, "a=b.png"], name: [1, 2]})
    header, first, second = csv.reader(io.StringIO(as_csv(table), newline=""))
    shown = "'" + name.replace("\r", "\\r")
    assert header == ["image", shown]
    assert (first, second) == ([shown, "1"], ["a=b.png", "2"])


def test_numbers_stay_numbers():
    table = pandas.DataFrame({"score": [-1.5, 2.0], "p": [None, -3], "loss": ["-1.5", ""], "anomaly": [True, False]})
    again = pandas.read_csv(io.StringIO(as_csv(table)))
    assert again["score"].tolist() == [-1.5, 2.0]
    assert again["p"].tolist()[1] == -3
    assert again["loss"].tolist()[0] == -1.5
    assert again["anomaly"].tolist() == [True, False]
    assert as_csv(pandas.DataFrame({"score": [0.1, -0.2]}, dtype="float32")) == "score\n0.1\n-0.2\n"


def test_a_table_without_rows_is_its_header():
    assert as_csv(pandas.DataFrame({"image": [], "score": []})) == "image,score\n"
