"""The home page: an example, what is here, and a first paint that waits for nothing."""

import json
import shutil
import subprocess
import sys
from urllib.parse import parse_qs

import pytest
from helpers.miniatures import ROOT, reseal
from helpers.page import texts

from ui.home.overview import STORY, STORY_SAMPLES
from ui.shared import samples


def test_students_are_shown_by_data_set_and_teacher(open_page):
    shown = texts(open_page())
    assert "2 students, normal: dots, stripes" in shown
    assert "mean test AUROC 90.00 %, seed 0 only" in shown


def test_the_example_and_what_it_is_called_are_there(open_page):
    at = open_page()
    made = json.loads((ROOT / "ui" / "assets" / "example.json").read_text())
    assert len(at.get("image")) == 1 + len(made["students"])
    assert all(f"**{judged['teacher']}**: more unusual than" in texts(at) for judged in made["students"])


def test_a_first_visit_is_led_to_images_that_are_there(open_page, students_root, tmp_path):
    """Each step leads to a page, and the first three to samples of the student that is named."""
    shutil.copytree(students_root / "patterns" / "tiny-vgg" / "dots", tmp_path / STORY)
    links = [link.proto for link in open_page(root=tmp_path).get("page_link")]
    steps = [link for link in links if link.label[:1].isdigit()]
    assert [link.label.split(". ")[0] for link in steps] == ["1", "2", "3", "4", "5", "6"]
    names = {picture.name for picture in samples.pictures(STORY_SAMPLES, 0)}
    for link in steps[:3]:
        query = parse_qs(link.query_string)
        assert query["student"] == [STORY]
        assert query["image"][0] in names
    assert not [link for link in open_page(root=students_root).get("page_link") if link.proto.label[:1].isdigit()]


def test_the_device_is_named(open_page):
    assert any(
        text.value.startswith(("Device: CPU", "Device: NVIDIA", "Device: Apple")) for text in open_page().caption
    )


def test_without_students_the_page_says_how_to_train_one(open_page, tmp_path):
    at = open_page(root=tmp_path)
    assert "No students in" in texts(at)
    assert at.code[0].value.startswith("python -m kdad train --dataset patterns-defects")
    assert at.code[0].value.endswith(f"--out {tmp_path}")


def test_a_damaged_student_does_not_take_the_page_down(open_page, students_root, tmp_path):
    shutil.copytree(students_root, tmp_path, dirs_exist_ok=True)
    (tmp_path / "patterns" / "tiny-vgg" / "dots" / "config.json").write_text("{")
    assert "1 student, normal: stripes" in texts(open_page(root=tmp_path))


def test_names_from_files_are_shown_as_they_are(open_page, students_root, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(students_root / "patterns" / "tiny-vgg" / "dots", folder)
    reseal(folder / "config.json", normal_class="**[x](http://y)**")
    assert r"\*\*\[x\]\(http\://y\)\*\*" in texts(open_page(root=tmp_path))


@pytest.mark.slow
def test_everything_but_the_device_is_painted_without_torch(students_root):
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from streamlit.testing.v1 import AppTest\n"
        "at = AppTest.from_file('app.py', default_timeout=60).run()\n"
        "assert any('2 students' in caption.value for caption in at.caption)\n"
        "assert at.code and len(at.exception) == 1  # of the device, which comes last\n"
        "import ui.inspect.closer_look, ui.inspect.image_sources\n"
    )
    environment = {"KDAD_STUDENTS": str(students_root), "PATH": "/usr/bin:/bin"}
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
