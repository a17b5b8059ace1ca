"""Training one student: from a task and a teacher to a complete student folder."""

import shutil
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from kdad import metrics, store, training
from kdad.data import DefectsTask, Task
from kdad.detector import calibrate
from kdad.discrepancy import DEFAULT_SCORE, SCORES, distillation_loss, layer_errors
from kdad.errors import UserError
from kdad.store import StudentConfig
from kdad.students import OPTIMIZERS, SCHEDULES, Recipe, build_student, preset
from kdad.teachers import Teacher

VALIDATION_BATCH = 250


class Distillation(pl.LightningModule):
    """A student learning a teacher's features on the normals of a task.

    The teacher is called, never owned: it is no submodule, so that neither mode, device, state
    dict nor optimiser of this module reaches it.
    """

    def __init__(self, student: nn.Module, teacher: Teacher, task: Task | DefectsTask, recipe: Recipe, seed: int):
        super().__init__()
        self.student, self.teacher, self.task, self.recipe, self.seed = student, teacher, task, recipe, seed
        self.seen: list[tuple[Tensor, Tensor]] = []

    def train_dataloader(self):
        return training.shuffled(self._dataset(self.task.train), self.recipe.batch_size, self.seed)

    def val_dataloader(self):
        held_out = self.task.validation
        if held_out is None:  # no labelled anomalies: the calibration normals give a loss and no AUROC
            normals = self.task.calibration
            return training.in_order(self._dataset(normals, torch.zeros(len(normals)).bool()), VALIDATION_BATCH)
        return training.in_order(self._dataset(held_out.images, held_out.anomalous), VALIDATION_BATCH)

    def _dataset(self, *columns: Tensor) -> TensorDataset:
        device = self.trainer.strategy.root_device
        return TensorDataset(*(column.to(device) for column in columns))

    def training_step(self, batch, _):
        pixels = self.teacher.preprocessing.augmented(batch[0], self.recipe.flip, self.recipe.random_crop)
        loss = distillation_loss(layer_errors(self.student(pixels), self.teacher(pixels)), self.recipe.mse_weight)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(pixels))
        return loss

    def validation_step(self, batch, _):
        images, anomalous = batch
        pixels = self.teacher.preprocessing(images)
        self.seen.append((layer_errors(self.student(pixels), self.teacher(pixels)), anomalous))

    def on_validation_epoch_end(self):
        errors, anomalous = (torch.cat(part).cpu() for part in zip(*self.seen, strict=True))
        self.seen.clear()
        self.log("val_loss", distillation_loss(errors[~anomalous], self.recipe.mse_weight))
        if anomalous.any() and errors.isfinite().all():
            scores = SCORES[DEFAULT_SCORE](errors, self.recipe.mse_weight)
            self.log("val_auroc", metrics.auroc(scores.numpy(), anomalous.numpy()))

    def configure_optimizers(self):
        optimizer = OPTIMIZERS[self.recipe.optimizer](self.student.parameters(), lr=self.recipe.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = SCHEDULES[self.recipe.schedule](optimizer, self.recipe, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train_student(
    task: Task | DefectsTask,
    teacher: Teacher,
    out: Path,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    logger=None,
) -> Path:
    """Train, calibrate and save one student; returns its folder `<out>/<data set>/<teacher>/<class>/`.

    An interrupted run continues from its last epoch when called again with the same arguments.

    Raises:
        UserError: a complete student, or an unfinished one of other settings, is already there.
        WorkFailed: the loss became NaN, or memory ran out.
    """
    device = training.accelerator(device)
    architecture, standard = preset(teacher)
    config = StudentConfig.describe(task, teacher, architecture, recipe or standard, seed, training.hardware(device))
    folder = store.folder_of(out, config)
    _claim(folder, config, overwrite)
    torch.manual_seed(seed)
    student = build_student(architecture)
    module = Distillation(student, teacher.to(device), task, config.recipe, seed)
    training.fit(module, folder, epochs=config.recipe.epochs, seed=seed, device=device, logger=logger)
    finish(folder, config, student, teacher, task, device)
    return folder


def finish(folder: Path, config: StudentConfig, student: nn.Module, teacher: Teacher, task, device: str) -> None:
    """Round the student, calibrate what a reload will see, and complete its folder."""
    store.round_to_half(student)
    student.to(device).eval()
    teacher.to(device)
    store.save_calibration(folder, calibrate(student, teacher, task.calibration))
    store.save_student(folder, config, student)
    (folder / training.CHECKPOINT).unlink(missing_ok=True)


def _claim(folder: Path, config: StudentConfig, overwrite: bool) -> None:
    """Make `folder` ours: new, emptied, or an unfinished run of just these settings."""
    if overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    if store.is_complete(folder):
        raise UserError(f"{folder} holds a complete student; use --overwrite to train it anew, or another --out")
    if (folder / store.CONFIG).is_file() and not store.load_config(folder).same_run(config):
        raise UserError(f"{folder} holds an unfinished run of other settings; repeat those, or use --overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    store.save_config(folder, config)
