"""What is kept on which device, and how much memory is free."""

import pytest
import torch

from kdad import devices
from kdad.devices import move_if_it_fits


def test_what_takes_too_much_of_a_devices_memory_stays_where_it_is(monkeypatch):
    tensor, elsewhere = torch.zeros(1000), torch.device("meta")
    monkeypatch.setattr(devices, "free_bytes", lambda device: 8000)
    assert move_if_it_fits(elsewhere, tensor).device == elsewhere
    monkeypatch.setattr(devices, "free_bytes", lambda device: 7999)
    assert move_if_it_fits(elsewhere, tensor) is tensor
    assert move_if_it_fits(tensor.device, tensor) is tensor


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


def test_one_thread_computes_inside_the_block_alone():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), devices.one_thread():
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
