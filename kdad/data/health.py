"""Health of a folder of images: what training on it would suffer from, said before the training."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdad.data.folder_layout import GOOD, FolderLayout
from kdad.data.folders import TILE_SIDES, ImageFiles
from kdad.data.images import counted
from kdad.data.masks import image_size
from kdad.data.preprocessing import resample
from kdad.data.protocol import ENOUGH_TO_CALIBRATE
from kdad.data.sizes import MAX_AREA, Size, size_in_words, whole_size
from kdad.files import shown

THUMBNAIL = 32  # pixels a side
MAX_EXAMINED = 500  # images whose pixels are looked at
BLANK_BELOW = 2.0  # grey levels, standard deviation over an image
SAME_BELOW = 0.75  # grey levels, mean difference of two thumbnails: a burst or a second file of one photograph
ODD_ABOVE = 4.0  # robust deviations of the logarithm of the distance from the most similar normal
USUAL_SIDE = 256  # pixels, at which tiles are read
START_SECONDS, IMAGE_SECONDS = 25, 0.14  # of a training on two processors at `MAX_AREA`; measured, see docs/defects.md


TILED_COST = 20  # of an image in tiles, compared with a whole one of `MAX_AREA`


@dataclass(frozen=True)
class Health:
    """Contents of a folder, and the doubtful ones among them.

    Args:
        normals: how many normals there are.
        examined: how many of them were looked at.
        tests: how many test images there are of each kind.
        masks: how many of the defective test images have a mask.
        sizes: the smallest, the median and the largest (height, width) of normals, by area.
        image_size: (height, width) at which they will be read.
        tile_size: side of the tiles that they will be read in; 0 for whole images.
        blank: normals of one colour.
        repeated: normals that show what another one shows, each with that one.
        odd: normals that are unlike all others, the oddest first.
        seconds: a rough estimate of the time that training on two processors takes.
    """

    normals: int
    examined: int
    tests: dict[str, int]
    masks: int
    sizes: tuple[Size, Size, Size]
    image_size: Size
    tile_size: int
    blank: list[str]
    repeated: list[tuple[str, str]]
    odd: list[str]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The fields and what they mean, ready for JSON."""
        return asdict(self) | {"advice": self.advice}

    @property
    def advice(self) -> list[str]:
        """Sentences on what to do before training; empty for a healthy folder."""
        said = []
        if self.normals < ENOUGH_TO_CALIBRATE:
            said.append(
                f"{self.normals} normals are few: false alarms are estimated roughly, and what the normals do not "
                f"show counts as a defect; {ENOUGH_TO_CALIBRATE} or more are better"
            )
        if self.odd:
            said.append(f"{counted(self.odd, 'normal')} unlike all others, such as {self.odd[0]}: normal, indeed?")
        if self.blank:
            said.append(f"{counted(self.blank, 'normal')} of one colour, such as {self.blank[0]}: remove what is empty")
        if self.repeated:
            one, other = self.repeated[0]
            said.append(
                f"{counted(self.repeated, 'normal')} nearly the same as another, such as {one} and {other}: "
                "they count as one, so that there are fewer normals than it seems"
            )
        smallest, _, largest = (math.prod(size) for size in self.sizes)
        if largest > 4 * smallest:
            said.append("sizes differ by more than a factor of two: photograph from one distance, or crop alike")
        if not self.tests.get(GOOD) or len(self.tests) < 2:
            said.append("no test images of both kinds: add test/good and test/<kind of defect> to measure accuracy")
        return said


def examine(root: Path) -> Health:
    """Look at a folder of normals, as `kdad.data.folders.FolderTask` reads it.

    At most `MAX_EXAMINED` normals, evenly chosen, are compared with each other as thumbnails.

    Raises:
        UserError: the folder cannot be trained on.
    """
    return examine_layout(FolderLayout(root.resolve()))


def examine_layout(layout: FolderLayout) -> Health:
    """The same of a folder that was looked into before."""
    normals = layout.normals
    sizes = sorted((image_size(file)[::-1] for file in normals), key=math.prod)
    whole = whole_size(sizes)
    examined = normals[:: -(-len(normals) // MAX_EXAMINED)]
    thumbnails = _thumbnails(ImageFiles(examined, layout.max_value))
    names = [shown(file.relative_to(layout.normal_folder)) for file in examined]
    blank, repeated, odd = _blank(thumbnails), _repeated(thumbnails), _odd(thumbnails)
    cost = TILED_COST if whole is None else math.prod(whole) / MAX_AREA
    defects = [file for kind, files in layout.tests.items() if kind != GOOD for file in files]
    return Health(
        normals=len(normals),
        examined=len(examined),
        tests={kind: len(files) for kind, files in layout.tests.items()},
        masks=sum(bool(layout.masks_of(file)) for file in defects),
        sizes=(sizes[0], sizes[len(sizes) // 2], sizes[-1]),
        image_size=whole or (USUAL_SIDE, USUAL_SIDE),
        tile_size=TILE_SIDES * USUAL_SIDE if whole is None else 0,
        blank=[names[index] for index in blank],
        repeated=[(names[one], names[other]) for one, other in repeated],
        odd=[names[index] for index in odd if index not in blank],
        seconds=START_SECONDS + IMAGE_SECONDS * len(normals) * cost,
    )


def in_words(health: Health) -> list[str]:
    """Lines on what there is; `Health.advice` says what to do."""
    smallest, middle, largest = map(size_in_words, health.sizes)
    of_sizes = f"{middle} px" if smallest == largest else f"{smallest} to {largest} px, median {middle}"
    tests = ", ".join(f"{count} {kind}" for kind, count in health.tests.items()) or "none"
    read = (
        f"in tiles of {health.tile_size} px" if health.tile_size else f"whole, at {size_in_words(health.image_size)} px"
    )
    return [
        f"normals: {health.normals}, {of_sizes}, to be read {read}",
        f"test images: {tests}" + (f"; {health.masks} with masks" if health.masks else ""),
        f"training: about {_time(health.seconds)} on two processors",
    ]


def _time(seconds: float) -> str:
    return f"{max(1, round(seconds / 60))} min" if seconds >= 90 else f"{round(seconds, -1):.0f} s"


def _thumbnails(images: ImageFiles) -> np.ndarray:
    """Thumbnails of images, one row each."""
    small = (resample(image[None].float(), THUMBNAIL, THUMBNAIL, "bilinear") for image in images)
    return np.stack([each.flatten().numpy() for each in small])


def _blank(thumbnails: np.ndarray) -> list[int]:
    """Images of one colour."""
    channels = thumbnails.reshape(len(thumbnails), 3, -1)
    return np.flatnonzero(channels.std(2).max(1) < BLANK_BELOW).tolist()


def _distances(thumbnails: np.ndarray) -> np.ndarray:
    """Mean absolute differences (N, N) of thumbnails; infinite of each from itself."""
    distances = np.stack([np.abs(thumbnails - one).mean(1) for one in thumbnails])
    np.fill_diagonal(distances, np.inf)
    return distances


def _repeated(thumbnails: np.ndarray) -> list[tuple[int, int]]:
    """Images that an earlier one shows as well, each with that one."""
    distances = _distances(thumbnails)
    return [
        (index, int(distances[index, :index].argmin()))
        for index in range(1, len(thumbnails))
        if distances[index, :index].min() < SAME_BELOW
    ]


def _odd(thumbnails: np.ndarray) -> list[int]:
    """Images far more unlike their most similar one than others are, the oddest first."""
    nearest = np.log(_distances(thumbnails).min(1).clip(min=SAME_BELOW))
    middle = np.median(nearest)
    deviation = 1.4826 * np.median(np.abs(nearest - middle))
    unlike = (nearest - middle) / max(deviation, 0.1)
    return [int(index) for index in np.argsort(-unlike) if unlike[index] > ODD_ABOVE]
