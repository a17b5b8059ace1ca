"""Links to images on the inspect page, to students in the arena, and to how a student is used elsewhere."""

from collections.abc import Sequence

from ui.shared import samples
from ui.shared.pictures import gallery
from ui.shared.student_index import Student

# Image source, and its values.
SOURCE, SAMPLES, UPLOAD, CAMERA, GALLERY = "source", "Samples", "Upload", "Camera", "Data set"
LINKED = "image"  # the picture shown in detail
PER_PAGE = 12  # gallery pictures
VIEW, TRAIN, LOAD = "view", "Train", "Load"  # what the train page shows, and its values
USE = "use"  # the student whose use is explained there

ORDINALS = ("first", "second", "third")  # of students in the arena


def arena_link(keys: Sequence[str]) -> dict[str, str]:
    """Query parameters of the results page that set two or three students, given by their keys, against each other."""
    return {"show": "Arena", **dict.fromkeys(ORDINALS, ""), **dict(zip(ORDINALS, keys, strict=False))}


def gallery_link(student: Student, kind: str, index: int) -> dict[str, str]:
    """Query parameters that open a student's test image, given by its kind and its index in the test split.

    Raises:
        UserError: the data set cannot be read.
    """
    shown = gallery(student.dataset, student.normal_class)
    before = int((shown.labels[:index] == shown.kinds.index(kind)).sum())
    place = {kind_key(student): kind, page_key(student, kind): str(before // PER_PAGE + 1)}
    return {"student": student.key, SOURCE: GALLERY, **place, LINKED: shown.name(index)}


def samples_link(student: str, texture: str, picture: str) -> dict[str, str]:
    """Query parameters that open a sample of a student's own texture with it, the student given by its key."""
    return {"student": student, SOURCE: SAMPLES, samples_key(texture): samples.label(texture), LINKED: picture}


def samples_key(texture: str | None) -> str:
    """Key of the selected sample images for students of one texture, or of none, in the session and in links."""
    return f"texture-{texture}"


def kind_key(student: Student) -> str:
    """Key of the selected kind of test image, in the session and in links."""
    return f"kind-{student.dataset}-{student.normal_class}"


def page_key(student: Student, kind: str) -> str:
    """Key of the gallery page for one kind, in the session and in links."""
    return f"gallery-{student.dataset}-{kind}"


def use_link(student: Student) -> dict[str, str]:
    """Query parameters of the train page that open how a student is used outside of the app."""
    return {VIEW: LOAD, USE: student.key}
