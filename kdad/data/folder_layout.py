"""Layout of a folder of custom images: normals, test images and masks; see `kdad.data.folders`."""

import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from kdad.data.decoding import highest_value, max_value_of, read_image
from kdad.data.images import images_below, in_advance, is_hidden
from kdad.data.masks import image_size
from kdad.data.protocol import MIN_NORMALS
from kdad.data.sizes import Size
from kdad.errors import UserError
from kdad.files import shown

GOOD = "good"
MAX_SIZES = 200  # images whose sizes are looked at
TRAIN, TEST, GROUND_TRUTH = "train", "test", "ground_truth"
# Common folder names, in lower case. Next to one of the first, other folders are taken not to hold normals.
NORMAL_NAMES = {"good", "normal", "normals", "ok", "pass"}
OTHER_NAMES = {
    "bad", "defect", "defects", "defective", "anomaly", "anomalies", "anomalous", "abnormal", "ng", "fail", "mask",
    "masks", "label", "labels", "gt", "groundtruth", "annotations",
}  # fmt: skip


class FolderLayout:
    """Readable image files of a folder, by purpose.

    Args:
        root: the folder, resolved.

    Raises:
        UserError: the folder does not exist, or appears to contain other images than normals where only normals are
            expected.
    """

    def __init__(self, root: Path):
        if not root.is_dir():
            raise UserError(f"{shown(root)}: no such folder")
        self.root = root
        self.normal_folder = root / TRAIN / GOOD if (root / TRAIN / GOOD).is_dir() else root
        if self.normal_folder == root:
            self._refuse_what_is_meant_otherwise()

    @cached_property
    def normals(self) -> list[Path]:
        """Normal images for training and calibration.

        Raises:
            UserError: there are too few.
        """
        found = list(self._looked_at_normals)
        if len(found) < MIN_NORMALS:
            place = shown(self.normal_folder)
            raise UserError(f"{place} contains {len(found)} readable images; at least {MIN_NORMALS} are needed")
        return found

    @cached_property
    def max_value(self) -> int:
        """Value of white in images of more than 8 bits, derived from the normals; 0 if none of them has more.

        Raises:
            UserError: their values exceed all known values of white.
        """
        highest = max(self._looked_at_normals.values(), default=0.0)
        max_value = max_value_of(highest) if highest else 0
        if highest and not max_value:
            raise UserError(
                f"{shown(self.normal_folder)} contains grey values up to {highest:g}; scale them to 0…65535 or 0…1"
            )
        return max_value

    @cached_property
    def tests(self) -> dict[str, list[Path]]:
        """Test images by kind; may be empty."""
        return {kind: list(files) for kind, files in self._looked_at_tests.items() if files}

    def check_tests(self) -> None:
        """Check the test images with values above `max_value`.

        Raises:
            UserError: the values of one of them cannot be scaled.
        """
        for files in self._looked_at_tests.values():
            for file, highest in files.items():
                if highest > self.max_value:
                    read_image(file, max_value=self.max_value)

    def masks_of(self, image: Path) -> list[Path]:
        """Masks of a test image: files named like it, with or without `_mask`, or all files in a folder of its name."""
        inside = image.relative_to(self.root / TEST)
        return self._masks.get((inside.parent, inside.stem.lower()), [])

    def say_what_is_unused(self) -> None:
        """Report on standard error files that are neither normals, test images nor masks."""
        defects = [file for kind, files in self.tests.items() if kind != GOOD for file in files]
        masked = [file for file in defects if self.masks_of(file)]
        if masked and len(masked) < len(defects):
            _say(f"{len(defects) - len(masked)} of {len(defects)} defective images have no mask")
        used = {mask for file in masked for mask in self.masks_of(file)}
        if lost := [mask for masks in self._masks.values() for mask in masks if mask not in used]:
            _say(f"{_counted(lost, 'mask')} without a defective test image, such as {shown(lost[0])}")
        if self.normal_folder != self.root:
            known = [self.normal_folder, self.root / GROUND_TRUTH, *_folders(self.root / TEST)]
            others = [file for file in images_below(self.root) if not any(map(file.is_relative_to, known))]
            if others:
                _say(f"{_counted(others, 'image')} in folders that are not read, such as {shown(others[0])}")

    @cached_property
    def _looked_at_normals(self) -> dict[Path, float]:
        """Readable normals, each with its `highest_value`."""
        aside = (self.root / TEST, self.root / GROUND_TRUTH)
        files = images_below(self.normal_folder)
        return _readable([file for file in files if not any(map(file.is_relative_to, aside))])

    @cached_property
    def _looked_at_tests(self) -> dict[str, dict[Path, float]]:
        return {place.name: _readable(images_below(place)) for place in _folders(self.root / TEST)}

    @cached_property
    def _masks(self) -> dict[tuple[Path, str], list[Path]]:
        """All masks, by the folder inside `ground_truth` and the lower-case name of their image."""
        root, masks = self.root / GROUND_TRUTH, defaultdict(list)
        images = {
            (file.relative_to(self.root / TEST).parent, file.stem.lower()) for of in self.tests.values() for file in of
        }
        for file in images_below(root) if root.is_dir() else []:
            inside = file.relative_to(root)
            of_folder = (inside.parent.parent, inside.parent.name.lower())
            own = (inside.parent, file.stem.lower().removesuffix("_mask"))
            masks[of_folder if own not in images and of_folder in images else own].append(file)
        return dict(masks)

    def _refuse_what_is_meant_otherwise(self) -> None:
        place = shown(self.root)
        if found := [shown(folder.name) for folder in categories(self.root)]:
            raise UserError(
                f"{place} contains {len(found)} categories, each with its own normals: name one, such as "
                f"folder:{place}/{found[0]}, or train them all with sweep"
            )
        kept = (TRAIN, TEST, GROUND_TRUTH)
        folders = [*_folders(self.root), *_folders(self.root / TRAIN)]
        folders = [folder for folder in folders if folder.name not in kept]
        normal = _called(NORMAL_NAMES, folders)
        others = [folder for folder in folders if folder not in normal and images_below(folder)] if normal else []
        if others := others or _called(OTHER_NAMES, folders):
            names = " and ".join(repr(shown(folder.name)) for folder in others[:3])
            where = f"folder:{shown(normal[0])}" if normal else "a folder of normals alone"
            raise UserError(
                f"{place}: are the images in {names} normal, too? Name {where}, or move normals to {TRAIN}/{GOOD} and "
                f"all others to {TEST}/<kind>"
            )


def normal_sizes(root: Path) -> list[Size]:
    """Sizes (height, width) of some normals of a folder, or of all its categories; empty if none can be read."""
    if not root.is_dir():
        return []
    places = [root / TRAIN / GOOD, *(folder / TRAIN / GOOD for folder in categories(root))]
    files = [file for place in places if place.is_dir() for file in images_below(place)] or images_below(root)
    sizes = []
    for file in files[:: max(1, len(files) // MAX_SIZES)]:
        with suppress(UserError):  # unreadable files are reported where images are read
            width, height = image_size(file)
            sizes.append((height, width))
    return sizes


def categories(root: Path) -> list[Path]:
    """Folders below `root` in the layout of MVTec AD, that is, with a `train/good`."""
    return [folder for folder in _folders(root) if (folder / TRAIN / GOOD).is_dir()]


def _folders(root: Path) -> list[Path]:
    """Sorted, non-hidden subfolders of a folder; empty if it does not exist."""
    if not root.is_dir():
        return []
    return sorted(place for place in root.iterdir() if place.is_dir() and not is_hidden(place.name))


def _called(names: set[str], folders: Sequence[Path]) -> list[Path]:
    """Folders with one of these names that contain images."""
    return [folder for folder in folders if folder.name.lower() in names and images_below(folder)]


def _readable(files: Sequence[Path]) -> dict[Path, float]:
    """Readable image files, each with its `highest_value`; others are reported on standard error."""
    found = {}
    for file, highest in zip(files, in_advance(highest_value, files), strict=True):
        if isinstance(highest, UserError):
            _say(f"skipped {highest}")
        else:
            found[file] = highest
    return found


def _counted(files: Sequence[Path], what: str) -> str:
    return f"{len(files)} {what}{'s' if len(files) > 1 else ''}"


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)
