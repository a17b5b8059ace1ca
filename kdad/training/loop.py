"""Train a Lightning module epoch by epoch: resume, history, progress, and stopping on NaN.

Students and teachers train through the same `fit`. An
interrupted run continues from its last finished epoch and ends as an unbroken one would, because
all randomness of an epoch derives from (seed, epoch).
"""

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset
from tqdm import tqdm

from kdad import progress
from kdad.errors import UserError, WorkFailed, one_of
from kdad.files import write_atomically
from kdad.progress import SECONDS_BETWEEN_REPORTS, TRAINING, Stage, running
from kdad.storage.history import read_history, write_history
from kdad.training import distributed
from kdad.training.distributed import SINGLE_PROCESS, DistributedConfig

CHECKPOINT = "resume.ckpt"
STEPS_BETWEEN_NAN_CHECKS = 16
SECONDS_TO_MEASURE_CONTENTION, CONTENDED = 5.0, 0.7  # and the share of its threads that a program has in one
BETWEEN_PROCESSES = 2**53  # seeds; far more than `epoch_seed` ever gives
Loader = DataLoader[tuple[Tensor, ...]]
LOGGERS = ("tensorboard", "wandb")  # also the names of their packages


def epoch_seed(seed: int, epoch: int) -> int:
    """One number for (seed, epoch), distinct for all epochs below a million."""
    return seed * 1_000_000 + epoch


class EpochBatches(Sampler[Tensor]):
    """Batches of shuffled indices; the order depends on (seed, epoch) alone.

    Each of several processes takes an equal share of every batch; together they see what a single one would.

    Lightning calls `set_epoch` before every epoch, also the first one after a resume.
    Iteration is lazy because after a resume the iterator is made before `set_epoch` is called.
    """

    def __init__(self, n: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        self.n, self.batch_size, self.seed, self.epoch = n, min(batch_size, n), seed, 0
        self.rank, self.world_size = rank, world_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        for batch in torch.randperm(self.n, generator=generator).split(self.batch_size)[: len(self)]:
            share = len(batch) // self.world_size
            yield batch[self.rank * share : (self.rank + 1) * share]

    def __len__(self) -> int:
        whole, rest = divmod(self.n, self.batch_size)
        return whole + (rest // self.world_size > 1)  # a lone image in the last batch would have no batch statistics


def shuffled(dataset: TensorDataset, batch_size: int, seed: int) -> Loader:
    """A loader of this process's share of every batch, in an order that depends on (seed, epoch) alone."""
    sampler = EpochBatches(len(dataset), batch_size, seed, distributed.rank(), distributed.world_size())
    # Every new iterator draws one number: from a generator of its own, not from the one of dropout and augmentation.
    return DataLoader(dataset, sampler=sampler, batch_size=None, generator=torch.Generator())


def in_order(dataset: TensorDataset, batch_size: int) -> Loader:
    """A loader of this process's share of the data, in batches and in order."""
    share = torch.arange(distributed.rank(), len(dataset), distributed.world_size())
    return DataLoader(dataset, sampler=share.split(batch_size), batch_size=None)


class EpochSeed(Callback):
    """Reseed dropout and augmentation at the start of every epoch, differently in each process."""

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        torch.manual_seed(epoch_seed(self.seed, trainer.current_epoch) + distributed.rank() * BETWEEN_PROCESSES)


class StopOnNaN(Callback):
    """End the run as soon as a loss is not finite; the checkpoint of the last good epoch stays.

    The validation loss counts too: it alone shows that the last step of an epoch broke the weights.
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % STEPS_BETWEEN_NAN_CHECKS == 0:
            self._check(outputs["loss"], trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        for name in ("train_loss", "val_loss"):
            self._check(trainer.callback_metrics[name], trainer)

    def _check(self, loss: Tensor, trainer: pl.Trainer) -> None:
        if torch.isfinite(loss):
            return
        kept = f"epoch {trainer.current_epoch} is kept" if trainer.current_epoch else "no epoch was finished"
        raise WorkFailed(f"the loss became NaN or infinite in epoch {trainer.current_epoch + 1}; {kept}")


class EpochRecord(Callback):
    """Rewrite `history.csv` and then the checkpoint after each epoch; both whole or not at all.

    Only the first of several processes writes.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows: list[dict[str, Any]] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.rows = [row for row in read_history(self.folder) if row["epoch"] <= trainer.current_epoch]

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics
        shared = {"epoch": trainer.current_epoch + 1, "seconds": round(time.perf_counter() - self.started, 2)}
        for split, prefix in (("train", "train"), ("validation", "val")):
            if f"{prefix}_loss" in metrics:
                values = {name: _rounded(metrics.get(f"{prefix}_{name}")) for name in ("loss", "auroc")}
                self.rows.append({**shared, "split": split, **values})
        if trainer.is_global_zero:
            write_history(self.folder, self.rows)
            write_atomically(self.folder / CHECKPOINT, trainer.save_checkpoint)
        else:
            trainer.save_checkpoint(self.folder / CHECKPOINT)  # writes nothing, and waits for the first


def _rounded(value: Tensor | None) -> float | str:
    return "" if value is None else round(float(value), 6)


class ProgressBar(Callback):
    """Count epochs, and say loss and validation AUROC (or accuracy), on the bar of the run that this is a stage of."""

    def __init__(self, stage: str):
        self.stage = stage

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if run := progress.current():
            run.visible = trainer.is_global_zero
            run.skip(self.stage, trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if run := progress.current():
            shown = self._described(trainer, outputs["loss"]) if batch_idx % STEPS_BETWEEN_NAN_CHECKS == 0 else {}
            run.advance(self.stage, 1 / trainer.num_training_batches, **shown)

    def _described(self, trainer: pl.Trainer, loss: Tensor) -> dict[str, str]:
        shown = {"epoch": f"{trainer.current_epoch + 1}/{trainer.max_epochs}", "loss": f"{float(loss):.4f}"}
        for name in ("val_auroc", "val_accuracy"):
            if name in trainer.callback_metrics:
                shown[name] = f"{float(trainer.callback_metrics[name]):.4f}"
        return shown


class ContentionWarning(Callback):
    """Warn once when CPU contention slows training.

    Threads that compute together wait for the last of them, so that one without a processor holds up all. The number of
    threads is not changed on the way: results depend on it in their last digits.
    """

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        single = distributed.world_size() == 1  # of several, each waits for the others
        self.warned = torch.get_num_threads() == 1 or module.device.type != "cpu" or not single
        self.since = time.monotonic(), time.process_time()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        seconds, busy = time.monotonic() - self.since[0], time.process_time() - self.since[1]
        if not self.warned and seconds > SECONDS_TO_MEASURE_CONTENTION:
            self.warned = True
            threads, processors = torch.get_num_threads(), busy / seconds
            if processors < CONTENDED * threads:
                tqdm.write(
                    f"other programs are busy: {threads} threads wait for each other on {processors:.1f} processors; "
                    f"--threads {max(1, int(processors))} would be faster",
                    file=sys.stderr,
                )


class Progress(Callback):
    """Report epochs, with fractions, loss and validation AUROC to a function, about once a second."""

    def __init__(self, report: Callable[[dict[str, Any]], None]):
        self.report = report

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if not hasattr(self, "reported"):
            self.report({"epochs": trainer.max_epochs})
            self.reported = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() - self.reported >= SECONDS_BETWEEN_REPORTS:
            self.reported = time.monotonic()
            part = (batch_idx + 1) / trainer.num_training_batches
            self._report(trainer, trainer.current_epoch + part, loss=float(outputs["loss"]))

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        auroc = trainer.callback_metrics.get("val_auroc")
        values = {} if auroc is None else {"auroc": float(auroc)}
        self._report(trainer, trainer.current_epoch + 1, **values)

    def _report(self, trainer: pl.Trainer, position: float, **values: float) -> None:
        epoch = min(int(position) + 1, trainer.max_epochs)
        self.report({"epoch": epoch, "position": position, **values})


def must_replace(folder: Path, obstacle: str | None, overwrite: bool) -> bool:
    """Whether the content of a run's folder must be removed before the run can begin.

    Args:
        obstacle: a description of what is in the way, or None.

    Raises:
        UserError: there is an obstacle, and it may not be overwritten.
    """
    if obstacle and not overwrite:
        raise UserError(f"{folder} holds {obstacle}; use --overwrite to train anew, or another --out")
    return obstacle is not None


def half_precision(device: str) -> bool:
    """Whether bfloat16 matrix products are quick on this device."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return device == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def fit(
    module: pl.LightningModule,
    folder: Path,
    *,
    epochs: int,
    seed: int,
    device: str,
    processes: DistributedConfig = SINGLE_PROCESS,
    logger: str | None = None,
    callbacks: Sequence[Callback] = (),
    stage: str = TRAINING,
) -> None:
    """Train `module` up to `epochs` in `folder`, from its checkpoint if there is one; `callbacks` may watch.

    Epochs are counted as units of a stage of the present run, or of one of their own.

    Raises:
        WorkFailed: the loss became NaN, memory ran out, or another process of the run ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(epoch_seed(seed, 0))
    _quiet_lightning()
    own = [EpochSeed(seed), StopOnNaN(), ProgressBar(stage), ContentionWarning(), EpochRecord(folder)]
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator=device,
        **processes.trainer_options(device),
        precision="bf16-mixed" if half_precision(device) else "32-true",
        callbacks=[*own, *callbacks],
        logger=_logger(logger, folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=20,
    )
    checkpoint = folder / CHECKPOINT
    try:
        with running(lambda: [Stage(stage, epochs, 1)]):
            trainer.fit(module, ckpt_path=checkpoint if checkpoint.is_file() else None, weights_only=True)
    except SystemExit:  # Lightning's answer to Ctrl-C, after its own clean-up
        raise KeyboardInterrupt from None
    except RuntimeError as error:
        if distributed.lost(error):
            raise WorkFailed(distributed.LOST) from None
        # torch has a type for a full GPU, and only a message for full main memory.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise WorkFailed(f"{device} ran out of memory; use a smaller --batch-size") from None


def check_logger(name: str | None) -> None:
    """Raise a `UserError` unless `name` is None or a logger of `LOGGERS` whose package is installed."""
    if name is not None and find_spec(one_of("logger", name, LOGGERS)) is None:
        raise UserError(f"--logger {name} needs an extra package: pip install 'kdad[{name}]'")


def _logger(name: str | None, folder: Path) -> Any:
    """Lightning's logger `tensorboard` or `wandb`, writing to `<folder>/logs`; False for None."""
    if name is None:
        return False
    from pytorch_lightning import loggers

    if name == "wandb":
        return loggers.WandbLogger(project="kdad", name="/".join(folder.parts[-3:]), save_dir=_made(folder / "logs"))
    return loggers.TensorBoardLogger(folder, name="logs", version="")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _quiet_lightning() -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
