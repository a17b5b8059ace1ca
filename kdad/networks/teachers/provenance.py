"""Whether a teacher has seen the labels of what it is to find; stated beside every figure."""

from kdad.data.datasets import is_folder

OVERLAP_IN_WORDS = {
    "same": "The teacher was trained with the labels of the anomaly classes: this figure measures more than "
    "detection of the unknown.",
    "related": "The teacher saw labels of related classes under other names, but none of this data set.",
    "none": "The teacher saw no labels of the anomaly classes.",
    "unknown": "Nobody can say whether the teacher saw labels of the anomaly classes.",
}
UNKNOWN = ("unknown",)
# Pairs of data sets that name the same kinds of things differently.
OBJECTS = {"imagenet-1k", "imagenet-12k", "imagenet-21k", "tiny-imagenet-32"}
RELATED = {"cifar10": OBJECTS, "fashion-mnist": OBJECTS}
# Data sets in the tags of timm's weights; of those in the second line, nobody can say which labels they held.
TAGS = {"in1k": "imagenet-1k", "in12k": "imagenet-12k", "in21k": "imagenet-21k", "in22k": "imagenet-21k"}
UNLABELLED = ("openai", "laion", "webli", "ig1b", "yfcc", "lvd", "dfn", "metaclip", "datacomp", "merged", "jft", "swag")


def label_overlap(trained_on: tuple[str, ...], dataset: str) -> str:
    """Whether a teacher saw labels of `dataset`'s anomaly classes: same, related, none or unknown."""
    if dataset in trained_on:
        return "same"
    if RELATED.get(dataset, set()) & set(trained_on):
        return "related"
    if "unknown" in trained_on or is_folder(dataset):
        return "unknown"
    return "none"


def trained_on_of_tag(tag: str) -> tuple[str, ...]:
    """The data sets that the tag of timm's weights names, for instance `augreg_in21k_ft_in1k`."""
    named = tuple(dict.fromkeys(TAGS[part] for part in tag.split("_") if part in TAGS))
    return named if named and not any(word in tag for word in UNLABELLED) else (*named, *UNKNOWN)
