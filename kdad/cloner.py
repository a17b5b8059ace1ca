"""Reading students of the original code (`Cloner_<class>_epoch_<n>.pth`)."""

from pathlib import Path

import torch

from kdad import store
from kdad.catalogue import VGG16_TRAINED_ON, class_names, label_overlap
from kdad.discrepancy import DISTANT_ERROR
from kdad.errors import UserError, one_of
from kdad.recipes import PAPER
from kdad.store import StudentConfig
from kdad.students import build_student
from kdad.teachers import VGG16_PREPROCESSING, vgg16_sha256_prefix

ARCHITECTURE = {"kind": "paper-vgg"}


def import_cloner_file(file: Path, dataset: str, normal_class: str, out: Path) -> Path:
    """Turn a state dict of the original code into an uncalibrated student folder; returns the folder.

    The teacher need not be here: torchvision names its weights by the first digits of their hash.

    Raises:
        UserError: the file is missing, is no state dict, or does not fit the paper's student; or a student is
            already there.
    """
    student = build_student(ARCHITECTURE)
    state = _read_state_dict(file)
    try:
        student.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file} does not fit the paper's student: {reason}") from None
    one_of(f"class of {dataset}", normal_class, class_names(dataset))
    config = StudentConfig(
        dataset=dataset,
        normal_class=normal_class,
        teacher="vgg16-imagenet",
        teacher_sha256=vgg16_sha256_prefix(),
        label_overlap=label_overlap(VGG16_TRAINED_ON, dataset),
        architecture=ARCHITECTURE,
        recipe=PAPER,
        preprocessing=VGG16_PREPROCESSING["vgg16-imagenet"],
        score=DISTANT_ERROR,
        tile=0,
        seed=0,
        hardware="unknown",
        versions={},
    )
    folder = store.folder_of(out, config)
    store.must_be_free(folder)
    store.round_to_half(student)
    if not all(tensor.isfinite().all() for tensor in student.state_dict().values()):
        raise UserError(f"{file} holds weights that are not finite, or too large for half precision")
    store.save_student(folder, config, student)
    return folder


def _read_state_dict(file: Path) -> dict:
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types on a file that is no plain state dict
        raise UserError(f"{file} is no state dict that can be read safely ({type(error).__name__})") from None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"{file} holds no state dict")
    return state
