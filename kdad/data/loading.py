"""Loading of tasks by the name of their data set."""

from collections.abc import Callable

from kdad.data.datasets import PHOTO_TEXTURES, check_dataset, folder_path, is_folder
from kdad.data.folders import FolderTask
from kdad.data.one_vs_rest import OneVsRestTask
from kdad.data.pattern_defects import PatternDefectsTask
from kdad.data.photo_defects import PhotoTexturesTask
from kdad.data.preprocessing import Preprocessing
from kdad.data.sources import load_source
from kdad.data.task import Task
from kdad.errors import UserError, one_of

PHOTOGRAPHS = Preprocessing((256, 256), (256, 256), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def load_task(
    dataset: str,
    normal_class: str,
    pixels: Preprocessing | Callable[[], Preprocessing] = PHOTOGRAPHS,
    tile_size: int | None = None,
) -> Task:
    """Load the task in which `normal_class` of `dataset` is normal and everything else anomalous; see `DATASETS`.

    Args:
        dataset: a name in `DATASETS`, or `folder:PATH`.
        pixels: how the teacher reads images, which decides whether those of a folder need tiles; or a function that
            waits for it.
        tile_size: the side of a folder's tiles, 0 for whole images; see `kdad.data.folders.FolderTask`.
    """
    check_dataset(dataset)
    if is_folder(dataset):
        one_of(f"class of {dataset}", normal_class, FolderTask.classes)
        return FolderTask(folder_path(dataset), pixels, tile_size)
    if tile_size:
        raise UserError(f"tiles are for folders of large images; the images of {dataset} are small")
    if dataset == "patterns-defects":
        return PatternDefectsTask(normal_class)
    if dataset == PHOTO_TEXTURES:
        return PhotoTexturesTask(normal_class)
    return OneVsRestTask(load_source(dataset), normal_class)
