"""Scoring of images on many workers, with Ray Data."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from kdad.cluster.joining import check_shared, ray_cluster, workers
from kdad.detection.bulk import ImageFile, Outcome, Part, ScoringJob, judge_part
from kdad.detection.detector import Detector


class Worker:
    """A loaded student that judges part after part; Ray makes one on each processor or GPU."""

    def __init__(self, job: ScoringJob):
        self.job = job
        self.detector = Detector.load(job.student, teacher=job.teacher, device=job.device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        outcome = judge_part(
            self.detector, self.job, Part(tuple(ImageFile(*image) for image in json.loads(row["images"])))
        )
        return {"judged": outcome.judged, "unreadable": list(outcome.unreadable)}


def judge_with_ray(job: ScoringJob, parts: Sequence[Part]) -> Iterator[Outcome]:
    """Judge the parts on all workers of a cluster; what a lost worker was at is done again by another.

    Raises:
        UserError, WorkFailed: see `kdad.cluster.joining.ray_cluster`.
    """
    if not parts:
        return
    with ray_cluster() as ray:
        check_shared(ray, job.out)
        from ray.data import ActorPoolStrategy, DataContext, from_items

        count, each = workers(ray)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        job = replace(job, out=job.out.resolve())
        work = from_items([{"images": json.dumps(part.images)} for part in parts], override_num_blocks=len(parts))
        pool = ActorPoolStrategy(min_size=1, max_size=min(count, len(parts)))
        done = work.map(Worker, fn_constructor_args=(job,), compute=pool, **each)
        for row in done.iter_rows():
            yield Outcome(int(row["judged"]), tuple(row["unreadable"]))
