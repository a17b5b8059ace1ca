"""What becomes of memory that was freed."""

import os
import platform
import subprocess
import sys

import psutil
import pytest
import torch

from kdad.memory import MALLOC_SETTINGS, give_memory_back, keep_freed_memory

pytestmark = pytest.mark.slow

PROGRAM = """
import resource, torch
from kdad.memory import keep_freed_memory
kept = keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(12):  # until the heap has grown to what this takes
    torch.ones(20_000_000)
before = faults()
for _ in range(10):
    torch.ones(20_000_000)
print(faults() - before, kept)
"""


def run_program(program: str, **settings: str) -> str:
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name and "GLIBC" not in name}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment | settings, capture_output=True, text=True, check=True).stdout


def run(**settings: str) -> tuple[int, bool]:
    faults, kept = run_program(PROGRAM, **settings).split()
    return int(faults), kept == "True"


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc gives large blocks back and can be told not to"
)
def test_large_blocks_are_used_again_instead_of_being_cleared_by_the_kernel():
    faults, kept = run()
    usual, _ = run(MALLOC_TRIM_THRESHOLD_="131072")
    assert kept
    assert usual > 1000 > 10 * faults


@pytest.mark.parametrize("name", MALLOC_SETTINGS)
def test_who_has_set_how_memory_is_kept_is_not_overruled(name, monkeypatch):
    monkeypatch.setenv(name, "131072")
    assert not keep_freed_memory.__wrapped__()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives large blocks back")
def test_importing_kdad_leaves_its_hosts_allocator_alone():
    program = PROGRAM.replace("kept = keep_freed_memory()", "import kdad.detection.detector\nkept = None")
    faults = int(run_program(program).split()[0])
    assert faults > 1000


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc gives memory back when asked")
def test_memory_that_was_freed_is_given_back():
    process = psutil.Process()
    blocks = [torch.ones(2**18) for _ in range(200)]  # a megabyte each
    kept = blocks[::20]
    del blocks
    before = process.memory_info().rss
    give_memory_back()
    assert before - process.memory_info().rss > 100 * 2**20
    assert all(bool(block.all()) for block in kept)
