"""Student folders on disk and on the Hub: what is in them, and how they are written and checked."""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor, nn

from kdad.card import OVERLAP_IN_WORDS, student_card
from kdad.catalogue import label_overlap, student_folder
from kdad.discrepancy import DISTANT_ERROR, SCORES
from kdad.errors import UserError, one_of
from kdad.files import write_atomically, write_json, write_text
from kdad.history import HISTORY
from kdad.preprocessing import Preprocessing
from kdad.recipes import Recipe
from kdad.students import build_student
from kdad.teachers import Teacher

CONFIG, WEIGHTS, CALIBRATION = "config.json", "model.safetensors", "calibration.safetensors"
EVALUATION, SCORES_FILE, CARD = "evaluation.json", "scores.parquet", "README.md"
PIXEL_CURVES = "pixel_curves.csv"  # where the test images have masks
SHARED_FILES = (CONFIG, WEIGHTS, CALIBRATION, HISTORY, EVALUATION, SCORES_FILE, PIXEL_CURVES, CARD)
DEFAULT_OUT = Path("trained_students")
RECORDED_VERSIONS = ("torch", "torchvision", "transformers", "pytorch-lightning")


@dataclass(frozen=True)
class StudentConfig:
    """All that is needed to rebuild a student and to know where it comes from: its config.json.

    `score` is the default one, a name in `kdad.discrepancy.SCORES`; `tile` is the side in pixels of
    the tiles that it looks at one by one, 0 for whole images; `weights_sha256` is that of the
    finished student's model.safetensors, and empty before.
    """

    dataset: str
    normal_class: str
    teacher: str
    teacher_sha256: str
    label_overlap: str
    architecture: dict
    recipe: Recipe
    preprocessing: Preprocessing
    score: str
    tile: int
    seed: int
    hardware: str
    versions: dict
    weights_sha256: str = ""

    def __post_init__(self):
        for field in fields(self):
            if not isinstance(getattr(self, field.name), field.type):
                raise UserError(f"{field.name} must be of type {field.type.__name__}")
        one_of("label overlap", self.label_overlap, OVERLAP_IN_WORDS)
        one_of("score", self.score, SCORES)
        if self.tile < 0:
            raise UserError(f"tile must be at least 0, not {self.tile}")

    @classmethod
    def describe(
        cls, task, teacher: Teacher, architecture: dict, recipe: Recipe, seed: int, hardware: str
    ) -> "StudentConfig":
        """The configuration of a student of `teacher` for `task`, trained on `hardware` with the installed versions."""
        return cls(
            dataset=task.dataset,
            normal_class=task.normal_class,
            teacher=teacher.name,
            teacher_sha256=teacher.sha256,
            label_overlap=label_overlap(teacher.trained_on, task.dataset),
            architecture=architecture,
            recipe=recipe,
            preprocessing=teacher.preprocessing,
            score=task.score,
            tile=task.tile,
            seed=seed,
            hardware=hardware,
            versions={package: version(package) for package in RECORDED_VERSIONS},
        )

    @classmethod
    def from_dict(cls, values: dict) -> "StudentConfig":
        parsed = {
            "recipe": Recipe.from_dict(values["recipe"]),
            "preprocessing": Preprocessing.from_dict(values["preprocessing"]),
        }
        names = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in {**values, **parsed}.items() if name in names})

    def same_run(self, other: "StudentConfig") -> bool:
        """Whether both describe the same training, whatever the hardware, the installed versions and the result."""
        result = {"hardware": "", "versions": {}, "weights_sha256": ""}
        return replace(self, **result) == replace(other, **result)


def folder_of(out: Path, config: StudentConfig) -> Path:
    """Where below `out` the student of `config` belongs."""
    return student_folder(out, config.dataset, config.teacher, config.normal_class, config.seed)


def is_complete(folder: Path) -> bool:
    """Whether `folder` holds a finished student: its weights are written last."""
    return (folder / WEIGHTS).is_file()


def find_students(out: Path) -> list[Path]:
    """The folders below `out` with a finished student, sorted."""
    return sorted(file.parent for file in Path(out).rglob(WEIGHTS) if (file.parent / CONFIG).is_file())


def save_config(folder: Path, config: StudentConfig) -> None:
    """Write config.json."""
    write_json(folder / CONFIG, asdict(config))


def load_config(folder: Path) -> StudentConfig:
    """Read and check config.json.

    Raises:
        UserError: the folder is no student's, or the file is damaged.
    """
    file = Path(folder) / CONFIG
    if not file.is_file():
        raise UserError(f"{folder} is no student folder: it holds no {CONFIG}")
    try:
        return StudentConfig.from_dict(json.loads(file.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file} is damaged or not a student's ({type(error).__name__}: {reason})") from None


def round_to_half(student: nn.Module) -> None:
    """Round all weights to half precision in place, so that a reloaded student scores the same."""
    with torch.no_grad():
        for tensor in student.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())


def save_student(folder: Path, config: StudentConfig, student: nn.Module) -> None:
    """Write card, configuration and, last, the weights in half precision."""
    weights = {name: t.half() if t.is_floating_point() else t for name, t in student.state_dict().items()}
    content = save({name: t.cpu().contiguous() for name, t in weights.items()})
    save_config(folder, replace(config, weights_sha256=hashlib.sha256(content).hexdigest()))
    save_card(folder, config)
    write_atomically(folder / WEIGHTS, lambda path: path.write_bytes(content))


def save_card(folder: Path, config: StudentConfig) -> None:
    """Write the model card, README.md, with the figures of evaluation.json if they are there."""
    write_text(folder / CARD, student_card(config, load_evaluation(folder)))


def load_student(folder: Path, config: StudentConfig) -> nn.Module:
    """The student of a folder in float32 and eval mode.

    Raises:
        UserError: the weights are missing, truncated, tampered with, or of another architecture.
    """
    file = Path(folder) / WEIGHTS
    if not file.is_file():
        raise UserError(f"{folder} holds no finished student: {WEIGHTS} is missing; run its train command again")
    try:
        content = file.read_bytes()
        if config.weights_sha256 not in ("", hashlib.sha256(content).hexdigest()):
            raise UserError(f"{file} is damaged: its SHA-256 is not the one in {CONFIG}")
        weights = {name: t.float() if t.is_floating_point() else t for name, t in load(content).items()}
        with torch.device("meta"):  # a config may ask for any size: allocate nothing before the weights fit it
            expected = build_student(config.architecture)
        expected.load_state_dict(weights, strict=True, assign=True)
        student = build_student(config.architecture)
        student.load_state_dict(weights, strict=True)
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is damaged or does not fit its {CONFIG}: {reason[:200]}") from None
    if not all(torch.isfinite(t).all() for t in weights.values()):
        raise UserError(f"{file} holds weights that are not finite; train the student anew")
    return student.eval()


def save_calibration(folder: Path, calibration: dict[str, Tensor]) -> None:
    """Write calibration.safetensors."""
    tensors = {name: t.cpu().contiguous() for name, t in calibration.items()}
    write_atomically(folder / CALIBRATION, lambda path: save_file(tensors, path))


def load_calibration(folder: Path, config: StudentConfig) -> dict[str, Tensor] | None:
    """The calibration tensors that the student of `config` needs, or None if it was never calibrated."""
    file = Path(folder) / CALIBRATION
    if not file.is_file():
        return None
    try:
        calibration = load_file(file)
    except (SafetensorError, OSError):
        calibration = {}
    normals = len(calibration.get("layer_errors", ()))
    expected = {
        "layer_errors": (normals, 4, 2),
        "peaks": (normals,),
        "patch_mean": (4,),
        "patch_std": (4,),
        "layer_weights": (4,),
        "heatmap_quantiles": (101,),
    }
    if config.score == DISTANT_ERROR:
        width = calibration.get("distance_mean", torch.empty(0)).numel()
        expected |= {
            "distances": (normals,),
            "distance_mean": (width,),
            "distance_whitening": (width * (width + 1) // 2,),
        }
    fits = normals > 0 and {name: tuple(tensor.shape) for name, tensor in calibration.items()} == expected
    if not fits or not all(tensor.isfinite().all() for tensor in calibration.values()):
        raise UserError(f"{file} is damaged; remove it, and run evaluate on the folder to calibrate again")
    return calibration


def load_evaluation(folder: Path) -> dict | None:
    """The figures of evaluation.json, or None if the student was never evaluated."""
    file = Path(folder) / EVALUATION
    if not file.is_file():
        return None
    try:
        figures = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        figures = None
    if not isinstance(figures, dict) or "auroc" not in figures:
        raise UserError(f"{file} is damaged; remove it, and run evaluate on the folder again")
    return figures


def resolve(folder_or_repo: str | Path) -> Path:
    """A student folder on disk as it is; a Hub id (owner/name) as its snapshot in the local cache."""
    path = Path(folder_or_repo)
    if path.exists():
        return path
    if str(folder_or_repo).count("/") == 1 and not str(folder_or_repo).startswith((".", "/")):
        return _snapshot(str(folder_or_repo))
    raise UserError(f"{folder_or_repo}: no such student folder; `python -m kdad list` shows those that are here")


def _snapshot(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=list(SHARED_FILES)))
    except Exception as error:  # the Hub client raises a dozen unrelated types when it cannot fetch
        raise UserError(
            f"{repo}: no such folder here, and no student of that name could be fetched from the Hub "
            f"({type(error).__name__}); check the name and the network"
        ) from None


def pull(repo: str, out: Path) -> Path:
    """Copy a student from the Hub to its place below `out`; returns the folder."""
    snapshot = _snapshot(repo)
    config = load_config(snapshot)
    load_student(snapshot, config)
    folder = folder_of(out, config)
    if not folder.resolve().is_relative_to(Path(out).resolve()):
        raise UserError(f"{repo} names a data set, teacher or class that would be written outside {out}")
    must_be_free(folder)
    temporary = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(snapshot, temporary)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def must_be_free(folder: Path) -> None:
    """Refuse a folder with anything in it: a student, or an unfinished run."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; remove it first, or use another --out")


def push(folder: Path, repo: str) -> str:
    """Upload a student folder to the Hub repository `repo`; returns its address."""
    from huggingface_hub import HfApi

    load_student(folder, load_config(folder))
    try:
        api = HfApi()
        created = api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=created.repo_id, folder_path=folder, allow_patterns=list(SHARED_FILES))
    except Exception as error:  # the Hub client raises a dozen unrelated types when it cannot reach or may not write
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"could not push to {repo} ({reason}); check the name and the network, and log in with `hf auth login`"
        ) from None
    return str(created)
