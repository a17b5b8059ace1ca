"""Training of a sweep's students on many workers, each of which loads the teacher once."""

from collections.abc import Sequence
from dataclasses import replace

from tqdm import tqdm

from kdad.cluster.joining import check_shared, ray_cluster, workers
from kdad.networks.teachers.loading import Teacher
from kdad.training.sweep import Completion, PendingRun, Plan

RETRIES = 3  # after losing a worker; a student continues from its last finished epoch


def complete_with_ray(plan: Plan, _: Teacher, pending: Sequence[PendingRun]) -> None:
    """Train and evaluate the students on all workers of a cluster, with one progress bar.

    Raises:
        UserError, WorkFailed: see `kdad.cluster.joining.ray_cluster`; what is finished is kept.
    """
    with ray_cluster() as ray:
        check_shared(ray, plan.out)
        from ray.util import ActorPool

        count, each = workers(ray)
        plan = replace(plan, out=plan.out.resolve())
        worker = ray.remote(**each, max_restarts=-1, max_task_retries=RETRIES)(Worker)
        pool = ActorPool([worker.remote(plan) for _ in range(min(count, len(pending)))])
        wanted = [replace(each, folder=each.folder.resolve()) for each in pending]
        done = pool.map_unordered(lambda actor, each: actor.complete.remote(each), wanted)
        for _ in tqdm(done, total=len(wanted), unit="student", dynamic_ncols=True):
            pass


class Worker:
    """A process of the cluster with its own copy of the teacher."""

    def __init__(self, plan: Plan):
        self._completion = Completion(plan, plan.load_teacher())

    def complete(self, pending: PendingRun) -> None:
        """Train and evaluate one student."""
        self._completion.complete(pending)
