"""Training requests from the page, and checks before the start. Imports torch only in the last check."""

import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from kdad.data.datasets import at_hand, folder_path, is_folder
from kdad.errors import UserError
from kdad.files import is_directory
from kdad.jobs import manager
from kdad.networks.recipes import Recipe, with_overrides
from kdad.networks.teachers.registry import TIMM, available, split_timm, teacher_facts
from kdad.storage.layout import CONFIG, WEIGHTS, student_folder, upgraded
from kdad.storage.sealing import read_sealed
from ui.shared import places
from ui.shared.student_index import jobs_root, root

HUB_SECONDS = 4
OVERWRITE = "--overwrite"


@dataclass(frozen=True)
class Request:
    """A training to start; settings are None where the teacher's preset applies, `preset` if it is unknown.

    `tile_size` is the side of the tiles in pixels, 0 for whole images; None decides by the images' size.
    """

    dataset: str
    normal_class: str
    teacher: str
    preset: Recipe | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int = 0
    device: str = "auto"
    tile_size: int | None = None
    overwrite: bool = False

    @property
    def folder(self) -> Path:
        """Folder of the resulting student."""
        return student_folder(root(), self.dataset, self.teacher, self.normal_class, self.seed).resolve()

    @property
    def knobs(self) -> dict[str, float | None]:
        """Settings that differ from the preset; None for the others."""
        values = {name: getattr(self, name) for name in ("epochs", "batch_size", "learning_rate")}
        return {name: None if value == getattr(self.preset, name, None) else value for name, value in values.items()}

    @property
    def arguments(self) -> list[str]:
        """Command-line arguments after `python -m kdad`."""
        places = {"dataset": self.dataset, "normal-class": self.normal_class, "teacher": self.teacher}
        rest = {"seed": self.seed, "device": self.device, "tile_size": self.tile_size, "out": root().resolve()}
        values = {**places, **self.knobs, **rest}
        given = [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]
        return ["train", *given, *([OVERWRITE] if self.overwrite else [])]


def teacher_named(text: str | None) -> str:
    """Normalise a typed teacher name; a folder, or the weights file of a timm name, becomes a full path.

    Raises:
        UserError: the name is a path that a visitor may not name.
    """
    name = (text or "").strip()
    if name.startswith(TIMM):
        model, file = split_timm(name)
        return f"{TIMM}{model}@{places.readable(file)}" if file else name
    if not name or name in available():
        return name
    looks_like_a_path = name.startswith(("/", ".", "~", "\\")) or name.count("/") > 1
    if looks_like_a_path or is_directory(name):
        return str(places.readable(name))
    return name


def refusal(request: Request) -> str | None:
    """The reason why this request cannot be started at all, or None."""
    if not request.dataset:
        return "Enter a folder of normal images, or drop a zip file of them."
    if not request.teacher:
        return "Choose a teacher, or enter a Hub id (owner/name) or a folder."
    if any(job.active and job.student == request.folder for job in manager.find_all(jobs_root())):
        return "This student is already training: see its job. To train another, change the class, teacher or seed."
    return None


def obstacle(request: Request) -> str | None:
    """The student or run that already exists in this student's folder and must be replaced first, or None."""
    if (request.folder / WEIGHTS).is_file():
        return "finished student"
    try:
        config = upgraded(read_sealed(request.folder / CONFIG))
        recipe, tile_size = Recipe.from_dict(config["recipe"]), config["tile_size"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "damaged run"
    if _asked_before(request):
        return None
    wanted = request.preset and with_overrides(request.preset, **request.knobs)
    same = wanted in (None, recipe) and request.tile_size in (None, tile_size)
    return None if same else "unfinished run with different settings"


def _asked_before(request: Request) -> bool:
    """Whether the last job for this student asked for the same; where images are few, it adds epochs to the preset."""
    jobs = [job for job in manager.find_all(jobs_root()) if job.student == request.folder]
    return bool(jobs) and set(jobs[-1].arguments) - {OVERWRITE} == set(request.arguments) - {OVERWRITE}


def unmet(request: Request) -> str | None:
    """The thing that this machine or its network lacks for a request, or None; checks both, and imports torch."""
    from kdad.data.folder_layout import FolderLayout
    from kdad.devices import accelerator

    try:
        accelerator(request.device)
        if is_folder(request.dataset):
            FolderLayout(folder_path(request.dataset))
    except UserError as error:
        return str(error)
    teacher_here, data_here = teacher_facts(request.teacher).here, at_hand(request.dataset, ("train", "test"))
    if request.teacher.startswith(TIMM) and not teacher_here:
        if (missing := _no_such_timm(request.teacher)) is not None:
            return missing
    elif not teacher_here and request.teacher not in available() and request.teacher.count("/") != 1:
        return f"There is no teacher {request.teacher}: choose one from the list, or enter a Hub id or a folder."
    if Path(request.teacher).is_dir() and not (Path(request.teacher) / "config.json").is_file():
        return f"{request.teacher} is not a teacher folder: it contains no config.json."
    if (teacher_here and data_here) or hub_reachable():
        return None
    if not data_here:
        place = f"put it below $KDAD_DATA/{request.dataset}, or choose patterns"
        return f"{request.dataset} is not on this machine, and the Hub cannot be reached: {place}."
    return f"{request.teacher} is not on this machine, and the Hub cannot be reached: choose a local teacher."


def _no_such_timm(name: str) -> str | None:
    """The reason why a timm model or its weights file cannot be had, or None."""
    from kdad.networks.teachers.timm_backbones import timm_config

    model, file = split_timm(name)
    try:
        timm_config(model)
    except UserError as error:
        return str(error)
    return f"{file}: no such file." if file else None


def hub_reachable() -> bool:
    """Whether the Hugging Face Hub responds, even with an error."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=HUB_SECONDS).close()  # noqa: S310 - the Hub's own address
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
