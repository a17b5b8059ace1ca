"""Commands and code that use one student elsewhere, ready to copy; the only place where the app writes them.

Every path is absolute, so that they work in any folder. `photo.jpg` and `photos` stand for images of one's own.
"""

import json
import shlex
from pathlib import Path
from urllib.parse import quote

from huggingface_hub.constants import HF_HUB_CACHE

from kdad.networks.teachers.registry import TEACHERS, TIMM, split_timm
from kdad.storage.layout import student_folder
from ui.shared.student_index import Student

PHOTO, PHOTOS = "photo.jpg", "photos"
PORT = 8000  # of `kdad serve`
BUILD = "kdad-serve"  # the folder that an image is built from, and the image's name
CACHE_IN_IMAGE = "/home/user/.cache/huggingface/hub"


def score(student: Student) -> str:
    """Shell commands that score an image, and all images of a folder."""
    folder = str(student.folder.resolve())
    return _lines(
        _kdad("score", folder, PHOTO),
        _kdad("score", folder, PHOTOS, "--csv", "scores.csv", "--heatmaps", "heatmaps"),
    )


def report(student: Student) -> str:
    """Shell command that writes one HTML file on all images of a folder."""
    return _kdad("report", str(student.folder.resolve()), PHOTOS, "--output", "report.html")


def watch(student: Student) -> str:
    """Shell command that goes on judging what arrives in a folder."""
    return _kdad("score", str(student.folder.resolve()), PHOTOS, "--watch", "--csv", "arrived.csv")


def serve(student: Student, port: int = PORT) -> str:
    """Shell command that starts a server for other programs, on this machine alone."""
    return _kdad("serve", str(student.folder.resolve()), "--port", str(port))


def requests(student: Student, port: int = PORT) -> str:
    """Shell commands that ask that server for a score and for a heatmap."""
    name = student_folder(Path(), student.dataset, student.teacher, student.normal_class, student.seed)
    if student.version:
        name = name.with_name(student.folder.name)
    address = f"http://127.0.0.1:{port}/students/{quote(name.as_posix())}"
    return _lines(
        shlex.join(["curl", "--data-binary", f"@{PHOTO}", f"{address}/predict"]),
        shlex.join(["curl", "--data-binary", f"@{PHOTO}", "--output", "heatmap.png", f"{address}/heatmap"]),
    )


def python(student: Student) -> str:
    """Python code that scores an image."""
    return f"""from kdad import Detector

detector = Detector.load({_quoted(student.folder.resolve())})
prediction = detector.predict({_quoted(PHOTO)})
print(prediction.score[0], prediction.p_value[0], prediction.is_anomaly[0], prediction.heatmap[0].shape)
"""


def onnx_name(student: Student) -> str:
    """Name of the ONNX file of a student."""
    return f"{student.key.replace('/', '-')}.onnx"


def export(student: Student, file: str) -> str:
    """Shell command that writes a student, its teacher and its calibration as one ONNX file."""
    return _kdad("export", str(student.folder.resolve()), file)


def without_torch(student: Student) -> str:
    """Python code that scores an image with the ONNX file, with onnxruntime, numpy and Pillow alone."""
    return f"""import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession({_quoted(onnx_name(student))})
facts = session.get_modelmeta().custom_metadata_map
size = int(facts["kdad.width"]), int(facts["kdad.height"])
image = np.asarray(Image.open({_quoted(PHOTO)}).convert("RGB").resize(size, Image.Resampling.BICUBIC))
score, p_value, heatmap = session.run(None, {{"images": image.transpose(2, 0, 1)[None]}})
print(score[0], p_value[0], heatmap[0].shape)
"""


def docker(student: Student, port: int = PORT) -> str:
    """Shell commands that serve a student from a container, to be called at the root of a checkout."""
    mounts = [word for place in _mounts(student.teacher) for word in ("--volume", place)]
    return _lines(
        f"mkdir {BUILD}",
        f"python -m pip wheel . --no-deps --wheel-dir {BUILD}",
        f"cp docs/serving/Dockerfile {BUILD}",
        shlex.join(["cp", "-r", str(student.folder.resolve()), f"{BUILD}/student"]),
        f"docker build --tag {BUILD} {BUILD}",
        shlex.join(["docker", "run", "--publish", f"127.0.0.1:{port}:8000", *mounts, BUILD]),
    )


def _mounts(teacher: str) -> list[str]:
    """Volumes for a teacher that is not in the package; those known by name are in it, or fetched by their name."""
    if teacher in TEACHERS:
        return []
    file = split_timm(teacher)[1] if teacher.startswith(TIMM) else teacher
    if Path(file).is_absolute():  # where local.json, which is copied with the student, says that it is
        return [f"{file}:{file}:ro"]
    return [f"{HF_HUB_CACHE}:{CACHE_IN_IMAGE}:ro"]


def _quoted(text: object) -> str:
    """Text as a string of Python in double quotes."""
    return json.dumps(str(text), ensure_ascii=False)


def _kdad(*words: str) -> str:
    return shlex.join(["python", "-m", "kdad", *words])


def _lines(*commands: str) -> str:
    return "\n".join(commands)
