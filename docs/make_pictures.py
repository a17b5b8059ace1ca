"""Makes the example on the app's home page: `python -m docs.make_pictures`, once students or teachers change.

One defect of `patterns-defects`, judged by every shipped student of its texture.
"""

from pathlib import Path

from kdad.data import patterns
from kdad.detection.detector import Detector
from kdad.detection.rendering import overlay, save_png
from kdad.files import write_json
from ui.shared.page import ASSETS
from ui.shared.pictures import to_display
from ui.shared.student_index import root

TEXTURE, DEFECT, DRAW, SIDE = "bricks", "hole", 100, 256
TEACHERS = ("lite0-imagenet", "vit-cifar10")  # a CNN and a ViT; there is no room for more


def main() -> None:
    """Write `example.png`, `example-<teacher>.png` for each student, and `example.json` into `ui/assets/`."""
    pixels = patterns.defects(TEXTURE, DEFECT, 1, DRAW)[0][0].transpose(1, 2, 0)
    save_png(ASSETS / "example.png", to_display(pixels, SIDE))
    students = [_judged(root() / "patterns-defects" / teacher / TEXTURE, pixels) for teacher in TEACHERS]
    write_json(ASSETS / "example.json", {"texture": TEXTURE, "defect": DEFECT, "students": students})


def _judged(folder: Path, pixels) -> dict:
    """Save the heatmap under one student and return what goes with it."""
    detector = Detector.load(folder, device="cpu")
    prediction = detector.predict(pixels)
    heatmap = prediction.heatmap_at(SIDE, SIDE)[0]
    teacher = folder.parent.name
    save_png(ASSETS / f"example-{teacher}.png", overlay(to_display(pixels, SIDE), heatmap, *detector.colour_range))
    return {
        "student": folder.relative_to(root()).as_posix(),
        "teacher": teacher,
        "heatmap": f"example-{teacher}.png",
        "score": float(prediction.score[0]),
        "share_below": float(detector.share_below(prediction)[0]),
        "normals": len(detector.calibration),
    }


if __name__ == "__main__":
    main()
