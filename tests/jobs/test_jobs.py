"""Background jobs: most of them a small script that reports as `kdad train --job` does, some the real thing."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from helpers.miniatures import ROOT, SMALL_KDAD, SmallDefectsTask, TinyTask, eventually

from kdad import cli
from kdad.errors import UserError
from kdad.jobs import manager, reporting, status
from kdad.networks.recipes import Recipe
from kdad.progress import running
from kdad.storage import layout
from kdad.storage import student_folder as store
from kdad.storage.history import read_history
from kdad.training.distillation import stages, train_student
from kdad.training.loop import Progress

# It trains until there is a file `go` beside the job folders; its first argument says how it ends.
SCRIPT = """
import signal, sys, time
from pathlib import Path
from kdad.jobs.reporting import reporting
how, folder = sys.argv[1], Path(sys.argv[-1])
if how == "refuse":
    sys.exit("kdad: no such class")
with reporting(folder) as reporter:
    turns = open(folder.parent / "turns", "a", buffering=1)
    turns.write(f"took {folder.name}\\n")
    if how == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    reporter.progress({"phase": "training", "epoch": 2, "epochs": 4, "position": 1.5, "loss": 0.25})
    print("10%", "20%", sep="\\r", flush=True)
    while not (folder.parent / "go").exists():
        time.sleep(0.02)
    if how == "fail":
        raise RuntimeError("the loss became NaN")
    turns.write(f"left {folder.name}\\n")
"""


@pytest.fixture(autouse=True)
def quick_heartbeat(monkeypatch):
    monkeypatch.setattr(reporting, "HEARTBEAT_SECONDS", 0.05)


@pytest.fixture
def root(tmp_path):
    """A jobs root; what is still alive at the end of a test is stopped."""
    root = tmp_path / "jobs"
    yield root
    for job in manager.find_all(root):
        manager.stop(job, grace=0.1)


@pytest.fixture
def command(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return [sys.executable, str(script)]


@pytest.fixture
def start(root, command):
    return lambda how="finish": manager.start(root, [how], root / "student", command)


def wait_for(job, *states: str, seconds: float = 30):
    until = time.monotonic() + seconds
    while (job := manager.find(job.folder)).state not in states:
        assert time.monotonic() < until, f"still {job.state}: {manager.log_tail(job.folder, 20)}"
        time.sleep(0.02)
    return job


def go(root):
    (root / "go").touch()


def wait_for_loss(job):
    eventually(lambda: manager.find(job.folder).status.loss is not None)
    return manager.find(job.folder)


def test_a_job_runs_reports_and_finishes(start, root):
    job = start()
    assert job.active and job.status.pid != os.getpid()
    job = wait_for_loss(job)
    assert (job.state, job.status.epoch, job.status.epochs, job.status.loss) == ("running", 2, 4, 0.25)
    go(root)
    job = wait_for(job, "finished")
    assert not job.active
    assert manager.read_trace(job.folder) == [(1.5, 0.25)]
    assert manager.log_tail(job.folder, 5) == "20%"


def test_jobs_take_turns(start, root):
    first = wait_for(start(), "running")
    second, third = start(), start()
    assert [job.state for job in manager.find_all(root)] == ["running", "queued", "queued"]
    manager.stop(first)
    go(root)
    for job in (second, third):
        wait_for(job, "finished")
    turns = (root / "turns").read_text().split("\n")[1:-1]  # the first was stopped
    assert [turns[0], turns[2]] == [turns[1].replace("left", "took"), turns[3].replace("left", "took")]
    assert [turns[0], turns[2]] == [f"took {second.folder.name}", f"took {third.folder.name}"]  # first in, first out


def test_a_job_gives_way_with_its_whole_session(start):
    def session(pid):  # nothing for the sessions that were there before the kernel began to tell them apart
        file = Path(f"/proc/{pid}/autogroup")
        return file.read_text().split() if file.is_file() else []

    ours = session("self")
    job = wait_for(start(), "running")
    assert os.getpriority(os.PRIO_PROCESS, job.status.pid) == os.nice(0) + reporting.NICE
    assert session("self") == ours, "the job's is another session"
    if not session(job.status.pid):
        pytest.skip("this kernel does not schedule sessions against each other")
    assert session(job.status.pid)[-1] == str(reporting.NICE)


def test_a_process_in_the_session_of_others_leaves_that_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr(reporting, "AUTOGROUP", tmp_path / "autogroup")
    monkeypatch.setattr(reporting.os, "nice", lambda by: by)
    monkeypatch.setattr(reporting.os, "getsid", lambda pid: os.getpid() + 1)
    reporting.give_way()
    assert not reporting.AUTOGROUP.exists()


def test_jobs_of_another_root_do_not_wait(start, tmp_path, command):
    wait_for(start(), "running")
    other = wait_for(manager.start(tmp_path / "other", ["finish"], tmp_path, command), "running")
    manager.stop(other)


@pytest.mark.parametrize("state", ["running", "queued"])
def test_a_stopped_job_is_gone_and_says_so(start, state):
    ahead = wait_for(start(), "running")
    job = ahead if state == "running" else start()
    assert job.state == state
    stopped = manager.stop(job)
    assert stopped.state == "stopped"
    assert status.process_started(job.status.pid) is None
    assert manager.find(ahead.folder).state == ("stopped" if job is ahead else "running")


def test_a_process_that_does_not_listen_is_killed_after_the_grace(start):
    job = wait_for_loss(start("deaf"))
    assert manager.stop(job, grace=0.2).state == "stopped"
    assert status.process_started(job.status.pid) is None


def test_a_killed_process_is_shown_as_such_and_the_next_one_goes_on(start):
    job = wait_for(start(), "running")
    following = start()
    os.kill(job.status.pid, signal.SIGKILL)
    assert wait_for(job, "killed").status.state == "running"
    wait_for(following, "running")
    assert manager.stop(job).state == "killed"


def test_a_process_without_a_heartbeat_is_silent_and_can_be_stopped(start, monkeypatch):
    job = wait_for(start(), "running")
    os.kill(job.status.pid, signal.SIGSTOP)
    monkeypatch.setattr(manager, "SILENT_AFTER_SECONDS", 0.5)
    assert wait_for(job, "silent").active
    assert manager.stop(job, grace=0.2).state == "stopped"


def test_another_process_with_the_same_number_is_not_the_job(start):
    job = wait_for(start(), "running")
    os.kill(job.status.pid, signal.SIGKILL)
    wait_for(job, "killed")
    impostor = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    status.write_status(job.folder, replace(job.status, pid=impostor.pid, heartbeat=time.time()))
    assert manager.find(job.folder).state == "killed"
    assert manager.stop(job).state == "killed"
    assert impostor.poll() is None
    impostor.kill()
    impostor.wait()


def test_a_failure_leaves_its_reason(start, root):
    root.mkdir()
    go(root)
    assert wait_for(start("fail"), "failed").status.message == "the loss became NaN"


def test_a_command_that_is_refused_has_failed_at_once(start):
    job = start("refuse")
    assert (job.state, job.status.message) == ("failed", "kdad: no such class")


def test_an_ended_job_is_resumed_under_the_same_name(start, root, command):
    job = manager.stop(wait_for_loss(start()))
    again = wait_for(manager.resume(job, command), "running")
    assert again.folder == job.folder
    assert again.status.pid != job.status.pid
    with pytest.raises(UserError, match="has not ended"):
        manager.resume(job, command)
    go(root)
    wait_for(job, "finished")


def test_only_an_ended_job_is_removed(start):
    job = wait_for(start(), "running")
    with pytest.raises(UserError, match="stop this job"):
        manager.remove(job)
    manager.remove(manager.stop(job))
    assert not job.folder.exists()


def test_a_job_outlives_whoever_started_it(root, command):
    starter = (
        "from kdad.jobs import manager\nfrom pathlib import Path\n"
        f"manager.start(Path({str(root)!r}), ['finish'], Path('student'), {command!r})"
    )
    subprocess.run([sys.executable, "-c", starter], cwd=ROOT, check=True)
    (job,) = manager.find_all(root)
    assert wait_for_loss(job).state == "running"
    assert manager.stop(job).state == "stopped"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"arguments": 1}'])
def test_a_damaged_request_is_no_job(root, content):
    (root / "a").mkdir(parents=True)
    (root / "a" / status.REQUEST).write_text(content)
    assert manager.find_all(root) == []


def test_a_trace_forgets_what_a_resumed_run_repeats(tmp_path):
    (tmp_path / status.TRACE).write_text("0.5,4\n1,3\n1.5,2.9\n1.25,2.8\n1.5,2\n")
    assert manager.read_trace(tmp_path) == [(0.5, 4), (1, 3), (1.25, 2.8), (1.5, 2)]
    assert manager.read_trace(tmp_path / "none") == []


def test_progress_is_handed_over_with_the_stage_and_the_time_left(tmp_path, vgg_teacher):
    said: list[dict] = []
    task, recipe = TinyTask(), Recipe(epochs=3, batch_size=8)
    with running(lambda: stages(task, recipe), said.append):
        folder = train_student(
            task, vgg_teacher, tmp_path, recipe=recipe, device="cpu", callbacks=[Progress(said.append)]
        )
    assert {"epochs": 3} in said
    phases = [values["phase"] for values in said if values.get("phase")]
    assert list(dict.fromkeys(phases)) == ["teacher features", "training", "calibrating"]
    assert said[-1]["done"] == 1
    assert said[-1]["stages"].keys() == set(phases)
    epochs = [values for values in said if "position" in values]
    ends = [values["position"] for values in epochs if values["position"] % 1 == 0]
    assert list(dict.fromkeys(ends)) == [1, 2, 3]  # twice, where an epoch's last batch was reported too
    validation = [row["auroc"] for row in read_history(folder) if row["split"] == "validation"]
    assert epochs[-1]["auroc"] == pytest.approx(validation[-1], abs=1e-6)
    assert all(status.Status(**values) for values in said)


@pytest.mark.slow
def test_a_real_run_that_was_stopped_resumes_to_an_equal_end(root, tmp_path, vgg_folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    monkeypatch.setattr("kdad.data.loading.load_task", lambda _, normal_class, *sizes: SmallDefectsTask(normal_class))
    task, command = f"--dataset=patterns-defects --normal-class=dots --teacher={vgg_folder}", [sys.executable, "-c"]
    request = ["train", *task.split(), "--epochs=15", "--batch-size=8", "--device=cpu"]
    broken, whole = (
        layout.student_folder(tmp_path / name, "patterns-defects", str(vgg_folder), "dots", 0)
        for name in ("broken", "whole")
    )
    job = manager.start(root, [*request, f"--out={tmp_path / 'broken'}"], broken, [*command, SMALL_KDAD])
    while not read_history(broken):
        assert manager.find(job.folder).active, manager.log_tail(job.folder, 20)
        time.sleep(0.02)
    job = manager.stop(job)
    assert job.state == "stopped"
    assert "the same command continues" in manager.log_tail(job.folder, 1)
    assert not store.is_complete(broken)
    assert cli.main(list(job.arguments)) == 0
    assert cli.main([*request, f"--out={tmp_path / 'whole'}"]) == 0
    for name in (layout.WEIGHTS, layout.CALIBRATION, layout.EVALUATION):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("hours", [-48, 48])
@pytest.mark.skipif(not psutil.LINUX, reason="elsewhere the system keeps when a process began")
def test_a_clock_that_was_set_does_not_make_a_job_look_dead(hours, start, monkeypatch):
    job = wait_for(start(), "running")
    seconds, boot_time = hours * 3600, psutil._pslinux.boot_time
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: boot_time() + seconds)
    assert status.lives(job.status)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + seconds)
    assert manager.find(job.folder).active
