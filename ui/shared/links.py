"""What a link to the inspect page says of the image to look at."""

from ui.shared.pictures import gallery
from ui.shared.student_index import Student

SOURCE, GALLERY = "source", "Data set"  # where images come from, and that they come from the student's data set
LINKED = "image"  # the picture that is looked at closely
PER_PAGE = 12  # pictures of the gallery


def gallery_link(student: Student, kind: str, index: int) -> dict[str, str]:
    """The way to one test image of a student, by its kind and its index in the test part.

    Raises:
        UserError: the data set cannot be read.
    """
    kinds, labels, _ = gallery(student.dataset, student.normal_class)
    before = int((labels[:index] == kinds.index(kind)).sum())
    place = {kind_key(student): kind, page_key(student, kind): str(before // PER_PAGE + 1)}
    return {"student": student.key, SOURCE: GALLERY, **place, LINKED: f"{kind} {index}"}


def kind_key(student: Student) -> str:
    """What the choice of a kind of test image is called, in the session and in links."""
    return f"kind-{student.dataset}-{student.normal_class}"


def page_key(student: Student, kind: str) -> str:
    """The same of the page of the images of one kind."""
    return f"gallery-{student.dataset}-{kind}"
