"""Work on a Ray cluster of this machine, whose workers are killed on purpose."""

import os
import signal
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import psutil
import pyarrow.parquet
import pytest
from PIL import Image

from kdad.cli import main
from kdad.cluster import joining
from kdad.cluster.joining import check_shared, ray_cluster
from kdad.cluster.scoring import judge_with_ray
from kdad.cluster.sweeping import complete_with_ray
from kdad.detection.bulk import ScoringJob, find, remaining
from kdad.detection.detector import Detector
from kdad.errors import UserError, WorkFailed
from kdad.storage import student_folder as store
from kdad.training.loop import CHECKPOINT
from kdad.training.sweep import Plan, complete_here, run_sweep

pytest.importorskip("ray", reason="Ray is not installed: pip install 'kdad[ray]'")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]


@pytest.fixture(scope="module")
def cluster():
    with ray_cluster() as ray:
        yield ray


@pytest.fixture
def defects(tmp_path):
    """Two categories in the layout of MVTec AD, of noise that is bright or dark."""
    for category in ("nuts", "bolts"):
        for place, count, level in (("train/good", 24, 90), ("test/good", 6, 90), ("test/dark", 6, 30)):
            folder = tmp_path / "data" / category / place
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.random.default_rng(index).normal(level, 15, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return f"folder:{tmp_path / 'data'}"


@pytest.fixture
def plan(defects, vgg_folder, tmp_path):
    return Plan(str(vgg_folder), defects, tmp_path / "out", "cpu", {"epochs": 2, "batch_size": 8})


@pytest.fixture
def order(student_folder, vgg_folder, tmp_path):
    config = store.load_config(student_folder)
    digests = (config.weights_sha256, config.calibration_sha256)
    return ScoringJob(str(student_folder), str(vgg_folder), tmp_path / "parts", *digests, fpr=None, device="cpu")


def killed_once(name: str, when) -> threading.Thread:
    """A thread that kills a worker whose process has this in its name, as soon as `when` is true."""

    def kill() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            found = [one for one in psutil.process_iter(["cmdline"]) if name in "".join(one.info["cmdline"] or [])]
            if found and when():
                os.kill(found[0].pid, signal.SIGKILL)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def test_a_sweep_survives_a_lost_worker_and_trains_what_one_process_trains(cluster, plan, tmp_path):
    killer = killed_once("ray::Worker.complete", lambda: any(plan.out.rglob(CHECKPOINT)))
    spread = run_sweep(plan, "all", seeds=1, complete=complete_with_ray)
    killer.join(1)
    assert not killer.is_alive()
    alone = run_sweep(replace(plan, out=tmp_path / "alone"), "all", seeds=1, complete=complete_here)
    assert list(spread["classes"]) == list(alone["classes"]) == ["bolts", "nuts"]
    for name, figures in alone["classes"].items():
        assert spread["classes"][name]["auroc"]["values"] == pytest.approx(figures["auroc"]["values"], abs=0.03)
    assert len(store.find_students(plan.out)) == 2
    assert not list(plan.out.rglob(CHECKPOINT))
    assert run_sweep(plan, "all", seeds=1, complete=lambda *_: pytest.fail("nothing is missing")) == spread


@pytest.mark.parametrize("raised", [WorkFailed, UserError])
def test_what_a_worker_cannot_do_is_said_as_it_says_it(cluster, raised):
    class Worker:
        def complete(self):
            raise raised("the loss became NaN")

    with pytest.raises(raised, match=r"^the loss became NaN$"), ray_cluster() as ray:
        ray.get(ray.remote(Worker).remote().complete.remote())


def test_a_worker_that_fails_otherwise_is_one_line(cluster):
    with pytest.raises(WorkFailed, match=r"^a worker failed: [^\n]*division by zero[^\n]*$"), ray_cluster() as ray:
        ray.get(ray.remote(lambda: 1 / 0).remote())


def test_each_image_is_judged_once_though_a_worker_is_lost(cluster, order, tmp_path, student_folder, vgg_teacher):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(60):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    (folder / "59.png").write_text("x")
    images, listing = sorted(map(str, folder.iterdir())), find([str(folder)])
    killer = killed_once("ray::Map", lambda: any(order.out.glob("*.parquet")))
    outcomes = list(judge_with_ray(order, remaining(listing, order, part=2).parts))
    killer.join(1)
    assert not killer.is_alive()
    assert sum(outcome.judged for outcome in outcomes) == 59
    assert [reason for outcome in outcomes for reason in outcome.unreadable] == [f"{folder / '59.png'}: not an image"]
    rows = [row for file in order.out.glob("*.parquet") for row in pyarrow.parquet.read_table(file).to_pylist()]
    assert sorted(row["image"] for row in rows) == images
    detector = Detector.load(student_folder, teacher=vgg_teacher, device="cpu")
    scores = {row["image"]: row["score"] for row in rows}
    assert scores[images[7]] == pytest.approx(float(detector.predict(images[7]).score[0]), abs=1e-4)
    assert remaining(find([str(folder)]), order).parts == ()


def test_a_folder_that_not_every_machine_sees_is_refused(cluster, tmp_path, refusal, monkeypatch):
    monkeypatch.setattr(joining.os.path, "exists", lambda _: False)
    assert "not every machine of the cluster sees" in refusal(check_shared, cluster, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_without_ray_one_line_says_how_to_get_it(monkeypatch, capsys, student_folder, vgg_folder, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    Image.new("RGB", (32, 32)).save(tmp_path / "one.png")
    request = ["score", str(student_folder), str(tmp_path / "one.png"), "--teacher", str(vgg_folder)]
    assert main([*request, "--parquet", str(tmp_path / "parts"), "--engine", "ray", "--device", "cpu"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("kdad: the engine ray needs an extra package: pip install 'kdad[ray]'")


def test_nobody_at_an_address_is_said_in_one_line(monkeypatch, refusal):
    ray = pytest.importorskip("ray")

    def nobody(**_):
        raise ConnectionError("nobody\nthere")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", nobody)

    def join():
        with ray_cluster():
            pytest.fail("there is no cluster")

    assert refusal(join) == "no Ray cluster could be joined (nobody there)"


def test_a_cluster_that_gives_up_is_work_that_failed(cluster):
    with pytest.raises(WorkFailed, match="the same command goes on"), ray_cluster() as ray:
        raise ray.exceptions.RayActorError
