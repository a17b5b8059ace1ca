"""Label overlap between a teacher's training data and the anomaly classes; reported with every figure."""

from kdad.data.datasets import is_folder

OVERLAP_IN_WORDS = {
    "same": "The teacher was trained with the labels of the anomaly classes: this figure measures more than "
    "detection of the unknown.",
    "related": "The teacher saw labels of related classes under other names, but none of this data set.",
    "none": "The teacher saw no labels of the anomaly classes.",
    "unknown": "It is not known whether the teacher saw labels of the anomaly classes.",
}
UNKNOWN = ("unknown",)
# Data sets that contain the same kinds of objects under different names.
OBJECTS = {"imagenet-1k", "imagenet-12k", "imagenet-21k", "tiny-imagenet-32"}
RELATED = {"cifar10": OBJECTS, "fashion-mnist": OBJECTS}
# Data sets in the tags of timm's weights; the labels of those in the second line are unknown.
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
    """Data sets named in a tag of timm's weights, such as `augreg_in21k_ft_in1k`."""
    named = tuple(dict.fromkeys(TAGS[part] for part in tag.split("_") if part in TAGS))
    return named if named and not any(word in tag for word in UNLABELLED) else (*named, *UNKNOWN)
