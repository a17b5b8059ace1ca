"""The train-or-load page: every control, every state of a job, and nothing lost by accident."""

import io
import json
import shutil
import time
import zipfile

import pytest
from helpers.hub import TOKEN
from helpers.page import control, plain_texts, rerun

from kdad.data.datasets import DATASETS, class_names
from kdad.errors import UserError
from kdad.jobs import manager, status
from kdad.storage.history import write_history
from ui.train import student_list, use_it

TRAIN = "pages/1_Train_or_load.py"
DOTS = "patterns/tiny-vgg/dots"


@pytest.fixture
def root(tmp_path, students_root):
    shutil.copytree(students_root, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def train(open_page, root):
    return lambda **query: open_page(TRAIN, root=root, **query)


@pytest.fixture
def started(monkeypatch):
    """What the page starts, instead of doing so."""
    started = []
    monkeypatch.setattr(manager, "start", lambda root, arguments, student, **_: started.append((arguments, student)))
    return started


def press(at, label: str):
    next(button for button in at.button if button.label == label).click()
    return rerun(at)


def labels(at) -> list[str]:
    return [button.label for button in at.button]


def choose(at, label: str, value):
    control(at, "selectbox", label).set_value(value)
    return rerun(at)


def made_job(root, state: str, student: str = "patterns/vgg-cifar10/rings", **reported):
    """The files of a job that nobody started."""
    folder = root / ".jobs" / f"job-{state}"
    folder.mkdir(parents=True)
    request = {"arguments": ["train"], "student": str((root / student).resolve()), "created": time.time()}
    (folder / status.REQUEST).write_text(json.dumps(request))
    (folder / status.LOG).write_text("said in the log\n")
    status.write_status(folder, status.Status(state=state, heartbeat=time.time(), **reported))
    return folder


def test_every_data_set_and_its_classes_can_be_chosen(train):
    at = train()
    *datasets, own = control(at, "selectbox", "Data set").options
    assert (tuple(datasets), own) == (DATASETS, "my own images")
    for dataset in datasets:
        choose(at, "Data set", dataset)
        assert tuple(control(at, "selectbox", "Normal class").options) == class_names(dataset)
    assert "downloaded from the Hugging Face Hub" in plain_texts(at)


def test_provenance_follows_data_set_and_teacher(train, monkeypatch):
    # AppTest can only choose what is offered, and not type.
    monkeypatch.setattr("ui.train.form.available", lambda: ["vgg-cifar10", "vgg16-imagenet", "owner/model"])
    at = choose(train(), "Data set", "cifar10")
    assert "label overlap: same" in plain_texts(at)
    assert "label overlap: related" in plain_texts(choose(at, "Teacher", "vgg16-imagenet"))
    assert "hours to days" in plain_texts(at)
    assert "label overlap: unknown" in plain_texts(choose(at, "Teacher", "owner/model"))


def test_the_presets_are_shown_and_what_is_changed_is_asked_for(train, started, root):
    at = train()
    assert [control(at, "number_input", label).value for label in ("Epochs", "Batch", "Learning")] == [4, 64, 3e-3]
    for label, value in (("Epochs", 9), ("Batch", 32), ("Learning", 1e-3), ("Seed", 5)):
        control(at, "number_input", label).set_value(value)
    choose(at, "Device", "cpu")
    press(choose(at, "Normal class", "waves"), "Start training")
    ((arguments, student),) = started
    for argument in ("--normal-class=waves", "--epochs=9", "--batch-size=32", "--learning-rate=0.001", "--seed=5"):
        assert argument in arguments
    assert student == (root / "patterns/vgg-cifar10/waves-seed5").resolve()


def test_another_teacher_brings_its_own_preset(train):
    at = choose(train(), "Teacher", "vgg16-imagenet")
    assert control(at, "number_input", "Epochs").value == 200


def test_a_finished_student_is_replaced_only_on_request(train, started, root):
    shutil.copytree(root / DOTS, root / "patterns" / "vgg-cifar10" / "stripes")
    at = train()
    assert control(at, "button", "Start").disabled
    at.checkbox[0].check()
    press(rerun(at), "Start training")
    assert "--overwrite" in started[0][0]


def test_a_data_set_that_cannot_be_had_is_refused_before_the_start(train, started, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("ui.train.request.hub_reachable", lambda: False)
    at = press(choose(train(), "Data set", "mnist"), "Start training")
    assert "mnist is not on this machine" in plain_texts(at)
    assert not started


def test_the_device_is_named(train):
    assert any(caption.value.startswith("auto: ") for caption in train().caption)


def test_without_jobs_the_page_says_what_to_do(train):
    assert "No training yet" in plain_texts(train())


@pytest.mark.parametrize(
    ("state", "shown", "buttons"),
    [
        ("queued", "Queued: 0 jobs ahead.", ["Stop"]),
        ("running", "Stop", ["Stop"]),
        ("stopped", "resuming starts from the beginning", ["Resume", "Remove from list"]),
        ("failed", "the loss became NaN", ["Resume", "Remove from list"]),
    ],
)
def test_a_job_says_how_it_fares_and_offers_what_is_possible(train, root, state, shown, buttons):
    made_job(root, state, message="the loss became NaN", epochs=4)
    at = train()
    assert shown in plain_texts(at) + "".join(labels(at))
    assert [label for label in labels(at) if label in ("Stop", "Resume", "Remove from list")] == buttons
    assert "said in the log" in at.code[0].value


def test_a_killed_job_is_shown_as_such(train, root):
    made_job(root, "running", pid=2**22 + 1, started="1")
    at = train()
    assert "ended without a message" in plain_texts(at)
    assert "Resume" in labels(at)


def test_progress_and_curves_are_live(train, root):
    folder = made_job(
        root, "running", epoch=2, epochs=4, position=1.5, loss=0.25, seconds_left=90, phase="training", done=0.375
    )
    (folder / status.TRACE).write_text("0.5,2\n1,1\n1.5,0.25\n")
    student = root / "patterns/vgg-cifar10/rings"
    trained = {"epoch": 1, "split": "train", "loss": 1.5, "auroc": "", "seconds": 1.0}
    write_history(student, [trained, trained | {"split": "validation", "auroc": 0.9}])
    at = train()
    (progress,) = at.get("progress")
    assert (progress.proto.value, progress.proto.text) == (37, "Training: epoch 2 of 4 · 2 min left")
    assert "Loss **0.2500**" in plain_texts(at)
    assert "Validation AUROC, last layer alone **90" in plain_texts(at)
    assert len(at.get("vega_lite_chart")) == 2


def test_a_finished_job_leads_to_its_student(train, root):
    evaluation = {"auroc": 0.9, "seed": 0, "label_overlap": "same"}
    (root / DOTS / "evaluation.json").write_text(json.dumps(evaluation))
    made_job(root, "finished", DOTS)
    at = train()
    assert "Test AUROC **90" in plain_texts(at)
    (link,) = [link for link in at.get("page_link") if link.proto.label == "Inspect images"]
    assert "student=patterns" in link.proto.query_string


def test_a_finished_job_whose_student_is_gone_says_so(train, root):
    made_job(root, "finished")
    assert "has since been removed" in plain_texts(train())


def test_a_finished_job_whose_student_is_elsewhere_links_nowhere(train, root, tmp_path):
    shutil.copytree(root / DOTS, tmp_path / "before" / DOTS)
    made_job(root, "finished", f"../before/{DOTS}")
    assert "Inspect images" not in [link.proto.label for link in train().get("page_link")]


def test_stop_resume_and_remove_do_so(train, root, monkeypatch):
    done = []
    for name in ("stop", "resume"):
        monkeypatch.setattr(manager, name, lambda job, name=name: done.append(name))
    made_job(root, "running")
    press(train(), "Stop")
    shutil.rmtree(root / ".jobs")
    folder = made_job(root, "stopped")
    press(train(), "Resume")
    assert done == ["stop", "resume"]
    press(train(), "Remove from list")
    assert not folder.exists()


def test_a_job_that_another_tab_has_changed_is_no_traceback(train, root, monkeypatch):
    def refuse(job):
        raise UserError("this job has not ended yet; stop it first")

    made_job(root, "stopped")
    monkeypatch.setattr(manager, "resume", refuse)
    assert "has not ended" in press(train(), "Resume").toast[0].value


def test_students_are_listed_with_figures_and_provenance(train, root):
    (root / DOTS / "evaluation.json").unlink()
    shown = plain_texts(train(view="Load"))
    assert "not tested" in shown
    assert "test AUROC 90" in shown
    assert "label overlap: none" in shown


def test_a_student_is_deleted_after_a_second_question(train, root):
    at = train(view="Load")
    assert labels(at).count("Delete") == 2
    at = press(at, "Delete")
    assert (root / DOTS).exists()
    at = press(at, "Cancel")
    assert (root / DOTS).exists()
    at = press(press(at, "Delete"), "Delete for good")
    assert not (root / DOTS).exists()
    assert labels(at).count("Delete") == 1


def test_a_student_that_is_being_trained_anew_is_not_deleted(train, root):
    made_job(root, "queued", DOTS)
    at = press(press(train(view="Load"), "Delete"), "Delete for good")
    assert "being retrained" in at.toast[0].value
    assert (root / DOTS).exists()


def test_what_came_with_the_project_cannot_be_deleted(train, monkeypatch):
    monkeypatch.setattr(student_list, "shipped", lambda _: frozenset([DOTS]))
    at = train(view="Load")
    assert labels(at).count("Delete") == 1
    assert "Bundled students cannot be deleted" in plain_texts(at)


def test_only_what_git_tracks_came_with_the_project(tmp_path):
    assert student_list.shipped(tmp_path) == frozenset()
    assert "kdad" in student_list.shipped(student_list.ROOT)
    assert ".venv" not in student_list.shipped(student_list.ROOT)


def test_without_students_the_page_says_what_to_do(open_page, tmp_path):
    assert "No students in" in plain_texts(open_page(TRAIN, root=tmp_path, view="Load"))


@pytest.mark.parametrize(("repo", "said"), [("nonsense", "looks like owner/name"), ("owner/model", "could be fetched")])
def test_an_id_that_cannot_be_fetched_is_one_clear_line(train, no_network, repo, said):
    at = train(view="Load")
    at.text_input[0].input(repo)
    assert said in plain_texts(press(at, "Fetch"))


def test_a_student_is_fetched_from_the_hub(train, root, hub):
    shutil.move(root / DOTS, hub.root / "models" / "me" / "dots")
    at = train(view="Load")
    at.text_input[0].input("me/dots")
    at = press(at, "Fetch")
    assert len(list(root.glob("patterns/*/dots/model.safetensors"))) == 1
    assert labels(at).count("Delete") == 2


def test_a_student_of_a_revision_that_is_not_there_is_said(train, root, hub):
    shutil.move(root / DOTS, hub.root / "models" / "me" / "dots")
    at = train(view="Load")
    control(at, "text_input", "Hub id").input("me/dots")
    control(at, "text_input", "Revision").input("later")
    assert "me/dots has no revision 'later'" in plain_texts(press(at, "Fetch"))


def test_a_student_is_shared_privately_unless_asked_otherwise(train, hub, monkeypatch):
    monkeypatch.setattr("ui.train.student_list.at_the_machine", lambda: True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    at = train(view="Load")
    control(at, "text_input", "To").input("me/shared")
    assert "Shared at" in plain_texts(press(at, "Share"))
    assert hub.private["me/shared"]
    assert (hub.root / "models" / "me" / "shared" / "model.safetensors").is_file()
    control(at, "text_input", "To").input("nowhere")
    assert "A Hub id looks like owner/name." in plain_texts(press(at, "Share"))


def test_others_than_those_at_the_machine_share_nothing_with_its_token(train, monkeypatch):
    monkeypatch.setattr("ui.train.student_list.at_the_machine", lambda: False)
    assert "Share" not in labels(train(view="Load"))


def test_own_images_are_trained_on_by_their_folder(train, started, root, tmp_path):
    at = choose(train(), "Data set", "my own images")
    assert "Enter a folder of normal images" in plain_texts(at)
    assert control(at, "button", "Start training").disabled
    typed = control(at, "text_input", "Folder")
    typed.set_value(str(tmp_path / "nowhere"))
    assert "There is no folder" in plain_texts(rerun(at))
    (tmp_path / "mugs").mkdir()
    control(at, "text_input", "Folder").set_value(str(tmp_path / "mugs"))
    control(at, "number_input", "Tile size").set_value(300)
    press(rerun(at), "Start training")
    arguments, student = started[0]
    assert "--tile-size=300" in arguments
    assert f"--dataset=folder:{tmp_path / 'mugs'}" in arguments
    assert student == (root / "mugs" / "lite0-imagenet" / "good").resolve()


def test_who_may_name_no_folder_is_offered_none(train, monkeypatch):
    monkeypatch.setenv("KDAD_FOLDERS", "")
    at = choose(train(), "Data set", "my own images")
    assert "Folder" not in [box.label for box in at.text_input]
    assert at.get("file_uploader")
    assert control(at, "button", "Start training").disabled


def test_own_images_and_data_sets_keep_a_teacher_each(train):
    at = choose(choose(train(), "Data set", "cifar10"), "Teacher", "vit-cifar10")
    assert control(choose(at, "Data set", "my own images"), "selectbox", "Teacher").value == "lite0-imagenet"
    assert control(choose(at, "Data set", "cifar10"), "selectbox", "Teacher").value == "vit-cifar10"


def test_a_zip_file_becomes_a_folder(train, started, root):
    at = choose(train(), "Data set", "my own images")
    control(at, "button_group", "Images from").set_value("Zip file")
    rerun(at)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("mugs/a.png", b"an image, for all that unpacking knows")
    control(at, "file_uploader", "Zip file of images").set_value(("my mugs!.zip", file.getvalue(), "application/zip"))
    press(rerun(at), "Start training")
    (folder,) = (root / ".uploads").iterdir()
    assert folder.name == "my-mugs"
    assert (folder / "a.png").is_file()
    assert f"--dataset=folder:{folder.resolve()}" in started[0][0]


def test_a_zip_file_that_is_none_is_one_clear_line(train, root):
    at = choose(train(), "Data set", "my own images")
    control(at, "button_group", "Images from").set_value("Zip file")
    rerun(at)
    control(at, "file_uploader", "Zip file of images").set_value(("a.zip", b"no zip", "application/zip"))
    assert "not a readable zip file" in plain_texts(rerun(at))
    assert not list((root / ".uploads").glob("*"))


def test_how_a_student_is_used_elsewhere_is_shown_until_it_is_closed(train, root):
    at = press(train(view="Load"), "Use it")
    commands = [code.value for code in at.code]
    assert any(f"kdad score {(root / DOTS).resolve()} photo.jpg" in command for command in commands)
    assert any(command.startswith("curl") for command in commands)
    assert not train(view="Load").code
    assert commands == [code.value for code in train(view="Load", use=DOTS).code]
    assert not train(view="Load", use="nobody").code


@pytest.mark.slow
def test_a_student_is_exported_and_what_fails_is_one_line(train, root, monkeypatch):
    monkeypatch.setattr(use_it, "_exported", lambda student: b"network")
    at = press(train(view="Load", use=DOTS), "Export")
    assert [button.label for button in at.get("download_button")] == ["Save the file (0.0 MB)"]
    monkeypatch.undo()
    (root / DOTS / "model.safetensors").write_bytes(b"no network")
    monkeypatch.setenv("KDAD_STUDENTS", str(root))
    at = press(train(view="Load", use=DOTS), "Export")
    assert "model.safetensors" in at.error[0].value
    assert not at.get("download_button")


def test_a_start_that_the_disk_refuses_is_one_line_that_says_what_runs(train, monkeypatch):
    done = []

    def start(*_, **__):
        done.append("start")
        if len(done) > 1:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(manager, "start", start)
    at = train()
    control(at, "toggle", "Compare teachers").set_value(True)
    at = press(rerun(at), "Start training")
    assert done == ["start", "start"]
    assert "1 of 2 trainings started" in at.error[0].value and "Permission denied" in at.error[0].value


def test_several_teachers_are_one_start(train, monkeypatch):
    groups = []
    monkeypatch.setattr(
        manager, "start", lambda root, arguments, student, group: groups.append((group, student.parts[-2]))
    )
    at = train()
    control(at, "toggle", "Compare teachers").set_value(True)
    assert control(rerun(at), "multiselect", "Teachers").value == ["vgg-cifar10", "vit-cifar10"]
    press(at, "Start training")
    assert [teacher for _, teacher in groups] == ["vgg-cifar10", "vit-cifar10"]
    assert len({group for group, _ in groups}) == 1 and groups[0][0]


def test_one_teacher_is_no_comparison(train):
    at = train()
    control(at, "toggle", "Compare teachers").set_value(True)
    control(rerun(at), "multiselect", "Teachers").set_value(["vgg-cifar10"])
    assert "two teachers or more" in plain_texts(rerun(at))
