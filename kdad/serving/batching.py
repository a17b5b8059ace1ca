"""Dynamic batching: one thread scores all requests, and images waiting at the same time form a batch."""

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
    """One image (3, H, W) to be scored, and the future for its prediction."""

    detector: Detector
    image: Tensor
    fpr: float | None
    answer: "Future[Prediction]"

    @property
    def kind(self) -> Hashable:
        """Key shared by images that can be scored in one batch."""
        return id(self.detector), self.image.shape, self.fpr


class Batcher:
    """Scores images in a separate thread.

    Requests do not wait for a batch to fill: images that arrive during a batch form the next one.

    Args:
        judged: called with the size of every batch.
    """

    def __init__(self, judged: Callable[[int], Any] = lambda size: None):
        self._judged = judged
        self._waiting: Queue[PendingImage | None] = Queue()
        self._thread = Thread(target=self._work, name="judging", daemon=True)
        self._thread.start()

    def ask(self, detector: Detector, image: Tensor, fpr: float | None) -> "Future[Prediction]":
        """Future prediction for one uint8 image (3, H, W), as from `Detector.predict` with B = 1."""
        answer: Future[Prediction] = Future()
        self._waiting.put(PendingImage(detector, image, fpr, answer))
        return answer

    def close(self) -> None:
        """Answer pending requests, and stop."""
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
                if question.answer.set_running_or_notify_cancel():  # False if the request was cancelled
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
    except Exception as error:  # report any error to the requests, and keep serving
        for question in questions:
            question.answer.set_exception(error)
        return
    for question, answer in zip(questions, answers, strict=True):
        question.answer.set_result(answer)
