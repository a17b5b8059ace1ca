"""A command line whose every task is the tiny one, as a program, so that runs of several processes can start it again.

With FATAL_EPOCH set, the process of rank FATAL_RANK is killed in that epoch, counted from 0. With TWICE set, the
command is run twice; what counts is how the second ends.
"""

import os
import signal
import sys

from helpers.miniatures import TinyTask

import kdad.data.loading
from kdad.cli import main
from kdad.training import distributed
from kdad.training.distillation import Distillation

step = Distillation.training_step


def fatal_step(module, batch, index):
    if (distributed.rank(), module.current_epoch) == (int(os.environ["FATAL_RANK"]), int(os.environ["FATAL_EPOCH"])):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(module, batch, index)


if __name__ == "__main__":
    kdad.data.loading.load_task = lambda _, normal_class, *sizes: TinyTask(normal_class)
    if "FATAL_EPOCH" in os.environ:
        Distillation.training_step = fatal_step
    status = main()
    sys.exit(main() if "TWICE" in os.environ else status)
