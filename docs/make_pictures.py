"""Makes the example on the app's home page: `python -m docs.make_pictures`, once students or teachers change.

One defect of `photo-textures`, judged by the shipped student of its texture.
"""

from pathlib import Path

from kdad.data import photo_textures
from kdad.detection.detector import Detector
from kdad.detection.rendering import overlay, save_png
from kdad.files import write_json
from ui.shared.page import ASSETS
from ui.shared.pictures import to_display
from ui.shared.student_index import root

TEXTURE, DEFECT, DRAW, SIDE = "brick", "scratch", 102, 256
TEACHERS = ("lite0-imagenet",)


def main() -> None:
    """Write `example.png`, `example-<teacher>.png` for each student, and `example.json` into `ui/assets/`."""
    pixels = photo_textures.defective(TEXTURE, DEFECT, 1, DRAW)[0][0].transpose(1, 2, 0)
    save_png(ASSETS / "example.png", to_display(pixels, SIDE))
    students = [_judged(root() / "photo-textures" / teacher / TEXTURE, pixels) for teacher in TEACHERS]
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
