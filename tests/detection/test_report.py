"""The report: all that was judged, worst first, in one file that runs nothing and fetches nothing."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers.miniatures import TinyTask
from PIL import Image

from kdad.cli import main
from kdad.detection import report as reports
from kdad.detection.detector import Detector
from kdad.detection.report import Report, thumbnail

HOSTILE = "<img src=x onerror=alert(1)>&\"'{{ 7*7 }}.png"


@pytest.fixture
def detector(student_folder):
    return Detector.load(student_folder, device="cpu")


@pytest.fixture
def images(tmp_path):
    """A folder with four images, one of a hostile name, and a file that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index, pixels in enumerate(TinyTask().test.images[[0, 1, 20]]):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    Image.new("RGB", (1000, 30), "red").save(folder / HOSTILE)
    (folder / "broken.png").write_text("<b>no image</b>")
    return folder


class Tags(HTMLParser):
    """The tags of a document, with their attributes, and the text between them."""

    def __init__(self, text: str):
        super().__init__()
        self.found, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def reported(student_folder, images, tmp_path, *more: str) -> str:
    file = tmp_path / "report.html"
    assert main(["report", str(student_folder), str(images), "--output", str(file), "--device", "cpu", *more]) == 0
    return file.read_text(encoding="utf-8")


def scores(text: str) -> list[float]:
    table = text[text.index("<h2>All images") : text.index("<h2>Not read")]
    return [
        float(score) for score in re.findall(r'<td class="number">(-?[\d.e+-]+)</td>\s*<td class="number">0', table)
    ]


def test_everything_is_told_worst_first(student_folder, detector, images, tmp_path, capsys):
    text = reported(student_folder, images, tmp_path)
    assert "4 images" in capsys.readouterr().out
    assert len(scores(text)) == 4
    assert scores(text) == sorted(scores(text), reverse=True)
    prediction = detector.predict(images / "2.png")
    assert min(abs(score - prediction.score[0]) for score in scores(text)) < 1e-4
    assert f"{prediction.p_value[0]:.4f}" in text
    assert "could not be read" in text
    for known in (detector.config.teacher_sha256, detector.config.weights_sha256, "label overlap", "threshold"):
        assert known in text


def test_names_of_files_are_text_and_nothing_runs_or_is_fetched(student_folder, images, tmp_path):
    page = Tags(reported(student_folder, images, tmp_path))
    assert not [attributes for _, attributes in page.found if any(name.startswith("on") for name in attributes)]
    assert not {"script", "iframe", "object", "embed", "link", "a", "form"} & {tag for tag, _ in page.found}
    sources = [attributes["src"] for tag, attributes in page.found if tag == "img"]
    assert len(sources) == 8
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert any(HOSTILE in text for text in page.text)
    policy = next(attributes for _, attributes in page.found if "http-equiv" in attributes)
    assert policy["content"].startswith("default-src 'none'; img-src data:;")


def test_pictures_are_small_and_only_of_the_worst(student_folder, images, tmp_path):
    page = Tags(reported(student_folder, images, tmp_path, "--pictures", "2"))
    sources = [attributes["src"] for tag, attributes in page.found if tag == "img"]
    assert len(sources) == 4
    for source in sources:
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
            assert max(picture.size) <= reports.SIDE
    assert "The 2 most unusual of 4" in "".join(page.text)
    none = Tags(reported(student_folder, images, tmp_path, "--pictures", "0"))
    assert not [tag for tag, _ in none.found if tag == "img"]


def test_the_worst_are_kept_whatever_the_order(detector):
    drawn = []

    def draw(score: float):
        drawn.append(score)
        return np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)

    report = Report(detector, max_pictures=2)
    for score in (3.0, 1.0, 2.0, 0.5, 5.0):
        report.add(f"image {score}", score, lambda score=score: draw(score))
    assert drawn == [3.0, 1.0, 2.0, 5.0]
    shown = re.findall(r"<figcaption><b>\d\. image (\d\.\d)</b>", report.html())
    assert shown == ["5.0", "3.0"]


def test_verdicts_are_those_of_the_rate_and_a_rate_that_cannot_be_held_is_refused(detector, refusal):
    report = Report(detector, 0.5)
    report.add("x", float(np.quantile(detector.calibration_scores, 0.7)), lambda: (np.zeros((1, 1, 3), np.uint8),) * 2)
    assert report.entries[0].is_anomaly
    assert "false-positive rate of\n50 %" in report.html()
    assert "cannot be held" in refusal(Report, detector, 1e-6)


def test_without_calibration_there_are_scores_alone(student_folder, images, tmp_path, detector):
    bare = Detector(detector.config, detector.student, detector.teacher, None)
    report = Report(bare)
    assert len(list(report.judge([str(images)], lambda error: None))) == 4
    text = report.html()
    assert "calibrated: there are no p-values" in text
    assert "p-value</th>" not in text and "<svg" not in text


def test_another_method_draws_each_map_on_its_own_scale(student_folder, images, tmp_path):
    text = reported(student_folder, images, tmp_path, "--method", "gradients")
    assert "colour scale" not in text
    assert "gradients" in text


def test_a_page_of_someone_else_is_kept_and_an_older_report_replaced(student_folder, images, tmp_path, capsys):
    text = reported(student_folder, images, tmp_path)
    assert reported(student_folder, images, tmp_path)[:200] == text[:200]
    (tmp_path / "report.html").write_text("<h1>my page</h1>")
    command = ["report", "no such student", str(images), "--output"]
    assert main([*command, str(tmp_path / "report.html")]) == 2
    assert "holds something other than a report" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "report.png")]) == 2
    assert "must end with .html" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "nowhere" / "report.html")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_report_that_is_refused_leaves_no_file(student_folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    command = ["report", str(student_folder), str(tmp_path / "empty"), "--output", str(tmp_path / "r.html")]
    assert main([*command, "--device", "cpu"]) == 2
    assert "no image found" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("shape", "expected"), [((32, 32), (320, 320)), ((3000, 10), (320, 1)), ((400, 200), (320, 160))]
)
def test_thumbnails_are_of_bounded_size(shape, expected):
    assert thumbnail(np.zeros((*shape, 3), np.uint8)).shape[:2] == expected
