"""The HTTP interface: verdicts as `predict` gives them, limits, and what is counted."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from kdad.cli import main
from kdad.detection.detector import Detector
from kdad.serving import api
from kdad.serving.api import Limits, create_app

NAME = "patterns/tiny/dots"
LIMITS = Limits(max_bytes=20_000, max_pixels=5_000, at_once=2)


@pytest.fixture(scope="module")
def detector(student_folder, vgg_teacher):
    return Detector.load(student_folder, teacher=vgg_teacher, device="cpu")


@pytest.fixture(scope="module")
def client(detector):
    with TestClient(create_app({NAME: detector})) as client:
        yield client


@pytest.fixture(scope="module")
def narrow(detector):
    with TestClient(create_app({NAME: detector}, LIMITS)) as client:
        yield client


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_a_verdict_is_that_of_predict(client, detector):
    answer = client.post(f"/students/{NAME}/predict", params={"fpr": 0.2}, content=png(picture()))
    expected = detector.predict(picture(), fpr=0.2)
    said = answer.json()
    assert (answer.status_code, said["student"], said["height"], said["width"]) == (200, NAME, 30, 40)
    assert said["score"] == pytest.approx(float(expected.score[0]), abs=1e-5)
    assert said["p_value"] == pytest.approx(float(expected.p_value[0]))
    assert said["is_anomaly"] == bool(expected.is_anomaly[0])
    assert said["fpr"] == 0.2
    assert client.post(f"/students/{NAME}/predict", content=png(picture())).json()["fpr"] == detector.default_fpr


def test_a_heatmap_is_a_picture_of_the_same_size(client):
    answer = client.post(f"/students/{NAME}/heatmap", content=png(picture()))
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).size == (40, 30)
    assert answer.content != client.post(f"/students/{NAME}/heatmap", content=png(picture(1))).content


def test_many_clients_at_once_each_get_their_own_verdict(client, detector):
    seeds = list(range(24))
    with ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(client.post, f"/students/{NAME}/predict", content=png(picture(seed))) for seed in seeds]
    said = [answer.result().json()["score"] for answer in sent]
    np.testing.assert_allclose(said, [float(detector.predict(picture(seed)).score[0]) for seed in seeds], atol=1e-4)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "an empty file"),
        (b"no image", 400, "not an image"),
        (png(picture())[:300], 400, "damaged or unreadable"),
        (b"x" * 20_001, 413, "more than 20000 bytes"),
        (png(Image.new("L", (100, 60))), 413, "100×60 exceeds 0.005 million pixels"),
    ],
)
def test_a_bad_body_is_refused_with_the_reason(narrow, body, status, words):
    answer = narrow.post(f"/students/{NAME}/predict", content=body)
    assert answer.status_code == status
    assert words in answer.json()["detail"]


def test_a_body_of_unknown_length_is_cut_off(narrow):
    answer = narrow.post(f"/students/{NAME}/predict", content=iter([b"x" * 15_000] * 4))
    assert answer.status_code == 413


def test_what_is_not_there_or_not_possible_is_said(client):
    body = png(picture())
    assert client.post("/students/patterns/tiny/stripes/predict", content=body).status_code == 404
    answer = client.post(f"/students/{NAME}/predict", params={"fpr": 1e-9}, content=body)
    assert answer.status_code == 400
    assert "false-positive" in answer.json()["detail"]
    answer = client.post(f"/students/{NAME}/predict", params={"fpr": "abc"}, content=body)
    assert answer.status_code == 422
    assert answer.json() == {"detail": "fpr=abc: input should be a valid number, unable to parse string as a number"}


@pytest.mark.parametrize("field", ["file", "image", "whatever[]"])
def test_a_file_of_a_form_is_judged_as_the_body_is(client, field):
    alone = client.post(f"/students/{NAME}/predict", params={"fpr": 0.2}, content=png(picture()))
    files, data = {field: ("photo.png", png(picture()), "image/png")}, {"comment": "from the line"}
    answer = client.post(f"/students/{NAME}/predict", params={"fpr": 0.2}, files=files, data=data)
    assert answer.status_code == 200
    assert answer.json() == pytest.approx(alone.json())
    heatmap = client.post(f"/students/{NAME}/heatmap", files=files)
    assert heatmap.content == client.post(f"/students/{NAME}/heatmap", content=png(picture())).content


def padded(size: int) -> bytes:
    """An image file of so many bytes."""
    content = png(picture())
    return content + bytes(size - len(content))


@pytest.mark.parametrize(("size", "status"), [(20_000, 200), (20_001, 413), (50_000, 413)])
def test_a_file_of_a_form_has_the_limits_of_a_body(narrow, size, status):
    for sent in ({"content": padded(size)}, {"files": {"file": ("x.png", padded(size))}}):
        answer = narrow.post(f"/students/{NAME}/predict", **sent)
        assert answer.status_code == status
        assert status == 200 or answer.json() == {"detail": "more than 20000 bytes; reduce the size of the image"}
    pixels = {"file": ("x.png", png(Image.new("L", (100, 60))))}
    assert narrow.post(f"/students/{NAME}/predict", files=pixels).status_code == 413


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"files": [("a", ("a.png", b"a")), ("b", ("b.png", b"b"))]}, "the form holds 2 files; send the image file"),
        ({"files": {"name": (None, "no file")}}, "the form holds 0 files; send the image file itself as the body"),
        ({"files": {"file": ("x.png", b"")}}, "an empty file"),
        ({"files": {"file": ("x.png", b"no image")}}, "not an image"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, "boundary"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=y"}}, "multipart"),
    ],
)
def test_a_form_without_one_image_is_refused_with_the_reason(client, sent, words):
    answer = client.post(f"/students/{NAME}/predict", **sent)
    assert answer.status_code == 400
    assert words in answer.json()["detail"]


@pytest.mark.parametrize("sent", [{"json": {"image": "aGVsbG8="}}, {"json": ["a"]}, {"content": b' "aGVsbG8="'}])
def test_json_is_told_what_to_send(client, sent):
    answer = client.post(f"/students/{NAME}/predict", **sent)
    assert (answer.status_code, answer.json()) == (
        400, {"detail": "send the image file itself as the body, or as a file of multipart/form-data"},
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "text/plain", ""])
def test_an_image_is_judged_whatever_it_is_said_to_be(client, kind):
    answer = client.post(f"/students/{NAME}/predict", content=png(picture()), headers={"content-type": kind})
    assert answer.status_code == 200


def test_more_than_are_taken_at_once_are_told_to_come_again(detector):
    with TestClient(create_app({NAME: detector}, Limits(at_once=0))) as client:
        answer = client.post(f"/students/{NAME}/predict", content=png(picture()))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_places_are_free_again_after_errors(narrow):
    for _ in range(4):
        assert narrow.post(f"/students/{NAME}/predict", content=b"").status_code == 400
    assert narrow.post(f"/students/{NAME}/predict", content=png(picture())).status_code == 200


def test_health_students_and_description(client, detector):
    assert client.get("/health").json() == {"status": "ok", "students": 1}
    (student,) = client.get("/students").json()
    assert student["name"] == NAME
    assert student["label_overlap"] == detector.config.label_overlap
    assert student["calibration_normals"] == len(detector.calibration)
    assert student["calibration"] == "held-out"
    paths = client.get("/openapi.json").json()["paths"]
    body = paths["/students/{name}/predict"]["post"]["requestBody"]["content"]
    assert body["application/octet-stream"]["schema"]["format"] == "binary"
    assert body["multipart/form-data"]["schema"]["properties"]["file"]["format"] == "binary"
    assert client.get("/", follow_redirects=False).headers["location"] == "/docs"


def test_metrics_count_requests_by_route_and_status_and_never_by_what_was_typed(detector):
    with TestClient(create_app({NAME: detector})) as client:
        client.post(f"/students/{NAME}/predict", content=png(picture()))
        client.post(f"/students/{NAME}/predict", content=b"")
        client.get("/typed-by-somebody")
        said = client.get("/metrics").text
    route = 'path="/students/{name:path}/predict"'
    assert f'kdad_requests_total{{{route},status="200"}} 1.0' in said
    assert f'kdad_requests_total{{{route},status="400"}} 1.0' in said
    assert "kdad_batch_images_count 1.0" in said
    assert "typed-by-somebody" not in said


def test_a_failure_is_counted_and_gives_its_place_back(detector, monkeypatch):
    monkeypatch.setattr(type(detector), "predict", lambda *_, **__: 1 / 0)
    app = create_app({NAME: detector}, Limits(at_once=1))
    with TestClient(app, raise_server_exceptions=False) as client:
        for _ in range(2):
            assert client.post(f"/students/{NAME}/predict", content=png(picture())).status_code == 500
        said = client.get("/metrics").text
    assert 'kdad_requests_total{path="/students/{name:path}/predict",status="500"} 2.0' in said


def test_a_heatmap_keeps_its_place_while_it_is_drawn(detector, monkeypatch):
    taken, drawn = [], api._drawn

    def looking(*about):
        taken.append(services[0]._taken)
        return drawn(*about)

    services, made = [], api.Service.__init__
    monkeypatch.setattr(api.Service, "__init__", lambda self, *about: services.append(self) or made(self, *about))
    monkeypatch.setattr(api, "_drawn", looking)
    with TestClient(create_app({NAME: detector})) as client:
        assert client.post(f"/students/{NAME}/heatmap", content=png(picture())).status_code == 200
    assert (taken, services[0]._taken) == ([1], 0)


def test_without_its_packages_serve_says_how_to_get_them(monkeypatch, capsys, student_folder):
    monkeypatch.setitem(__import__("sys").modules, "fastapi", None)
    monkeypatch.delitem(__import__("sys").modules, "kdad.serving.api")
    assert main(["serve", str(student_folder)]) == 2
    assert capsys.readouterr().err == "kdad: serve needs an extra package (fastapi): pip install 'kdad[serve]'\n"
