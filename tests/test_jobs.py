"""Background jobs: most of them a small script that reports as `kdad train --job` does, some the real thing."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SmallDefectsTask, TinyTask, eventually

from kdad import cli, jobs, store
from kdad.distillation import train_student
from kdad.errors import UserError
from kdad.history import read_history
from kdad.recipes import Recipe
from kdad.training import Progress

ROOT = Path(__file__).parent.parent
# It trains until there is a file `go` beside the job folders; its first argument says how it ends.
SCRIPT = """
import signal, sys, time
from pathlib import Path
from kdad.jobs import reporting
how, folder = sys.argv[1], Path(sys.argv[-1])
if how == "refuse":
    sys.exit("kdad: no such class")
with reporting(folder) as reporter:
    if how == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    reporter.progress({"phase": "training", "epoch": 2, "epochs": 4, "position": 1.5, "loss": 0.25})
    print("10%", "20%", sep="\\r", flush=True)
    while not (folder.parent / "go").exists():
        time.sleep(0.02)
    if how == "fail":
        raise RuntimeError("the loss became NaN")
"""


@pytest.fixture(autouse=True)
def quick_heartbeat(monkeypatch):
    monkeypatch.setattr(jobs, "HEARTBEAT_SECONDS", 0.05)


@pytest.fixture
def root(tmp_path):
    """A jobs root; what is still alive at the end of a test is stopped."""
    root = tmp_path / "jobs"
    yield root
    for job in jobs.find_all(root):
        jobs.stop(job, grace=0.1)


@pytest.fixture
def command(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return [sys.executable, str(script)]


@pytest.fixture
def start(root, command):
    return lambda how="finish": jobs.start(root, [how], root / "student", command)


def wait_for(job, *states: str, seconds: float = 30):
    until = time.monotonic() + seconds
    while (job := jobs.find(job.folder)).state not in states:
        assert time.monotonic() < until, f"still {job.state}: {jobs.log_tail(job.folder, 20)}"
        time.sleep(0.02)
    return job


def go(root):
    (root / "go").touch()


def wait_for_loss(job):
    eventually(lambda: jobs.find(job.folder).status.loss is not None)
    return jobs.find(job.folder)


def test_a_job_runs_reports_and_finishes(start, root):
    job = start()
    assert job.active and job.status.pid != os.getpid()
    job = wait_for_loss(job)
    assert (job.state, job.status.epoch, job.status.epochs, job.status.loss) == ("running", 2, 4, 0.25)
    go(root)
    job = wait_for(job, "finished")
    assert not job.active
    assert jobs.read_trace(job.folder) == [(1.5, 0.25)]
    assert jobs.log_tail(job.folder, 5) == "20%"


def test_jobs_take_turns_in_their_order(start, root):
    first = wait_for(start(), "running")
    second, third = start(), start()
    time.sleep(0.3)
    assert [job.state for job in jobs.find_all(root)] == ["running", "queued", "queued"]
    jobs.stop(first)
    wait_for(second, "running")
    assert jobs.find(third.folder).state == "queued"
    go(root)
    for job in (second, third):
        wait_for(job, "finished")


def test_jobs_of_another_root_do_not_wait(start, tmp_path, command):
    wait_for(start(), "running")
    other = wait_for(jobs.start(tmp_path / "other", ["finish"], tmp_path, command), "running")
    jobs.stop(other)


@pytest.mark.parametrize("state", ["running", "queued"])
def test_a_stopped_job_is_gone_and_says_so(start, state):
    ahead = wait_for(start(), "running")
    job = ahead if state == "running" else start()
    assert job.state == state
    stopped = jobs.stop(job)
    assert stopped.state == "stopped"
    assert jobs.process_started(job.status.pid) is None
    assert jobs.find(ahead.folder).state == ("stopped" if job is ahead else "running")


def test_a_process_that_does_not_listen_is_killed_after_the_grace(start):
    job = wait_for_loss(start("deaf"))
    assert jobs.stop(job, grace=0.2).state == "stopped"
    assert jobs.process_started(job.status.pid) is None


def test_a_killed_process_is_shown_as_such_and_the_next_one_goes_on(start):
    job = wait_for(start(), "running")
    following = start()
    os.kill(job.status.pid, signal.SIGKILL)
    assert wait_for(job, "killed").status.state == "running"
    wait_for(following, "running")
    assert jobs.stop(job).state == "killed"


def test_a_process_without_a_heartbeat_is_silent_and_can_be_stopped(start, monkeypatch):
    job = wait_for(start(), "running")
    os.kill(job.status.pid, signal.SIGSTOP)
    monkeypatch.setattr(jobs, "SILENT_AFTER_SECONDS", 0.5)
    assert wait_for(job, "silent").active
    assert jobs.stop(job, grace=0.2).state == "stopped"


def test_another_process_with_the_same_number_is_not_the_job(start):
    job = wait_for(start(), "running")
    os.kill(job.status.pid, signal.SIGKILL)
    wait_for(job, "killed")
    impostor = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    jobs._write_status(job.folder, replace(job.status, pid=impostor.pid, heartbeat=time.time()))
    assert jobs.find(job.folder).state == "killed"
    assert jobs.stop(job).state == "killed"
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
    job = jobs.stop(wait_for_loss(start()))
    again = wait_for(jobs.resume(job, command), "running")
    assert again.folder == job.folder
    assert again.status.pid != job.status.pid
    with pytest.raises(UserError, match="not at an end"):
        jobs.resume(job, command)
    go(root)
    wait_for(job, "finished")


def test_only_an_ended_job_is_removed(start):
    job = wait_for(start(), "running")
    with pytest.raises(UserError, match="stop this job"):
        jobs.remove(job)
    jobs.remove(jobs.stop(job))
    assert not job.folder.exists()


def test_a_job_outlives_whoever_started_it(root, command):
    starter = (
        "from kdad import jobs\nfrom pathlib import Path\n"
        f"jobs.start(Path({str(root)!r}), ['finish'], Path('student'), {command!r})"
    )
    subprocess.run([sys.executable, "-c", starter], cwd=ROOT, check=True)
    (job,) = jobs.find_all(root)
    assert wait_for_loss(job).state == "running"
    assert jobs.stop(job).state == "stopped"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"arguments": 1}'])
def test_a_damaged_request_is_no_job(root, content):
    (root / "a").mkdir(parents=True)
    (root / "a" / jobs.REQUEST).write_text(content)
    assert jobs.find_all(root) == []


def test_a_trace_forgets_what_a_resumed_run_repeats(tmp_path):
    (tmp_path / jobs.TRACE).write_text("0.5,4\n1,3\n1.5,2.9\n1.25,2.8\n1.5,2\n")
    assert jobs.read_trace(tmp_path) == [(0.5, 4), (1, 3), (1.25, 2.8), (1.5, 2)]
    assert jobs.read_trace(tmp_path / "none") == []


def test_progress_is_handed_over_with_the_time_left(tmp_path, vgg_teacher):
    said = []
    recipe = Recipe(epochs=3, batch_size=8)
    folder = train_student(
        TinyTask(), vgg_teacher, tmp_path, recipe=recipe, device="cpu", callbacks=[Progress(said.append)]
    )
    assert said[0] == {"phase": "training", "epochs": 3}
    assert said[-1]["phase"] == "testing"
    epochs = [values for values in said if "position" in values]
    ends = [values["position"] for values in epochs if values["position"] % 1 == 0]
    assert list(dict.fromkeys(ends)) == [1, 2, 3]  # twice, where an epoch's last batch was reported too
    left = [values["seconds_left"] for values in epochs]
    assert left[0] > left[-1] == 0
    validation = [row["auroc"] for row in read_history(folder) if row["split"] == "validation"]
    assert epochs[-1]["auroc"] == pytest.approx(validation[-1], abs=1e-6)
    assert all(jobs.Status(**values) for values in said)


# `python -m kdad` on a handful of images.
SMALL_KDAD = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from conftest import SmallDefectsTask
import kdad.tasks
kdad.tasks.load_task = lambda dataset, normal_class, *sizes: SmallDefectsTask(normal_class)
from kdad.cli import main
sys.exit(main())
"""


def test_a_real_run_that_was_stopped_resumes_to_an_equal_end(root, tmp_path, vgg_folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    monkeypatch.setattr("kdad.tasks.load_task", lambda _, normal_class, *sizes: SmallDefectsTask(normal_class))
    task, command = f"--dataset=patterns-defects --normal-class=dots --teacher={vgg_folder}", [sys.executable, "-c"]
    request = ["train", *task.split(), "--epochs=15", "--batch-size=8", "--device=cpu"]
    broken, whole = (
        store.student_folder(tmp_path / name, "patterns-defects", str(vgg_folder), "dots", 0)
        for name in ("broken", "whole")
    )
    job = jobs.start(root, [*request, f"--out={tmp_path / 'broken'}"], broken, [*command, SMALL_KDAD])
    while not read_history(broken):
        assert jobs.find(job.folder).active, jobs.log_tail(job.folder, 20)
        time.sleep(0.02)
    job = jobs.stop(job)
    assert job.state == "stopped"
    assert "the same command continues" in jobs.log_tail(job.folder, 1)
    assert not store.is_complete(broken)
    job = wait_for(jobs.resume(job, [*command, SMALL_KDAD]), "finished", seconds=120)
    assert (job.status.epoch, job.status.phase) == (15, "testing")
    assert cli.main([*request, f"--out={tmp_path / 'whole'}"]) == 0
    for name in (store.WEIGHTS, store.CALIBRATION, store.EVALUATION):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
