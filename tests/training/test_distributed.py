"""One student trained by several processes: the same student, whole files, and no process left behind."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest
import torch
from helpers import tiny_train
from helpers.miniatures import TinyTask, save_vit_teacher
from lightning_fabric.utilities.rank_zero import rank_zero_only
from safetensors.torch import load_file

from benchmarks.browser import free_port
from kdad.cli import main
from kdad.storage import layout
from kdad.storage import student_folder as store
from kdad.storage.history import read_history
from kdad.training.distributed import MEETING, PATIENCE, DistributedConfig, join
from kdad.training.loop import CHECKPOINT, EpochBatches

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("distributed")]

PROGRAM = Path(tiny_train.__file__)
ROOT = PROGRAM.parent.parent.parent
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port")


@pytest.fixture
def environment():
    """Of a process that nobody has started together with others; each computes with one thread.

    The program imports torch before `train` can tell it to be brief.
    """
    spread_by = ("SLURM", "TORCHELASTIC", "MASTER_", "LOCAL_", "WORLD_", "NODE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith((*spread_by, "RANK"))}
    brief = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "FATAL"}
    return kept | brief | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


def tiny(_, normal_class: str, *sizes) -> TinyTask:
    """Instead of `load_task`."""
    return TinyTask(normal_class)


@pytest.fixture(scope="session")
def request_of_one(tmp_path_factory):
    """A training without batch statistics or mirror images: how images are shared out makes no difference."""
    vit_folder = save_vit_teacher(tmp_path_factory.mktemp("teachers") / "compact-vit")
    recipe = ("--epochs", "2", "--batch-size", "8", "--device", "cpu")
    return ["train", "--dataset", "patterns", "--normal-class", "dots", "--teacher", str(vit_folder), *recipe]


@pytest.fixture
def command(request_of_one, tmp_path):
    return [str(PROGRAM), *request_of_one, "--out", str(tmp_path / "several")]


@pytest.fixture
def train_here(request_of_one, tmp_path, monkeypatch, capsys):
    """The same in this process, up to where it would meet others; returns its exit status and what it said."""
    monkeypatch.setattr("kdad.data.loading.load_task", tiny)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    for name in MEETING[1:]:
        monkeypatch.delenv(name, raising=False)

    def train(*options: str) -> tuple[int, str]:
        status = main([*request_of_one, "--out", str(tmp_path / "several"), *options])
        return status, capsys.readouterr().err

    # Processes keep for good who they are and how they meet, and part when they end; this one does not end.
    with patch.dict(os.environ), patch.object(rank_zero_only, "rank", 0), patch("atexit.register"):
        yield train


def run(command, environment, seconds: float = 120, **more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command], env=environment | more, capture_output=True, text=True, timeout=seconds, cwd=ROOT
    )


def last_line(ended: subprocess.CompletedProcess) -> str:
    return ended.stderr.replace("\r", "\n").strip().splitlines()[-1]


def left_behind(out: Path) -> list[int]:
    """Processes that train below a folder."""
    found = psutil.process_iter(["cmdline"])
    return [process.pid for process in found if str(out) in (process.info["cmdline"] or [])]


def figures(out: Path) -> tuple[list[dict], dict, dict[str, torch.Tensor]]:
    """Losses, evaluation, and calibration of the only student in a folder."""
    (folder,) = store.find_students(out)
    losses = [{**row, "seconds": None} for row in read_history(folder)]
    return losses, store.load_evaluation(folder) or {}, load_file(folder / layout.CALIBRATION)


@pytest.fixture(scope="session")
def alone(request_of_one, tmp_path_factory):
    """Where one process has trained."""
    out = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdad.data.loading.load_task", tiny)
        assert main([*request_of_one, "--out", str(out)]) == 0
    return out


def assert_the_student_that_one_trains(alone: Path, several: Path) -> None:
    one, several = figures(alone), figures(several)
    for of_one, of_several in zip(one[0], several[0], strict=True):
        for name in ("loss", "auroc"):
            assert of_several[name] == pytest.approx(of_one[name], abs=0.02), (of_one, of_several)
    assert several[1]["auroc"] == pytest.approx(one[1]["auroc"], abs=0.02)
    torch.testing.assert_close(several[2]["layer_errors"], one[2]["layer_errors"], atol=0.02, rtol=0.02)


def test_torchrun_starts_processes_that_train_the_student_that_one_trains(command, environment, alone, tmp_path):
    ended = run([*TORCHRUN, str(free_port()), *command], environment)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("student folder: ") == 1
    assert_the_student_that_one_trains(alone, tmp_path / "several")
    assert not left_behind(tmp_path / "several")


def test_slurm_starts_processes_that_train_the_student_that_one_trains(
    command, environment, alone, tmp_path, train_here
):
    """One task on each of two nodes that are this machine; the first is this process."""
    slurm = {
        "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7",
        "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NAME": "train", "SLURM_LOCALID": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    options = ("--num-nodes", "2", "--timeout", "120")
    second = environment | slurm | {"SLURM_PROCID": "1", "SLURM_NODEID": "1"}
    os.environ |= slurm | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"}
    with subprocess.Popen([sys.executable, *command, *options], env=second, cwd=ROOT, stdout=subprocess.PIPE) as other:
        status, said_here = train_here(*options)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        said, _ = other.communicate()
    assert status == 0, said_here
    assert (other.returncode, said) == (0, b"")
    assert_the_student_that_one_trains(alone, tmp_path / "several")


def test_a_killed_process_ends_the_run_which_is_resumed(command, environment, alone, tmp_path):
    """The processes of the second run ask for the same once more, which all refuse, and one says."""
    command = [*command, "--devices", "2"]
    ended = run(command, environment, FATAL_RANK="1", FATAL_EPOCH="1")
    assert ended.returncode == 1
    assert not left_behind(tmp_path / "several")
    assert last_line(ended) == (
        "kdad: another process of this run has ended; the same command goes on from the last finished epoch"
    )
    (checkpoint,) = (tmp_path / "several").rglob(CHECKPOINT)
    assert [row["epoch"] for row in read_history(checkpoint.parent)] == [1, 1]
    again = run(command, environment, TWICE="yes")
    assert again.stdout.count("student folder: ") == 1, again.stderr
    assert_the_student_that_one_trains(alone, tmp_path / "several")
    assert not checkpoint.exists()
    assert again.returncode == 2
    assert "holds a complete student; use --overwrite" in last_line(again)
    assert again.stderr.count("kdad: ") == 1
    assert not left_behind(tmp_path / "several")


def test_a_process_that_cannot_reach_the_others_says_so(train_here, monkeypatch):
    port = str(free_port())
    for name, value in zip(MEETING, ("127.0.0.1", port, "1"), strict=True):
        monkeypatch.setenv(name, value)
    status, said = train_here("--num-nodes", "2", "--timeout", "1")
    assert status == 1
    assert said.count("\n") == 1
    assert said.startswith(f"kdad: the 2 processes of this run did not meet at 127.0.0.1:{port} within 1 s (")


def test_several_machines_need_a_place_to_meet(train_here):
    assert train_here("--num-nodes", "2") == (
        2,
        "kdad: several machines meet by MASTER_ADDR, MASTER_PORT, NODE_RANK; not set: MASTER_PORT, NODE_RANK. Set "
        "them on each, or start the command with torchrun or srun\n",
    )


def test_more_processes_than_a_batch_can_be_shared_by_are_refused(train_here):
    assert train_here("--devices", "5") == (2, "kdad: 5 processes need batches of 10 images or more, not of 8\n")


def test_a_device_that_several_processes_cannot_use_is_refused(refusal):
    assert "mps has no way to share" in refusal(join, DistributedConfig(2), "mps")
    if torch.cuda.device_count() < 9:
        assert refusal(join, DistributedConfig(9), "cuda").startswith("--devices 9: this machine has")


@pytest.mark.parametrize("n", [12, 13, 15, 16])
def test_processes_share_every_batch_out_equally(n):
    alone = list(EpochBatches(n, 6, seed=1))
    shares = [list(EpochBatches(n, 6, seed=1, rank=rank, world_size=2)) for rank in (0, 1)]
    assert [len(share) for share in shares] == [len(EpochBatches(n, 6, seed=1, world_size=2))] * 2
    for batch, first, second in zip(alone, *shares, strict=False):
        assert len(first) == len(second) > 1
        assert torch.equal(torch.cat([first, second]), batch[: 2 * len(first)])


def test_torchrun_says_how_many_there_are(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert DistributedConfig.detect(None, None) == DistributedConfig(4, 2, PATIENCE)
    assert DistributedConfig.detect(3, 1).world_size == 3
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert DistributedConfig.detect(None, None) == DistributedConfig()
