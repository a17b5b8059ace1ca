"""Damaged, swapped or forged students: each is refused, or scores as before, without network access."""

import io
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas
import torch
from safetensors.torch import load, save
from torch import Tensor

from benchmarks.attacks.tally import Tally
from kdad.detection.detector import Detector, Prediction
from kdad.errors import UserError
from kdad.storage.layout import CALIBRATION, CONFIG, EVALUATION, SCORES_TABLE, WEIGHTS
from kdad.storage.sealing import sealed
from kdad.storage.student_folder import load_evaluation

ELSEWHERE = (
    "https://example.org/teacher", "//example.org/share/teacher", "../../../etc", "/etc/passwd", "owner/teacher",
    "timm:resnet18.a1_in1k", "timm:resnet18.a1_in1k@/etc/passwd", "a/../../b", "", "\0", "x" * 5000,
)  # fmt: skip
NONSENSE = (None, -1, 0, 10**30, 0.5, "x", "", [], {}, [[]], True, float("nan"), "folder:/", "../../x")
Change = Callable[[np.random.Generator, bytes], bytes]


def flipped(rng: np.random.Generator, content: bytes) -> bytes:
    """One bit is flipped."""
    changed = bytearray(content)
    changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def truncated(rng: np.random.Generator, content: bytes) -> bytes:
    """The end is missing."""
    return content[: rng.integers(len(content))]


def exchanged_part(rng: np.random.Generator, content: bytes) -> bytes:
    """Some bytes are zeroed, as after a lost disk block."""
    at, length = int(rng.integers(len(content))), int(rng.integers(1, 600))
    return content[:at] + bytes(len(content[at : at + length])) + content[at + length :]


def without_a_key(rng: np.random.Generator, content: bytes) -> bytes:
    """A key of the JSON is missing."""
    values = json.loads(content)
    del values[str(rng.choice(list(values)))]
    return json.dumps(values).encode()


def with_a_key_more(rng: np.random.Generator, content: bytes) -> bytes:
    """The JSON has an unknown key, and is sealed."""
    return json.dumps(sealed(json.loads(content) | {f"key{rng.integers(99)}": 1})).encode()


def with_nonsense(rng: np.random.Generator, content: bytes) -> bytes:
    """A value of the JSON is nonsense."""
    values = json.loads(content)
    places = [values, *(value for value in values.values() if isinstance(value, dict) and value)]
    place = places[rng.integers(len(places))]
    place[str(rng.choice(list(place)))] = NONSENSE[rng.integers(len(NONSENSE))]
    return json.dumps(values).encode()


def with_sealed_nonsense(rng: np.random.Generator, content: bytes) -> bytes:
    """A value of the JSON is nonsense, but the JSON is sealed."""
    return json.dumps(sealed(json.loads(with_nonsense(rng, content)))).encode()


def with_another_teacher(rng: np.random.Generator, content: bytes) -> bytes:
    """The teacher is elsewhere, and the JSON is sealed."""
    return json.dumps(sealed(json.loads(content) | {"teacher": ELSEWHERE[rng.integers(len(ELSEWHERE))]})).encode()


def with_another_number(rng: np.random.Generator, content: bytes) -> bytes:
    """Numbers that affect the scores are changed, without resealing."""
    values = json.loads(content)
    values["recipe"]["mse_weight"] += float(rng.uniform(0.1, 2))
    values["tile" if "tile" in values else "tile_size"] += int(rng.integers(1, 99))  # before and since format 6
    return json.dumps(values).encode()


def _tensors(change: Callable[[np.random.Generator, dict[str, Tensor], str], None]) -> Change:
    """Turn a change of one tensor, chosen at random, into a change of a safetensors file."""

    def changed(rng: np.random.Generator, content: bytes) -> bytes:
        tensors = load(content)
        change(rng, tensors, str(rng.choice(sorted(tensors))))
        return save(tensors)

    changed.__doc__ = change.__doc__
    return changed


def _lost(rng: np.random.Generator, tensors: dict[str, Tensor], name: str) -> None:
    """A tensor is missing."""
    del tensors[name]


def _added(rng: np.random.Generator, tensors: dict[str, Tensor], name: str) -> None:
    """There is an additional tensor."""
    tensors["more"] = torch.zeros(3)


def _reshaped(rng: np.random.Generator, tensors: dict[str, Tensor], name: str) -> None:
    """A tensor has the wrong shape."""
    tensors[name] = tensors[name].flatten()[:-1].clone()


def _retyped(rng: np.random.Generator, tensors: dict[str, Tensor], name: str) -> None:
    """A tensor has the wrong dtype."""
    tensors[name] = tensors[name].to((torch.float64, torch.int64, torch.bool)[rng.integers(3)])


def _not_finite(rng: np.random.Generator, tensors: dict[str, Tensor], name: str) -> None:
    """A tensor contains a non-finite value."""
    tensors[name] = tensors[name].float()
    tensors[name].view(-1)[rng.integers(tensors[name].numel())] = (torch.nan, torch.inf)[rng.integers(2)]


def _off(rng: np.random.Generator, tensors: dict[str, Tensor], name: str) -> None:
    """A tensor has different values."""
    tensors[name] = (tensors[name].float() * 1.5 + 0.1).to(tensors[name].dtype)


def huge(rng: np.random.Generator, content: bytes) -> bytes:
    """The header declares tensors larger than any memory."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header[str(rng.choice([name for name in header if name != "__metadata__"]))]["shape"] = [10**9, 10**9]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def long_header(rng: np.random.Generator, content: bytes) -> bytes:
    """The header declares a length beyond any file."""
    return int(rng.integers(2**40, 2**62)).to_bytes(8, "little") + content[8:]


def _columns(change: Callable[[np.random.Generator, pandas.DataFrame], pandas.DataFrame]) -> Change:
    """Turn a change of a table into a change of a parquet file."""

    def changed(rng: np.random.Generator, content: bytes) -> bytes:
        return bytes(change(rng, pandas.read_parquet(io.BytesIO(content))).to_parquet())

    changed.__doc__ = change.__doc__
    return changed


def _no_scores(rng: np.random.Generator, table: pandas.DataFrame) -> pandas.DataFrame:
    """The scores are missing."""
    return table.drop(columns="score")


def _other_scores(rng: np.random.Generator, table: pandas.DataFrame) -> pandas.DataFrame:
    """The scores are permuted."""
    return table.assign(score=rng.permutation(table["score"]))


def _words(rng: np.random.Generator, table: pandas.DataFrame) -> pandas.DataFrame:
    """The scores are words."""
    return table.assign(score="high")


BYTES = (flipped, truncated, exchanged_part)
SAFETENSORS = (*BYTES, huge, long_header, *map(_tensors, (_lost, _added, _reshaped, _retyped, _not_finite, _off)))
CHANGES: dict[str, tuple[Change, ...]] = {
    CONFIG: (
        *BYTES, without_a_key, with_a_key_more, with_sealed_nonsense, with_sealed_nonsense, with_another_number,
        with_another_teacher, with_another_teacher,
    ),
    WEIGHTS: SAFETENSORS,
    CALIBRATION: SAFETENSORS,
    SCORES_TABLE: (*BYTES, *map(_columns, (_no_scores, _other_scores, _words))),
    EVALUATION: (*BYTES, without_a_key, with_nonsense),
}  # fmt: skip


@contextmanager
def no_network() -> Iterator[list[str]]:
    """Block network access; yields the list of requested addresses."""
    asked: list[str] = []

    def note(*address: object, **_: object) -> None:
        asked.append(str(address))
        raise OSError("no network in this attack")

    with (
        patch.object(socket.socket, "connect", lambda self, address: note(address)),
        patch.object(socket, "getaddrinfo", note),
    ):
        yield asked


def same(one: Prediction, other: Prediction) -> bool:
    """Whether two predictions are equal in everything shown to users."""
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True)
        for name in ("score", "p_value", "is_anomaly", "heatmap")
    )


def attack(student: Path, images: Tensor, work: Path, tries: int, seed: int = 0) -> dict[str, Tally]:
    """Change one file of a copy of `student` at a time, `tries` times each, then load it and score `images`.

    Args:
        student: a calibrated, evaluated student folder, whose teacher is on this machine.
        images: uint8 (B, 3, H, W).
        work: an empty folder for the copy.
    """
    expected, table = Detector.load(student, device="cpu").predict(images), _table(student)
    figures = load_evaluation(student)

    def unchanged(folder: Path) -> bool:
        scores = _table(folder)
        judged = Detector.load(folder, device="cpu").predict(images)
        return same(judged, expected) and scores.equals(table) and load_evaluation(folder) == figures

    tallies = {}
    for name, changes in CHANGES.items():
        rng, tally = np.random.default_rng([seed, len(name)]), Tally()
        content = (student / name).read_bytes()
        for attempt in range(tries):
            change = changes[attempt % len(changes)]
            folder = shutil.copytree(student, work / "copy")
            (folder / name).write_bytes(change(rng, content))
            with no_network() as asked:
                tally.attempt(f"{name} {attempt}: {change.__doc__}", lambda folder=folder: unchanged(folder))
            if asked:
                tally.broken.append(f"{name} {attempt}: {change.__doc__} {asked[0]} was requested")
            shutil.rmtree(folder)
        tallies[name] = tally
    return tallies


def _table(folder: Path) -> pandas.DataFrame:
    """Scores of the test images, as read by the results page."""
    from ui.results.evaluated import DEFAULT, evidence_of
    from ui.shared import student_index

    with patch.object(student_index, "roots", lambda: (folder.parent,)):
        students, damaged = student_index.find()
    if folder.name in damaged:
        raise UserError(f"{folder} is listed as damaged")
    evidence = evidence_of(students[folder.name], DEFAULT)
    assert evidence is not None
    return evidence.table
