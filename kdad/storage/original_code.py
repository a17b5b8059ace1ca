"""Import of students of the original code (`Cloner_<class>_epoch_<n>.pth`)."""

from pathlib import Path
from typing import Any

import torch

from kdad.data.datasets import class_names
from kdad.data.preprocessing import Preprocessing
from kdad.errors import UserError, one_line, one_of
from kdad.networks.students import build_student
from kdad.networks.teachers.loading import vgg16_sha256_prefix
from kdad.networks.teachers.provenance import label_overlap
from kdad.networks.teachers.registry import TEACHERS
from kdad.scores import DISTANT_ERROR
from kdad.storage import student_folder
from kdad.storage.layout import HELD_OUT
from kdad.storage.student_config import StudentConfig

TEACHER = "vgg16-imagenet"
ARCHITECTURE = {"kind": "paper-vgg"}


def import_cloner_file(file: Path, dataset: str, normal_class: str, out: Path) -> Path:
    """Convert a state dict of the original code to an uncalibrated student folder; returns the folder.

    Does not need the teacher's weights: torchvision includes the first digits of their hash in the file name.

    Raises:
        UserError: the file is missing, is not a state dict, or does not fit the paper's student; or the student's
            folder is not empty.
    """
    student = build_student(ARCHITECTURE)
    state = _read_state_dict(file)
    try:
        student.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise UserError(f"{file} does not fit the paper's student: {one_line(error)}") from None
    one_of(f"class of {dataset}", normal_class, class_names(dataset))
    spec = TEACHERS[TEACHER]
    assert spec.trained_on and spec.pixels and spec.recipe
    config = StudentConfig(
        dataset=dataset,
        normal_class=normal_class,
        images_sha256="",
        teacher=TEACHER,
        teacher_sha256=vgg16_sha256_prefix(),
        label_overlap=label_overlap(spec.trained_on, dataset),
        architecture=ARCHITECTURE,
        recipe=spec.recipe,
        preprocessing=Preprocessing(**spec.pixels),
        score=DISTANT_ERROR,
        calibration=HELD_OUT,
        tile_size=0,
        layers=[],
        max_value=0,
        ancestry=[],
        seed=0,
        hardware="unknown",
        versions={},
    )
    folder = student_folder.folder_of(out, config)
    student_folder.check_empty(folder)
    student_folder.round_to_half(student)
    if not all(tensor.isfinite().all() for tensor in student.state_dict().values()):
        raise UserError(f"{file} holds weights that are not finite, or too large for half precision")
    student_folder.save_student(folder, config, student)
    return folder


def _read_state_dict(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for files other than plain state dicts
        raise UserError(f"{file} is no state dict that can be read safely ({type(error).__name__})") from None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"{file} holds no state dict")
    return state
