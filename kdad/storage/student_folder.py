"""Writing, reading and checking of student folders on disk."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from kdad.data.datasets import public_name
from kdad.errors import UserError, one_line
from kdad.files import read_json_or_empty, write_bytes, write_json, write_text
from kdad.networks.students import build_student
from kdad.storage.layout import CARD, CONFIG, EVALUATION, LOCAL, SENSITIVITY, WEIGHTS, student_folder
from kdad.storage.model_cards import student_card
from kdad.storage.operating_point import OperatingPoint, load_operating_point
from kdad.storage.sealing import read_if_sound, read_sealed, read_verified
from kdad.storage.student_config import StudentConfig, public_teacher


def folder_of(out: Path, config: StudentConfig) -> Path:
    """Folder below `out` for the student of `config`, or for the version that it is."""
    folder = student_folder(out, config.dataset, config.teacher, config.normal_class, config.seed)
    return folder.with_name(Path(config.ancestry[-1]["name"]).name) if config.ancestry else folder


def is_complete(folder: Path) -> bool:
    """Whether `folder` contains a finished student, whose weights are written last."""
    return (folder / WEIGHTS).is_file()


def find_students(out: Path) -> list[Path]:
    """Folders below `out` with a finished student, sorted."""
    return sorted(file.parent for file in Path(out).rglob(WEIGHTS) if (file.parent / CONFIG).is_file())


def save_config(folder: Path, config: StudentConfig) -> None:
    """Write config.json."""
    write_json(folder / CONFIG, config.as_dict())


def load_config(folder: Path) -> StudentConfig:
    """Read and check config.json.

    Raises:
        UserError: the folder is not a student's, or the file is damaged.
    """
    file = Path(folder) / CONFIG
    if not file.is_file():
        raise UserError(f"{folder} is no student folder: it holds no {CONFIG}")
    try:
        return StudentConfig.from_dict(json.loads(file.read_text()))
    except UserError as error:
        raise UserError(f"{file} cannot be used: {error}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is damaged or not a student's ({type(error).__name__}: {one_line(error)})") from None


def save_local(folder: Path, dataset: str, teacher: str) -> None:
    """Write local.json with the local paths of a custom data set and teacher, if there are any."""
    places = {"dataset": (dataset, public_name), "teacher": (teacher, public_teacher)}
    own = {name: place for name, (place, public) in places.items() if public(place) != place}
    if own:
        write_json(folder / LOCAL, own)


def load_local(folder: Path) -> dict[str, str]:
    """Read the paths in local.json; {} if there is no such file, as on another machine."""
    return {name: str(place) for name, place in read_json_or_empty(Path(folder) / LOCAL).items()}


def round_to_half(student: nn.Module) -> None:
    """Round all weights to half precision in place, for identical scores after reloading."""
    with torch.no_grad():
        for tensor in student.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())


def save_student(folder: Path, config: StudentConfig, student: nn.Module) -> None:
    """Write card and configuration, and then the weights, in half precision."""
    weights = {name: t.half() if t.is_floating_point() else t for name, t in student.state_dict().items()}
    content = save({name: t.cpu().contiguous() for name, t in weights.items()})
    save_config(folder, replace(config, weights_sha256=hashlib.sha256(content).hexdigest()))
    save_card(folder, config)
    write_bytes(folder / WEIGHTS, content)


def save_card(folder: Path, config: StudentConfig) -> None:
    """Write the model card, README.md, with what evaluation.json, sensitivity.json and operating_point.json say.

    The card does without those that do not exist.
    """
    point = _operating_point_of(folder, config)
    write_text(folder / CARD, student_card(config, load_evaluation(folder), load_sensitivity(folder), point))


def _operating_point_of(folder: Path, config: StudentConfig) -> OperatingPoint | None:
    """The operating point of a student; None if there is none that belongs to it."""
    try:
        return load_operating_point(folder, config.weights_sha256)
    except UserError:
        return None


def load_student(folder: Path, config: StudentConfig) -> nn.Module:
    """Load the student of a folder in float32 and eval mode.

    Raises:
        UserError: the weights are missing, truncated, tampered with, or of a different architecture.
    """
    file = Path(folder) / WEIGHTS
    if not file.is_file():
        raise UserError(f"{folder} holds no finished student: {WEIGHTS} is missing; run its train command again")
    try:
        content = read_verified(file, config.weights_sha256)
        weights = {name: t.float() if t.is_floating_point() else t for name, t in load(content).items()}
        with torch.device("meta"):  # an untrusted config may request any size: compare before allocating
            expected = build_student(config.architecture)
        expected.load_state_dict(weights, strict=True, assign=True)
        student = build_student(config.architecture)
        student.load_state_dict(weights, strict=True)
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{file} is damaged or does not fit its {CONFIG}: {one_line(error)}") from None
    if not all(torch.isfinite(t).all() for t in weights.values()):
        raise UserError(f"{file} holds weights that are not finite; train the student anew")
    return student.eval()


def load_evaluation(folder: Path) -> dict[str, Any] | None:
    """Read the figures of evaluation.json; None if the student has not been evaluated."""
    file = Path(folder) / EVALUATION
    if not file.is_file():
        return None
    try:
        figures = read_sealed(file)
    except (OSError, ValueError, RecursionError):
        figures = {}
    if "auroc" not in figures:
        raise UserError(f"{file} is damaged; remove it, and run evaluate on the folder again")
    return figures


def load_sensitivity(folder: Path) -> dict[str, Any] | None:
    """Read sensitivity.json, see `kdad.evaluation.sensitivity`; None if it does not exist or is damaged."""
    return read_if_sound(Path(folder) / SENSITIVITY)


def check_evaluation(folder: Path, config: StudentConfig) -> None:
    """Raise a `UserError` if there are figures that belong to different weights."""
    measured = (load_evaluation(folder) or {}).get("weights_sha256", config.weights_sha256)
    if measured != config.weights_sha256:
        raise UserError(f"{folder / EVALUATION} holds the figures of other weights; run evaluate on the folder again")


def check_empty(folder: Path) -> None:
    """Raise a `UserError` if a folder is not empty, as with a student or an unfinished run."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; remove it first, or use another --out")
