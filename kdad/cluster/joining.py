"""Joining a Ray cluster, and what its errors mean."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from kdad.errors import UserError, WorkFailed, one_line

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}  # it tells nobody of itself
INSTALL = "the engine ray needs an extra package: pip install 'kdad[ray]'"


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """Ray, connected for the length of the block to the cluster that RAY_ADDRESS names or that runs on this machine.

    Where there is none, one of this machine alone is started, and ends with the block.

    Raises:
        UserError: Ray is not installed, or no cluster is where it should be, or it is of another version; or what a
            worker raised.
        WorkFailed: workers were lost again and again; or what a worker raised.
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
    except (RuntimeError, ConnectionError, ValueError) as error:  # versions that differ, or nobody at an address
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
    """How many workers the cluster has room for, and what each of them takes: a GPU, or else a processor."""
    resources = ray.cluster_resources()
    if graphics := int(resources.get("GPU", 0)):
        return graphics, {"num_gpus": 1, "num_cpus": 1}
    return max(1, int(resources.get("CPU", 1))), {"num_cpus": 1}


def check_shared(ray: Any, folder: Path) -> None:
    """Raise a `UserError` unless every machine of the cluster sees what is written to `folder`."""
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
    """What a worker raised, as if it had been raised here."""
    cause = error
    while cause is not None and not isinstance(cause, UserError | WorkFailed):
        cause = getattr(cause, "cause", None) or cause.__cause__
    if cause is None:
        return WorkFailed(f"a worker failed: {one_line(error.cause or error)}")
    return UserError(str(cause.args[0])) if isinstance(cause, UserError) else WorkFailed(str(cause.args[0]))
