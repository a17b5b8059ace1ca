"""What becomes of memory that was freed, and what is kept where."""

import os
import platform
import subprocess
import sys

import psutil
import pytest
import torch

from kdad import devices
from kdad.devices import kept_on

PROGRAM = """
import resource, torch
import kdad.devices
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):  # until the heap has grown to what this takes
    torch.ones(50_000_000)
before = faults()
for _ in range(10):
    torch.ones(50_000_000)
print(faults() - before, kdad.devices.keep_freed_memory())
"""


def run(**settings: str) -> tuple[int, bool]:
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name and "GLIBC" not in name}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment | settings, capture_output=True, text=True, check=True
    )
    faults, kept = done.stdout.split()
    return int(faults), kept == "True"


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc gives large blocks back and can be told not to"
)
def test_large_blocks_are_used_again_instead_of_being_cleared_by_the_kernel():
    faults, kept = run()
    usual, _ = run(MALLOC_TRIM_THRESHOLD_="131072")
    assert kept
    assert usual > 1000 > 10 * faults


def test_who_has_set_how_memory_is_kept_is_not_overruled():
    _, kept = run(MALLOC_MMAP_THRESHOLD_="131072")
    assert not kept


def test_what_takes_too_much_of_a_devices_memory_stays_where_it_is(monkeypatch):
    tensor, elsewhere = torch.zeros(1000), torch.device("meta")
    monkeypatch.setattr(devices, "free_bytes", lambda device: 8000)
    assert kept_on(elsewhere, tensor).device == elsewhere
    monkeypatch.setattr(devices, "free_bytes", lambda device: 7999)
    assert kept_on(elsewhere, tensor) is tensor
    assert kept_on(tensor.device, tensor) is tensor


MIB = 2**20


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/app", "app", ("memory.max", "memory.current", "inactive_file")),
        ("0::/", ".", ("memory.max", "memory.current", "inactive_file")),
        ("9:memory:/app", "memory/app", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ],
)
def test_a_container_has_only_so_much_memory_as_it_is_given(tmp_path, line, folder, names):
    limit, used, cached = names
    group = tmp_path / folder
    group.mkdir(parents=True, exist_ok=True)
    (tmp_path / "cgroup").write_text(f"4:cpu,cpuacct:/other\n{line}\n")
    (group / limit).write_text(f"{2000 * MIB}\n")
    (group / used).write_text(f"{1500 * MIB}\n")
    (group / "memory.stat").write_text(f"anon 7\n{cached} {300 * MIB}\n")
    assert list(devices._free_in_cgroups(tmp_path / "cgroup", tmp_path)) == [800 * MIB]
    (group / limit).write_text("max\n")
    assert list(devices._free_in_cgroups(tmp_path / "cgroup", tmp_path)) == []
    assert list(devices._free_in_cgroups(tmp_path / "nothing", tmp_path)) == []
    assert devices.free_bytes(torch.device("cpu")) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc gives memory back when asked")
def test_memory_that_was_freed_is_given_back():
    process = psutil.Process()
    blocks = [torch.ones(2**18) for _ in range(200)]  # a megabyte each
    kept = blocks[::20]
    del blocks
    before = process.memory_info().rss
    devices.give_memory_back()
    assert before - process.memory_info().rss > 100 * 2**20
    assert all(bool(block.all()) for block in kept)


def test_one_thread_computes_inside_the_block_alone():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), devices.one_thread():
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
