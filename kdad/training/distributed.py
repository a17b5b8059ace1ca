"""One training run in several processes, on one machine or more: start-up and communication.

Of the training itself nothing is here: Lightning's DDP averages the gradients. Processes are started by `torchrun`, by
SLURM's `srun`, or else by `join`.
"""

import atexit
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from kdad.errors import UserError, WorkFailed, one_line

Result = TypeVar("Result")
PATIENCE = 600  # seconds
SECONDS_BETWEEN_LOOKS, SECONDS_TO_END = 0.5, 15.0
MEETING = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
LOST = "another process of this run has ended; the same command goes on from the last finished epoch"


@dataclass(frozen=True)
class DistributedConfig:
    """The number of processes that train one student together.

    Args:
        devices: processes on each machine, one per GPU.
        nodes: machines.
        patience: how many seconds to wait for a process that does not answer.
    """

    devices: int = 1
    nodes: int = 1
    patience: float = PATIENCE

    @classmethod
    def detect(cls, devices: int | None, nodes: int | None, patience: float = PATIENCE) -> "DistributedConfig":
        """The numbers that were asked for; where there are none, those that `torchrun` gave to this process."""
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        machines = int(os.environ.get("WORLD_SIZE", local)) // local if "LOCAL_WORLD_SIZE" in os.environ else 1
        return cls(devices or local, nodes or machines, patience)

    @property
    def world_size(self) -> int:
        """The number of processes on all machines."""
        return self.devices * self.nodes

    def trainer_options(self, device: str) -> dict[str, Any]:
        """Arguments of Lightning's trainer. Batches are shared out by `kdad.training.loop`, not by Lightning."""
        if self.world_size == 1:
            return {"devices": 1}
        options = {"strategy": "ddp", "use_distributed_sampler": False, "sync_batchnorm": device == "cuda"}
        return {"devices": self.devices, "num_nodes": self.nodes, **options}


SINGLE_PROCESS = DistributedConfig()


def rank() -> int:
    """The rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def from_first(work: Callable[[], Result]) -> Result:
    """Run `work` in the first process alone and return its result in all of them; if it fails, all fail."""
    if world_size() == 1:
        return work()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = work()
        except (UserError, WorkFailed, OSError) as error:
            outcome[1] = error
    try:
        dist.broadcast_object_list(outcome, src=0)
    except RuntimeError as error:
        raise outcome[1] or (WorkFailed(LOST) if lost(error) else error) from None
    result, failure = outcome
    if failure is not None:
        raise SystemExit(1) if rank() else failure  # the first says why
    return cast(Result, result)


def gathered(part: Tensor) -> Tensor:
    """Concatenate the parts (n, …) of all processes, on the CPU."""
    parts: list[Any] = [part.cpu()] * world_size()
    if world_size() > 1:
        dist.all_gather_object(parts, part.cpu())
    return torch.cat(parts)


def lost(error: Exception) -> bool:
    """Whether an error means that another process does not answer; gloo has a message for it, and no type."""
    return world_size() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))


def join(config: DistributedConfig, device: str) -> None:
    """Start the other processes of this machine, if nobody else has, and meet all processes of the run.

    A process that is started here runs the command of this one again, from its first line.

    Raises:
        UserError: so many processes cannot be here, or do not fit how they were started.
        WorkFailed: they did not meet in time.
    """
    if config.world_size == 1 or dist.is_initialized():
        return
    _check(config, device)
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    started = TorchElasticEnvironment.detect() or SLURMEnvironment.detect() or "LOCAL_RANK" in os.environ
    if not started:
        missing = [name for name in MEETING if name not in os.environ]
        if config.nodes > 1 and missing:
            raise UserError(
                f"several machines meet by {', '.join(MEETING)}; not set: {', '.join(missing)}. Set them on each, or "
                "start the command with torchrun or srun"
            )
        _start_others(config, LightningEnvironment().main_port)
    for chatty in ("lightning_fabric", "pytorch_lightning"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    strategy = DDPStrategy(timeout=timedelta(seconds=config.patience))
    try:
        fabric = Fabric(
            accelerator=device,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy=strategy,
        )
        fabric.launch()
    except ValueError as error:  # Lightning's word for numbers that differ from torchrun's or SLURM's
        raise UserError(one_line(error)) from None
    except RuntimeError as error:
        place = ":".join(os.environ.get(name, "?") for name in MEETING[:2])
        raise WorkFailed(
            f"the {config.world_size} processes of this run did not meet at {place} within {config.patience:g} s "
            f"({one_line(error)})"
        ) from None
    atexit.register(dist.destroy_process_group)


def _check(config: DistributedConfig, device: str) -> None:
    if device == "mps":
        raise UserError("several processes need --device cuda or cpu: mps has no way to share gradients")
    if device == "cuda" and torch.cuda.device_count() < config.devices:
        raise UserError(f"--devices {config.devices}: this machine has {torch.cuda.device_count()}")


def _start_others(config: DistributedConfig, port: int) -> None:
    """Start the other processes of this machine, and end with the first of them that fails."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(port))
    os.environ.setdefault("NODE_RANK", "0")
    os.environ |= {"LOCAL_RANK": "0", "WORLD_SIZE": str(config.world_size)}
    others = {
        index: subprocess.Popen(_this_command(), env={**os.environ, "LOCAL_RANK": str(index)})
        for index in range(1, config.devices)
    }
    atexit.register(_end, others)
    threading.Thread(target=_watch, args=(others,), daemon=True).start()


def _this_command() -> list[str]:
    """The command that started this process."""
    module = sys.modules["__main__"].__spec__
    return [sys.executable, *([sys.argv[0]] if module is None else ["-m", module.name]), *sys.argv[1:]]


def _watch(others: Mapping[int, "subprocess.Popen[bytes]"]) -> None:
    """Wait for the other processes; if one fails, end this process, too, unless it ends by itself."""
    while {other.poll() for other in others.values()} in ({None}, {None, 0}):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    failed = [f"{index} ({other.returncode})" for index, other in others.items() if other.poll()]
    if failed:
        time.sleep(SECONDS_TO_END)
        print(f"kdad: process {', '.join(failed)} of this run failed, and with it the run", file=sys.stderr)
        _end(others)
        os._exit(1)  # the main thread waits for an answer that will not come


def _end(others: Mapping[int, "subprocess.Popen[bytes]"]) -> None:
    """Kill and reap whatever processes are left."""
    for other in others.values():
        if other.poll() is None:
            other.kill()
            other.wait()
