"""Layout of a folder of custom images: normals, test images and masks; see `kdad.data.folders`."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from kdad.data.decoding import highest_value, max_value_of, read_image
from kdad.data.images import (
    MASK_NAME,
    counted,
    files_below,
    images_below,
    in_advance,
    is_hidden,
    masks_beside,
    of_unknown_ending,
    say,
    set_aside,
    split_by_ending,
    split_masks,
)
from kdad.data.masks import image_size
from kdad.data.protocol import MIN_NORMALS
from kdad.data.sizes import Size
from kdad.errors import UserError
from kdad.files import copies, shown

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
        self.normal_folder = _normals_of(root) or root
        if self.normal_folder == root:
            self._refuse_what_is_meant_otherwise()

    @cached_property
    def normals(self) -> list[Path]:
        """Normal images for training and calibration, of identical files the first.

        Raises:
            UserError: there are too few.
        """
        again = self._repeated_normals
        found = [file for file in self._looked_at_normals if file not in again]
        if len(found) < MIN_NORMALS:
            several = f"{len(found) + len(again)} readable images, {len(again)} of them copies of others"
            amount = several if again else counted(found, "readable image")
            raise UserError(f"{shown(self.normal_folder)} contains {amount}; at least {MIN_NORMALS} are needed")
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
        """Masks of a test image.

        Files in `ground_truth` or beside it that are named like it, such as `000`, `000_mask` or `000_mask_2` of 000,
        or all files in a folder of its name.
        """
        inside = image.relative_to(self.root / TEST)
        return self._masks.get((inside.parent, inside.stem.lower()), [])

    def say_what_is_unused(self) -> None:
        """Report on standard error what is not used as one might expect, such as files that were not read."""
        defects = [file for kind, files in self.tests.items() if kind != GOOD for file in files]
        masked = [file for file in defects if self.masks_of(file)]
        if masked and len(masked) < len(defects):
            say(f"{len(defects) - len(masked)} of {len(defects)} defective images have no mask")
        used = {mask for file in masked for mask in self.masks_of(file)}
        if lost := [mask for masks in self._masks.values() for mask in masks if mask not in used]:
            say(f"{counted(lost, 'mask')} without a defective test image, such as {shown(lost[0])}")
        images, unknown = split_by_ending(files_below(self.root))
        say(*set_aside(split_masks(self._normal_files)[1], "trained on"), *of_unknown_ending(unknown))
        known = [self.root / GROUND_TRUTH, *_folders(self.root / TEST)]
        tests = [file for file in images if file.is_relative_to(self.root / TEST)]
        others = [file for file in images if not file.is_relative_to(self.normal_folder)]
        elsewhere = [file for file in sorted({*tests, *others}) if not any(map(file.is_relative_to, known))]
        if elsewhere:
            say(f"{counted(elsewhere, 'image')} in folders that are not read, such as {shown(elsewhere[0])}")
        self._say_what_is_there_twice()

    def _say_what_is_there_twice(self) -> None:
        if again := self._repeated_normals:
            of_all = f"{len(again)} of {len(self._looked_at_normals)} normals are"
            say(f"{of_all} copies of others, {_such_as(again)}: each image is used once")
        normals, tests = self._looked_at_normals, [file for files in self.tests.values() for file in files]
        seen = {file: first for file, first in copies([*normals, *tests]).items() if first in normals}
        if known := {file: seen[file] for file in tests if file in seen}:
            say(f"{counted(list(known), 'test image')} also among normals, {_such_as(known)}: figures will flatter")

    @cached_property
    def _normal_files(self) -> list[Path]:
        """Images and masks where normals are looked for."""
        aside = (self.root / TEST, self.root / GROUND_TRUTH)
        return [file for file in images_below(self.normal_folder) if not any(map(file.is_relative_to, aside))]

    @cached_property
    def _repeated_normals(self) -> dict[Path, Path]:
        """Normals that are copies of others, each with the first of its kind."""
        return copies(self._looked_at_normals)

    @cached_property
    def _looked_at_normals(self) -> dict[Path, float]:
        """Readable normals, each with its `highest_value`."""
        return _readable(split_masks(self._normal_files)[0])

    @cached_property
    def _test_files(self) -> dict[str, list[Path]]:
        """Images and masks of the test part, by kind."""
        found: dict[str, list[Path]] = {}
        for place in _folders(self.root / TEST):
            kind = GOOD if place.name.lower() in NORMAL_NAMES else place.name
            found[kind] = sorted([*found.get(kind, []), *images_below(place)])
        return found

    @cached_property
    def _looked_at_tests(self) -> dict[str, dict[Path, float]]:
        return {kind: _readable(split_masks(files)[0]) for kind, files in self._test_files.items()}

    @cached_property
    def _masks(self) -> dict[tuple[Path, str], list[Path]]:
        """All masks, by the folder inside `ground_truth` or `test`, and the lower-case name of their image."""
        root, masks = self.root / GROUND_TRUTH, defaultdict(list)
        images = {
            (file.relative_to(self.root / TEST).parent, file.stem.lower()) for of in self.tests.values() for file in of
        }
        for file in images_below(root) if root.is_dir() else []:
            masks[_place_of_image(file.relative_to(root), images)].append(file)
        for files in self._test_files.values():
            for mask, image in masks_beside(files).items():
                masks[image.relative_to(self.root / TEST).parent, image.stem.lower()].append(mask)
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
    places = [_normals_of(folder) for folder in (root, *categories(root))]
    files = [file for place in places if place for file in images_below(place)] or images_below(root)
    sizes = []
    for file in files[:: max(1, len(files) // MAX_SIZES)]:
        with suppress(UserError):  # unreadable files are reported where images are read
            width, height = image_size(file)
            sizes.append((height, width))
    return sizes


def categories(root: Path) -> list[Path]:
    """Folders below `root` in the layout of MVTec AD, that is, with normals in `train`."""
    return [folder for folder in _folders(root) if _normals_of(folder)]


def _normals_of(root: Path) -> Path | None:
    """The folder of normals in `train`: `good`, or the only one there, if its name says that it holds normals."""
    if (root / TRAIN / GOOD).is_dir():
        return root / TRAIN / GOOD
    places = _folders(root / TRAIN)
    return places[0] if len(places) == 1 and places[0].name.lower() in NORMAL_NAMES else None


def _folders(root: Path) -> list[Path]:
    """Sorted, non-hidden subfolders of a folder; empty if it does not exist."""
    if not root.is_dir():
        return []
    return sorted(place for place in root.iterdir() if place.is_dir() and not is_hidden(place.name))


def _called(names: set[str], folders: Sequence[Path]) -> list[Path]:
    """Folders with one of these names that contain images."""
    return [folder for folder in folders if folder.name.lower() in names and images_below(folder)]


def _such_as(copied: dict[Path, Path]) -> str:
    """The first of some copies, and what it is a copy of."""
    copy, original = next(iter(copied.items()))
    return f"such as {shown(copy)} of {shown(original)}"


def _place_of_image(mask: Path, images: Collection[tuple[Path, str]]) -> tuple[Path, str]:
    """Place of a mask's image, (folder, lower-case name), among those that there are; else the one it would have."""
    own, of_folder = (mask.parent, mask.stem.lower()), (mask.parent.parent, mask.parent.name.lower())
    named = MASK_NAME.fullmatch(own[1])
    of_name = (mask.parent, named[1]) if named else own
    return next((place for place in (own, of_name, of_folder) if place in images), of_name)


def _readable(files: Sequence[Path]) -> dict[Path, float]:
    """Readable image files, each with its `highest_value`; others are reported on standard error."""
    found = {}
    for file, highest in zip(files, in_advance(highest_value, files), strict=True):
        if isinstance(highest, UserError):
            say(f"skipped {highest}")
        else:
            found[file] = highest
    return found
