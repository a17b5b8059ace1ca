"""Evaluation results of students, read from their files alone, without torch or the data set."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from kdad.errors import UserError
from kdad.evaluation import metrics
from kdad.evaluation.saved_scores import read_calibration_normals, read_calibration_scores, read_test_scores
from kdad.scores import GAUSSIAN, LOG_DISTANCE, MKD, NEAREST
from kdad.storage.history import read_history
from kdad.storage.layout import HISTORY, PIXEL_CURVES, SCORES_TABLE
from kdad.storage.sealing import read_verified
from ui.shared.student_index import Student, below_roots

DEFAULT, PUBLISHED = "score", "score_mkd"  # columns of scores.parquet
NEEDED = ["index", "label", "anomalous", DEFAULT, PUBLISHED]
TEACHER_ALONE = (LOG_DISTANCE, NEAREST, GAUSSIAN)  # parts of scores that read no student
MAX_POINTS = 400  # of a ROC curve; more are indistinguishable on screen


@dataclass(frozen=True)
class Evidence:
    """One student's scores: those of the test images, and of the held-out normals (n,) if it is calibrated.

    `table` has the columns `index`, `kind` (class or defect), `anomalous` and `score`; `score` is the
    score's name in `kdad.scores.SCORES`.
    """

    student: Student
    score: str
    table: pd.DataFrame
    normals: np.ndarray | None

    def against(self, kind: str | None) -> pd.DataFrame:
        """Normal test images and those of one other kind; all images for None."""
        return self.table if kind is None else self.table[~self.table["anomalous"] | (self.table["kind"] == kind)]


@dataclass(frozen=True)
class Baseline:
    """The findings of a student's teacher without the student: a part of the scores, of the same images.

    `table` is one as in `Evidence`, `normals` are those of the calibration (n,).
    """

    title: str
    table: pd.DataFrame
    normals: np.ndarray


def evidence_of(student: Student, column: str) -> Evidence | None:
    """Evidence of a student by the score in `column`; None if it was not evaluated.

    Raises:
        UserError: a file of the student is damaged.
    """
    file = student.folder / SCORES_TABLE
    if student.evaluation is None or not file.is_file():
        return None
    try:
        table = _read(student)
        kinds = np.array(student.evaluation["kinds"])
        shown = pd.DataFrame(
            {
                "index": table["index"],
                "kind": kinds[table["label"].to_numpy()],
                "anomalous": table["anomalous"].astype(bool),
                "score": table[column].astype(np.float64),
            }
        )
        score = MKD if column == PUBLISHED else student.evaluation["score"]
        normals = read_calibration_scores(student.folder, score)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{student.key} is damaged ({type(error).__name__}); run evaluate on it again") from None
    return Evidence(student, score, shown, normals)


def baselines_of(evidence: Evidence) -> list[Baseline]:
    """Baselines of a calibrated student's teacher, from its own files; those that were not measured are left out.

    Raises:
        UserError: a file of the student is damaged.
    """
    student = evidence.student
    try:
        table, normals = _read(student), read_calibration_normals(student.folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{student.key} is damaged ({type(error).__name__}); run evaluate on it again") from None
    found = []
    for part in TEACHER_ALONE if normals is not None else ():
        if part.name in table and table[part.name].nunique() > 1:  # where a score does not read it, it is constant
            of_images = evidence.table.assign(score=table[part.name].to_numpy(np.float64))
            found.append(Baseline(part.title, of_images, np.asarray(part.quantity(normals), np.float64)))
    return found


def _read(student: Student) -> pd.DataFrame:
    file = student.folder / SCORES_TABLE
    return _table(str(student.folder), file.stat().st_mtime_ns, student.evaluation)


@st.cache_data(max_entries=32, show_spinner=False)
def _table(folder: str, stamp: int, _evaluation: dict) -> pd.DataFrame:
    return read_test_scores(Path(folder), _evaluation, [*NEEDED, *(part.name for part in TEACHER_ALONE)])


def _digest(student: Student, name: str) -> str:
    """Recorded SHA-256 of an evaluation's file, or ''."""
    return str((student.evaluation or {}).get("files_sha256", {}).get(name, ""))


def pixel_curves_of(student: Student) -> pd.DataFrame | None:
    """Points of a student's pixel ROC and PRO curves; None if its test images have no masks.

    Columns `threshold`, `false_alarms`, `found` (share of defect pixels), `overlap` (of defect regions), in 0…1.

    Raises:
        UserError: the file is damaged.
    """
    file = student.folder / PIXEL_CURVES
    if not file.is_file():
        return None
    try:
        curves = pd.read_csv(BytesIO(read_verified(file, _digest(student, PIXEL_CURVES))))
        return curves[["threshold", "false_alarms", "found", "overlap"]].astype(np.float64)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{student.key} is damaged ({type(error).__name__}); run evaluate on it again") from None


@st.cache_data(max_entries=64, show_spinner=False)
def auroc(table: pd.DataFrame) -> float:
    """AUROC in 0…1 of an `Evidence` table."""
    return metrics.auroc(table["score"], table["anomalous"])


@st.cache_data(max_entries=32, show_spinner=False)
def auroc_by_kind(table: pd.DataFrame) -> pd.DataFrame:
    """AUROC of normals against each other kind alone, lowest first: columns `kind`, `auroc`, `images`."""
    normal = table[~table["anomalous"]]
    rows = [
        {"kind": kind, "auroc": auroc(pd.concat([normal, others])), "images": len(others)}
        for kind, others in table[table["anomalous"]].groupby("kind")
    ]
    return pd.DataFrame(rows).sort_values("auroc", ignore_index=True)


@st.cache_data(max_entries=64, show_spinner=False)
def roc(table: pd.DataFrame) -> pd.DataFrame:
    """ROC curve thinned to `MAX_POINTS`: columns `false_alarms` and `found`, in 0…1, and `threshold`."""
    false_alarms, found, thresholds = metrics.roc_curve(table["score"], table["anomalous"])
    thresholds[0] = table["score"].max()  # scikit-learn's first threshold is infinite
    kept = np.unique(np.linspace(0, len(found) - 1, MAX_POINTS).round().astype(int))
    return pd.DataFrame({"false_alarms": false_alarms, "found": found, "threshold": thresholds}).iloc[kept]


def confusion(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Confusion matrix in long form: columns `truth`, `verdict`, `images` and `share` of the truth."""
    called = table["score"] > threshold
    rows = []
    for truth, anomalous in (("normal", False), ("anomalous", True)):
        of_truth = called[table["anomalous"] == anomalous]
        for verdict, count in (("called normal", (~of_truth).sum()), ("called anomalous", of_truth.sum())):
            rows.append({"truth": truth, "verdict": verdict, "images": int(count), "share": count / len(of_truth)})
    return pd.DataFrame(rows)


def runs() -> dict[str, pd.DataFrame]:
    """Histories of all runs below the roots, finished or not, by folder key; see `kdad.storage.history`."""
    found = {}
    for key, folder in below_roots(HISTORY).items():
        history = _history(str(folder), (folder / HISTORY).stat().st_mtime_ns)
        if len(history):
            found[key] = history
    return found


@st.cache_data(max_entries=256, show_spinner=False)
def _history(folder: str, stamp: int) -> pd.DataFrame:
    """Read a run's history; empty if the file is damaged."""
    try:
        frame = pd.DataFrame(read_history(Path(folder)))
        return frame.assign(auroc=pd.to_numeric(frame["auroc"]), loss=pd.to_numeric(frame["loss"]))
    except (OSError, ValueError, KeyError, TypeError):
        return pd.DataFrame()


def disagreement(one: Evidence, other: Evidence) -> pd.DataFrame:
    """Test images on which two students of one task differ, largest difference first.

    Scores of different students have no common unit, so images are compared by their rank among all
    test images, in 0…1. Columns of `Evidence.table`, plus `rank` by `one`, `other` by `other` and their
    difference, `gap`.
    """
    both = one.table.merge(other.table[["index", "score"]], on="index", suffixes=("", "_other"))
    ranks = both[["score", "score_other"]].rank(pct=True)
    table = both.drop(columns="score_other").assign(rank=ranks["score"], other=ranks["score_other"])
    table["gap"] = table["rank"] - table["other"]
    return table.sort_values("gap", key=np.abs, ascending=False, ignore_index=True)


def misjudged(table: pd.DataFrame, count: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Normal images with the highest and anomalous images with the lowest scores, most misjudged first."""
    normal, anomalous = table[~table["anomalous"]], table[table["anomalous"]]
    return normal.nlargest(count, "score"), anomalous.nsmallest(count, "score")
