"""Whether a teacher has seen the labels of what it is to find; stated beside every figure."""

from kdad.data.datasets import is_folder

OVERLAP_IN_WORDS = {
    "same": "The teacher was trained **with the labels of the anomaly classes**: this figure measures more than "
    "detection of the unknown.",
    "related": "The teacher saw labels of **related classes under other names**, but none of this data set.",
    "none": "The teacher saw no labels of the anomaly classes.",
    "unknown": "Nobody can say whether the teacher saw labels of the anomaly classes.",
}
UNKNOWN = ("unknown",)
# Pairs of data sets that name the same kinds of things differently.
RELATED = {"cifar10": {"imagenet", "tiny-imagenet-32"}, "fashion-mnist": {"imagenet", "tiny-imagenet-32"}}


def label_overlap(trained_on: tuple[str, ...], dataset: str) -> str:
    """Whether a teacher saw labels of `dataset`'s anomaly classes: same, related, none or unknown."""
    if dataset in trained_on:
        return "same"
    if RELATED.get(dataset, set()) & set(trained_on):
        return "related"
    if "unknown" in trained_on or is_folder(dataset):
        return "unknown"
    return "none"
