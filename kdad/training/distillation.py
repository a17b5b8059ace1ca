"""Training one student: from a task and a teacher to a complete student folder."""

import gc
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import TensorDataset

from kdad.data.protocol import FOLDS as FOLD_COUNT
from kdad.data.task import Fold, Task
from kdad.detection.calibration import FittedStudent, HeldOut, calibrate, fit_statistics, save_calibration
from kdad.detection.discrepancy import distillation_loss, layer_errors
from kdad.detection.weighting import pseudo_anomalies_for
from kdad.devices import accelerator, hardware, move_if_it_fits, threads_of
from kdad.errors import UserError
from kdad.evaluation import metrics
from kdad.locks import exclusive_lock
from kdad.memory import give_memory_back
from kdad.networks.features import forward_in_chunks
from kdad.networks.recipes import Recipe
from kdad.networks.students import build_student, preset, recipe_for
from kdad.networks.teachers.loading import Teacher
from kdad.progress import CALIBRATING, FEATURES, READING, TRAINING, Stage, running
from kdad.scores import last_layer_error
from kdad.storage import layout, student_folder
from kdad.storage.student_config import StudentConfig
from kdad.training import loop
from kdad.training.distributed import SINGLE_PROCESS, DistributedConfig, from_first, gathered, join, rank
from kdad.training.feature_cache import Views, cache_features

VALIDATION_BATCH, VALIDATION_PIXELS = 250, 2**22  # as many images at once as are neither more nor larger than this
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
SCHEDULES: dict[str, Callable[[Optimizer, Recipe, int], LRScheduler]] = {
    "constant": lambda optimizer, recipe, steps: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
    "one-cycle": lambda optimizer, recipe, steps: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=steps
    ),
    "step": lambda optimizer, recipe, steps: torch.optim.lr_scheduler.StepLR(optimizer, max(1, steps // 2), 0.2),
}
LOOK, READ, STUDENT_LOOK, STUDENT_STEP = 1.0, 0.2, 0.5, 0.4  # costs of one image, by the teacher's look
FOLDS = "folds"  # the runs of cross-fitting, inside the student's folder until it is complete


class Distillation(pl.LightningModule):
    """A student learning a teacher's features on the normals of a task.

    The teacher is called, never owned: it is no submodule, so that neither mode, device, state
    dict nor optimiser of this module reaches it.
    """

    def __init__(self, student: nn.Module, teacher: Teacher, task: Task | Fold, recipe: Recipe, seed: int):
        super().__init__()
        self.student, self.teacher, self.task, self.recipe, self.seed = student, teacher, task, recipe, seed
        self.validated: list[tuple[Tensor, Tensor]] = []

    def train_dataloader(self) -> loop.Loader:
        return loop.shuffled(self._dataset(self.task.train), self.recipe.batch_size, self.seed)

    def val_dataloader(self) -> loop.Loader:
        held_out = self.task.validation
        assert isinstance(held_out.images, Tensor)  # of one size, as training images are
        most = max(1, VALIDATION_PIXELS // held_out.images[0, 0].numel())
        return loop.in_order(self._dataset(held_out.images, held_out.anomalous), min(VALIDATION_BATCH, most))

    def _dataset(self, *columns: Tensor) -> TensorDataset:
        device = self.trainer.strategy.root_device  # where Lightning would else bring every batch
        return TensorDataset(*(move_if_it_fits(device, column) for column in columns))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        pixels = self.teacher.preprocessing.augmented(batch[0], self.recipe.flip, self.recipe.random_crop)
        errors = layer_errors(self.student(pixels), self.teacher.targets(pixels))
        loss = distillation_loss(errors, self.recipe.mse_weight)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(pixels), sync_dist=True)
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        images, anomalous = batch
        pixels = self.teacher.preprocessing(images)
        self.validated.append((layer_errors(forward_in_chunks(self.student, pixels), self.teacher(pixels)), anomalous))

    def on_validation_epoch_end(self) -> None:
        errors, anomalous = (gathered(torch.cat(part)) for part in zip(*self.validated, strict=True))
        self.validated.clear()
        self.log("val_loss", distillation_loss(errors[~anomalous], self.recipe.mse_weight))
        if anomalous.any() and errors.isfinite().all():
            self.log("val_auroc", metrics.auroc(last_layer_error(errors).numpy(), anomalous.numpy()))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = OPTIMIZERS[self.recipe.optimizer](self.student.parameters(), lr=self.recipe.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = SCHEDULES[self.recipe.schedule](optimizer, self.recipe, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train_student(
    task: Task,
    teacher: Teacher,
    out: Path,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    device: str = "auto",
    processes: DistributedConfig = SINGLE_PROCESS,
    threads: int | None = None,
    overwrite: bool = False,
    logger: str | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> Path:
    """Train, calibrate and save one student; returns its folder `<out>/<data set>/<teacher>/<class>/`.

    An interrupted run continues from its last epoch when called again with the same arguments,
    and a finished one that was not evaluated yet is returned as it is.

    Args:
        processes: those that train together. Each of them calls this with the same arguments; they share `out`, where
            only the first of them writes. It alone calibrates; the others return earlier.
        threads: how many torch computes with; None for those of the unfinished run that is continued, on which its
            last digits depend, or else as many as now.

    Raises:
        UserError: a complete student, or an unfinished one of other settings, is already there, or another run trains
            there.
        WorkFailed: the loss became NaN, memory ran out, or another process of the run ended.
    """
    device = accelerator(device)
    loop.check_logger(logger)
    recipe = recipe or recipe_for(teacher, task.train_size)
    _check_shares(processes, min(recipe.batch_size, task.train_size))
    join(processes, device)
    with running(lambda: stages(task, recipe)):
        if not len(task.train) or not len(task.calibration):  # also reads the data before a folder is made
            raise UserError(f"{task.dataset} holds too few images of {task.normal_class} to train and calibrate on")
        task.check()
        config = planned(task, teacher, recipe, seed, device)
        folder = student_folder.folder_of(out, config)
        if wanted := threads or _threads_of_unfinished(folder):
            torch.set_num_threads(wanted)
            config = replace(config, hardware=hardware(device))
        with ExitStack() as held:
            from_first(lambda: held.enter_context(_lock_run(folder)))
            if not from_first(lambda: _claimed(folder, config, task, teacher, overwrite)):
                return folder
            where: dict[str, Any] = {"device": device, "processes": processes}
            teacher = cache_features(teacher.to(device), views(task, recipe, device))
            student = _distilled(task, teacher, config, folder, **where, logger=logger, callbacks=callbacks)
            folds = _cross_fitted(task, teacher, config, folder, **where)
            if rank() == 0:
                fitted = fit_statistics(student, teacher, task, config.score)
                give_memory_back()
                held_out = folds or [(fitted, task.calibration)]
                finish(folder, config, fitted, teacher, held_out, task.train)
    return folder


def stages(task: Task, recipe: Recipe) -> list[Stage]:
    """The stages of training and calibrating a student, and what they cost, in looks of the teacher at an image.

    The costs were measured on photographs and a processor; elsewhere, they make the time left a rougher estimate.
    """
    held_out = len(task.calibration)
    images = task.train_size + held_out
    shown = task.train_size * (1 + recipe.flip) + held_out
    step = (LOOK if recipe.random_crop else 0) + STUDENT_STEP  # else, what the teacher sees is remembered
    epoch = Stage(TRAINING, recipe.epochs, task.train_size * step)
    folds = [replace(epoch, name=_fold(index)) for index in range(FOLD_COUNT if task.cross_fitted else 0)]
    pairs = 2 * min(pseudo_anomalies_for(task.score), task.train_size)
    return [
        Stage(READING, images, READ),
        Stage(FEATURES, 0 if recipe.random_crop else shown, LOOK),
        epoch,
        *folds,
        Stage(CALIBRATING, images + pairs, LOOK + STUDENT_LOOK),
    ]


def _fold(index: int) -> str:
    """The name of the stage of a fold."""
    return f"fold {index + 1} of {FOLD_COUNT}"


def _threads_of_unfinished(folder: Path) -> int | None:
    """The number of threads of the run that was begun in `folder`, if there is one on processors."""
    with suppress(UserError):
        return None if student_folder.is_complete(folder) else threads_of(student_folder.load_config(folder).hardware)
    return None


def _check_shares(processes: DistributedConfig, batch: int) -> None:
    if processes.world_size > 1 and batch < 2 * processes.world_size:
        count = processes.world_size
        raise UserError(f"{count} processes need batches of {2 * count} images or more, not of {batch}")


def _lock_run(folder: Path) -> AbstractContextManager[None]:
    """Lock a run's folder for the length of the block."""
    lock = folder.with_name(f".{folder.name}.lock")  # beside it, for an overwritten folder is removed
    return exclusive_lock(lock, f"another run trains in {folder}; wait for it, or use another --out")


def planned(task: Task, teacher: Teacher, recipe: Recipe, seed: int, device: str) -> StudentConfig:
    """The configuration that a student trained now would have, which identifies a run."""
    architecture, _ = preset(teacher)
    return StudentConfig.describe(task, teacher, architecture, recipe, seed, hardware(device))


def views(task: Task, recipe: Recipe, device: str) -> Views:
    """All images that a student of `task` will be trained and validated on, so that the teacher runs once on each.

    None where random crops make new ones in every epoch.
    """
    if recipe.random_crop:
        return Views([], [], device)
    held_out = task.validation.images
    assert isinstance(held_out, Tensor)  # of one size, as training images are
    trained_on = [task.train, held_out] if task.cross_fitted else [task.train]
    return Views([task.train, held_out], trained_on if recipe.flip else [], device)


def finish(
    folder: Path, config: StudentConfig, fitted: FittedStudent, teacher: Teacher, held_out: HeldOut, train: Tensor
) -> None:
    """Calibrate a student as `kdad.detection.calibration.calibrate` does, and complete its folder."""
    calibration = calibrate(fitted, teacher, held_out, train, config.score, config.tile_size)
    config = replace(config, calibration_sha256=save_calibration(folder, calibration))
    student_folder.save_student(folder, config, fitted.student)
    (folder / loop.CHECKPOINT).unlink(missing_ok=True)
    shutil.rmtree(folder / FOLDS, ignore_errors=True)


def _distilled(
    task: Task | Fold, teacher: Teacher, config: StudentConfig, folder: Path, *, device: str, **options: Any
) -> nn.Module:
    """A student trained in `folder`, rounded to what a reload will see, on the device and in eval mode."""
    torch.manual_seed(config.seed)
    student = build_student(config.architecture)
    module = Distillation(student, teacher, task, config.recipe, config.seed)
    loop.fit(module, folder, epochs=config.recipe.epochs, seed=config.seed, device=device, **options)
    del module
    gc.collect()  # a trainer refers to itself, and through the module to gigabytes that its teacher remembers
    give_memory_back()
    student_folder.round_to_half(student)
    return student.to(device).eval()


def _cross_fitted(task: Task, teacher: Teacher, config: StudentConfig, folder: Path, **where: Any) -> HeldOut:
    """Fit a student on the other folds for each fold, where normals are few; returns them, and the folds' images."""
    held_out = []
    for index, fold in enumerate(task.folds):
        student = _distilled(fold, teacher, config, folder / FOLDS / str(index), **where, stage=_fold(index))
        held_out.append((fit_statistics(student, teacher, fold, config.score), fold.left_out))
    return held_out


def _claimed(folder: Path, config: StudentConfig, task: Task, teacher: Teacher, overwrite: bool) -> bool:
    """Claim `folder`; False where a student of `config` is already trained there and awaits its evaluation."""
    if not overwrite and _awaits_evaluation(folder, config):
        return False
    _claim(folder, config, overwrite)
    student_folder.save_local(folder, task.dataset, teacher.name)
    return True


def _awaits_evaluation(folder: Path, config: StudentConfig) -> bool:
    """Whether a run of `config` was interrupted between its last epoch and its evaluation."""
    finished = student_folder.is_complete(folder) and not (folder / layout.EVALUATION).is_file()
    return finished and not student_folder.load_config(folder).differences(config)


def _claim(folder: Path, config: StudentConfig, overwrite: bool) -> None:
    """Claim `folder`: new, emptied, or with an unfinished run of exactly these settings.

    The latter is continued even when overwriting: the result is the same, and an interrupted
    `--overwrite` goes on where it stopped.
    """
    if loop.must_replace(folder, _obstacle(folder, config), overwrite):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    student_folder.save_config(folder, config)


def _obstacle(folder: Path, config: StudentConfig) -> str | None:
    """A description of what in `folder` is in the way of a run of `config`, or None."""
    complete = student_folder.is_complete(folder)
    if not (folder / layout.CONFIG).is_file():
        return "a complete student" if complete else None
    try:
        different = student_folder.load_config(folder).differences(config, versions=not complete)
    except UserError:
        return "a damaged run"
    if complete:
        return f"a complete student ({different})" if different else "a complete student"
    return f"an unfinished run with different settings ({different})" if different else None
