"""What the results page computes from a student's files."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from helpers.miniatures import ROOT

from kdad.detection.detector import Detector
from kdad.evaluation import metrics
from kdad.scores import published_score
from ui.results import evaluated
from ui.results.evaluated import DEFAULT, PUBLISHED, Evidence, evidence_of
from ui.shared.student_index import find

DOTS, DOTS1 = "patterns/tiny-vgg/dots", "patterns/tiny-vgg/dots-seed1"


@pytest.fixture
def student_of(evaluated_root, monkeypatch):
    def student(key: str, root=evaluated_root):
        monkeypatch.setenv("KDAD_STUDENTS", str(root))
        return find()[0][key]

    return student


@pytest.fixture
def dots(student_of) -> Evidence:
    return evidence_of(student_of(DOTS), DEFAULT)


def small(scores, anomalous, kinds=None) -> pd.DataFrame:
    kinds = ["a"] * len(scores) if kinds is None else kinds
    return pd.DataFrame({"index": range(len(scores)), "kind": kinds, "anomalous": anomalous, "score": scores})


def test_normals_score_as_they_do_to_the_detector(dots):
    detector = Detector.load(dots.student.folder, device="cpu")
    np.testing.assert_allclose(dots.normals, detector.calibration_scores, rtol=1e-6)


def test_the_published_score_has_its_own_normals(dots, student_of):
    published = evidence_of(student_of(DOTS), PUBLISHED)
    detector = Detector.load(dots.student.folder, device="cpu")
    expected = published_score(detector.calibration.layer_errors, detector.config.recipe.mse_weight)
    np.testing.assert_allclose(published.normals, expected.numpy(), rtol=1e-6)
    assert not np.allclose(published.table["score"], dots.table["score"])


def test_labels_become_the_names_of_classes(dots):
    assert set(dots.table.loc[~dots.table["anomalous"], "kind"]) == {"dots"}
    assert dots.table["kind"].nunique() == 10


def test_one_kind_alone_is_compared_with_all_normals(dots):
    table = dots.against("rings")
    assert set(table["kind"]) == {"dots", "rings"}
    assert (~table["anomalous"]).sum() == 200
    assert len(dots.against(None)) == 2000


def test_a_student_that_was_not_evaluated_has_no_evidence(student_of, students_root):
    assert evidence_of(student_of(DOTS, students_root), DEFAULT) is None


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("scores.parquet", b"no table"),
        ("calibration.safetensors", b"no tensors"),
        ("evaluation.json", b'{"auroc": 0.9, "score": "unheard-of"}'),
    ],
)
def test_a_damaged_file_is_one_clear_error(student_of, evaluated_root, tmp_path, refusal, file, content):
    shutil.copytree(evaluated_root / DOTS, tmp_path / DOTS)
    (tmp_path / DOTS / file).write_bytes(content)
    assert "run evaluate on it again" in refusal(evidence_of, student_of(DOTS, tmp_path), DEFAULT)


def test_a_student_without_calibration_still_has_its_scores(student_of, evaluated_root, tmp_path):
    shutil.copytree(evaluated_root / DOTS, tmp_path / DOTS)
    (tmp_path / DOTS / "calibration.safetensors").unlink()
    found = evidence_of(student_of(DOTS, tmp_path), DEFAULT)
    assert found.normals is None
    assert len(found.table) == 2000


def test_auroc_by_kind_is_that_of_the_normals_against_each(dots):
    rows = evaluated.auroc_by_kind(dots.table).set_index("kind")["auroc"]
    assert rows.is_monotonic_increasing
    assert "dots" not in rows
    table = dots.against("clouds")
    assert rows["clouds"] == metrics.auroc(table["score"], table["anomalous"])


def test_the_confusion_matrix_counts_what_lies_above_the_threshold():
    table = small([0.1, 0.5, 0.9, 0.5, 0.8], [False, False, False, True, True])
    counts = evaluated.confusion(table, 0.5).set_index(["truth", "verdict"])
    assert counts["images"].to_dict() == {
        ("normal", "called normal"): 2,
        ("normal", "called anomalous"): 1,
        ("anomalous", "called normal"): 1,
        ("anomalous", "called anomalous"): 1,
    }
    assert counts.loc[("normal", "called anomalous"), "share"] == pytest.approx(1 / 3)


def test_a_thinned_roc_keeps_its_ends_and_its_area(dots):
    curve = evaluated.roc(dots.table)
    assert len(curve) <= evaluated.MAX_POINTS
    assert np.isfinite(curve).all(axis=None)
    assert curve.iloc[[0, -1]][["false_alarms", "found"]].to_numpy().tolist() == [[0, 0], [1, 1]]
    area = np.trapezoid(curve["found"], curve["false_alarms"])
    assert area == pytest.approx(evaluated.auroc(dots.table), abs=0.005)


def test_most_misjudged_are_high_normals_and_low_anomalies():
    table = small([0.9, 0.1, 0.5, 0.2, 0.7], [False, False, False, True, True])
    normal, anomalous = evaluated.misjudged(table, 2)
    assert normal["index"].tolist() == [0, 2]
    assert anomalous["index"].tolist() == [3, 4]


def test_disagreement_is_between_ranks_and_not_units(dots):
    scores = np.array([0.1, 0.2, 0.3, 0.4])
    one = Evidence(dots.student, "mkd", small(scores, [False] * 4), None)
    same = Evidence(dots.student, "mkd", small(1000 * scores**3, [False] * 4), None)
    assert (evaluated.disagreement(one, same)["gap"] == 0).all()
    other = Evidence(dots.student, "mkd", small(scores[[3, 1, 2, 0]], [False] * 4), None)
    most = evaluated.disagreement(one, other)
    assert set(most["index"][:2]) == {0, 3}
    assert most.set_index("index")["gap"].to_dict() == {0: -0.75, 1: 0, 2: 0, 3: 0.75}


def test_runs_are_all_histories_but_damaged_ones(evaluated_root, tmp_path, monkeypatch):
    shutil.copytree(evaluated_root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("KDAD_STUDENTS", str(tmp_path))
    assert list(evaluated.runs()) == [
        f"patterns/tiny-vgg/{name}" for name in ("dots", "dots-seed1", "rings", "stripes")
    ]
    (tmp_path / DOTS / "history.csv").write_text("epoch,split\nfirst,train\n")
    assert DOTS not in evaluated.runs()


@pytest.mark.slow
def test_everything_but_images_does_without_torch(evaluated_root, tmp_path, entry):
    (tmp_path / "results.json").write_text(json.dumps({"a": entry()}))
    script = (
        "import sys\n"
        "from streamlit.testing.v1 import AppTest\n"
        "for show in ('Scores', 'Training', 'All classes'):\n"
        "    at = AppTest.from_file('app.py', default_timeout=60).switch_page('pages/3_Curves_and_results.py')\n"
        "    at.query_params['show'] = show\n"
        "    at.run()\n"
        "    assert not at.exception and at.get('vega_lite_chart') and 'torch' not in sys.modules, show\n"
    )
    environment = {
        "KDAD_STUDENTS": str(evaluated_root),
        "KDAD_RESULTS": str(tmp_path / "results.json"),
        "PATH": "/usr/bin:/bin",
    }
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
