"""One thread that judges for many: images that are asked about at the same time are judged together."""

from collections import defaultdict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Queue
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from kdad.data.images import BATCH_IMAGES
from kdad.detection.detector import Detector, Prediction


@dataclass(frozen=True)
class PendingImage:
    """One image (3, H, W) to be judged, and where the answer goes."""

    detector: Detector
    image: Tensor
    fpr: float | None
    answer: "Future[Prediction]"

    @property
    def kind(self) -> Hashable:
        """What questions that can be answered together have in common."""
        return id(self.detector), self.image.shape, self.fpr


class Batcher:
    """Answers questions about images in one thread of its own.

    Nobody waits for a batch to fill: while some are judged, others come, and those are the next batch.

    Args:
        judged: told the size of every batch.
    """

    def __init__(self, judged: Callable[[int], Any] = lambda size: None):
        self._judged = judged
        self._waiting: Queue[PendingImage | None] = Queue()
        self._thread = Thread(target=self._work, name="judging", daemon=True)
        self._thread.start()

    def ask(self, detector: Detector, image: Tensor, fpr: float | None) -> "Future[Prediction]":
        """The prediction to come for one uint8 image (3, H, W), as `Detector.predict` gives it, of B = 1."""
        answer: Future[Prediction] = Future()
        self._waiting.put(PendingImage(detector, image, fpr, answer))
        return answer

    def close(self) -> None:
        """Answer what was asked, and end."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            asked, last = [first], False
            while not last and len(asked) < BATCH_IMAGES and not self._waiting.empty():
                following = self._waiting.get()
                last = following is None
                asked += [] if following is None else [following]
            alike = defaultdict(list)
            for question in asked:
                if question.answer.set_running_or_notify_cancel():  # False where nobody waits for it any more
                    alike[question.kind].append(question)
            for questions in alike.values():
                self._judged(len(questions))
                _answer(questions)
            if last:
                return


def _answer(questions: list[PendingImage]) -> None:
    try:
        images = torch.stack([question.image for question in questions])
        together = questions[0].detector.predict(images, fpr=questions[0].fpr)
        answers = [together.only(index) for index in range(len(questions))]
    except Exception as error:  # whatever it is, those who asked are told, and the next are answered
        for question in questions:
            question.answer.set_exception(error)
        return
    for question, answer in zip(questions, answers, strict=True):
        question.answer.set_result(answer)
