"""From the name of a data set to the task of telling its normal class from everything else."""

from kdad.catalogue import DATASETS, folder_path, is_folder
from kdad.data import DefectsTask, Task, load_source
from kdad.errors import UserError, one_of
from kdad.folders import FolderTask


def load_task(
    dataset: str, normal_class: str, side: int = 256, tile: int | None = None
) -> Task | DefectsTask | FolderTask:
    """The task of telling `normal_class` of `dataset` from everything else; see `DATASETS`.

    Args:
        dataset: a name in `DATASETS`, or `folder:PATH`.
        side, tile: for a folder, see `kdad.folders.FolderTask`.
    """
    if is_folder(dataset):
        one_of(f"class of {dataset}", normal_class, FolderTask.classes)
        return FolderTask(folder_path(dataset), side, tile)
    one_of("data set", dataset, (*DATASETS, "folder:PATH"))
    if tile:
        raise UserError(f"tiles are for folders of large images; the images of {dataset} are small")
    return DefectsTask(normal_class) if dataset == "patterns-defects" else Task(load_source(dataset), normal_class)
