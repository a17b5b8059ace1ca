"""Published figures for comparison, with their selection procedure; AUROC in per cent, as printed."""

from dataclasses import dataclass, field

from kdad.data.datasets import CIFAR10_CLASSES


@dataclass(frozen=True)
class Reference:
    """A published one-vs-rest result: the mean over the classes of `dataset`, and each class if published."""

    name: str
    family: str
    label_overlap: str
    selection: str
    mean: float
    dataset: str = "cifar10"
    split: str = "test"
    classes: dict[str, float] = field(default_factory=dict)


TUNED = "a fixed number of epochs; its code prints the test AUROC after each"
REFERENCES = (
    Reference(
        name="VGG-16, published",
        family="vgg",
        label_overlap="related",
        selection="checked on the test set during training",
        mean=87.18,
        classes=dict(
            zip(CIFAR10_CLASSES, (90.53, 90.35, 79.66, 77.02, 86.71, 91.40, 88.98, 86.78, 91.45, 88.91), strict=True)
        ),
    ),
    Reference(
        name="ViT-B/16, published",
        family="vit",
        label_overlap="same",
        selection="epoch chosen by validation AUROC, which takes labelled anomalies",
        mean=96.83,
        classes=dict(
            zip(CIFAR10_CLASSES, (96.78, 98.16, 96.20, 93.55, 96.52, 94.72, 97.96, 97.71, 98.01, 98.68), strict=True)
        ),
    ),
    # arXiv 2112.04185: the student's error times the teacher's own distance, as our default score.
    Reference(
        name="Transformaly (ViT-B/16 of ImageNet-21k), published",
        family="vit",
        label_overlap="related",
        selection="how its epoch was chosen is not known to us",
        mean=98.3,
    ),
    # arXiv 2106.03844, from its abstract.
    Reference(
        name="MSAD (ImageNet backbone, tuned on the normals), published",
        family="conv",
        label_overlap="related",
        selection=TUNED,
        mean=98.6,
    ),
    # arXiv 2010.05903.
    Reference(
        name="PANDA (ResNet-152 of ImageNet, tuned on the normals), published",
        family="conv",
        label_overlap="related",
        selection=TUNED,
        mean=96.2,
    ),
    # arXiv 2011.11108, as the first of these.
    Reference(
        name="VGG-16, published",
        family="vgg",
        label_overlap="none",
        selection="checked on the test set during training",
        mean=98.71,
        dataset="mnist",
    ),
    # Ruff et al., "Deep One-Class Classification" (ICML 2018): one-class Deep SVDD, a network without a teacher.
    Reference(
        name="Deep SVDD, published",
        family="conv",
        label_overlap="none",
        selection="a fixed number of epochs",
        mean=94.80,
        dataset="mnist",
        classes=dict(zip("0123456789", (98.0, 99.7, 91.7, 91.9, 94.9, 88.5, 98.3, 94.6, 93.9, 96.5), strict=True)),
    ),
)
