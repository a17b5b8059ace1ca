"""Joining a Ray cluster, and translating its errors."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from kdad.errors import UserError, WorkFailed, one_line

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}  # no telemetry
INSTALL = "the engine ray needs an extra package: pip install 'kdad[ray]'"


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """Connect Ray, within the block, to the cluster at RAY_ADDRESS or on this machine.

    If there is none, a local one is started, and stopped after the block.

    Raises:
        UserError: Ray is not installed, there is no cluster at the address, or its version differs; or raised by a
            worker.
        WorkFailed: workers were lost repeatedly; or raised by a worker.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ModuleNotFoundError:
        raise UserError(INSTALL) from None
    for chatty in ("ray", "ray.data"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    already = ray.is_initialized()
    try:
        if not already:
            ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False, configure_logging=False)
    except (RuntimeError, ConnectionError, ValueError) as error:  # version mismatch, or no cluster at the address
        raise UserError(f"no Ray cluster could be joined ({one_line(error)})") from None
    try:
        yield ray
    except ray.exceptions.RayTaskError as error:
        raise _raised_by_a_worker(error) from None
    except ray.exceptions.RayError as error:
        raise WorkFailed(f"Ray: {one_line(error)}; the same command goes on with what is left") from None
    finally:
        if not already:
            ray.shutdown()


def workers(ray: Any) -> tuple[int, dict[str, int]]:
    """Number of workers that fit on the cluster, and the resources of each: a GPU, or else a CPU core."""
    resources = ray.cluster_resources()
    if graphics := int(resources.get("GPU", 0)):
        return graphics, {"num_gpus": 1, "num_cpus": 1}
    return max(1, int(resources.get("CPU", 1))), {"num_cpus": 1}


def check_shared(ray: Any, folder: Path) -> None:
    """Raise a `UserError` unless `folder` is shared by all machines of the cluster."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder.resolve() / f".{uuid4().hex}"
    probe.touch()
    try:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        seen = ray.remote(num_cpus=0)(os.path.exists)
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
        answers = ray.get([seen.options(scheduling_strategy=place).remote(str(probe)) for place in places])
    finally:
        probe.unlink()
    if not all(answers):
        raise UserError(f"not every machine of the cluster sees {folder}; name a folder that all of them share")


def _raised_by_a_worker(error: Any) -> Exception:
    """Convert a worker's exception to one that is raised locally."""
    cause = error
    while cause is not None and not isinstance(cause, UserError | WorkFailed):
        cause = getattr(cause, "cause", None) or cause.__cause__
    if cause is None:
        return WorkFailed(f"a worker failed: {one_line(error.cause or error)}")
    return UserError(str(cause.args[0])) if isinstance(cause, UserError) else WorkFailed(str(cause.args[0]))
