"""Lightning modules that teach a compact teacher the labels of 32 px images, alone or with a guide's features."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import TensorDataset

from kdad.data.preprocessing import Preprocessing, crop_at
from kdad.data.sources import Source
from kdad.data.task import holdout_split
from kdad.detection.discrepancy import distillation_loss, layer_errors
from kdad.errors import UserError
from kdad.networks.features import CompactClassifier, FeatureNetwork, in_squares
from kdad.networks.recipes import check_learning_rate
from kdad.networks.teachers.loading import Teacher
from kdad.networks.teachers.registry import IMAGENET_MEAN, IMAGENET_STD
from kdad.training import loop
from kdad.training.feature_cache import Views, cache_features

IMAGE_SIZE = 32  # pixels
INPUT = (IMAGE_SIZE, IMAGE_SIZE)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PREPROCESSING = {
    "cifar10": Preprocessing(INPUT, INPUT, CIFAR_MEAN, CIFAR_STD),
    "tiny-imagenet-32": Preprocessing(INPUT, INPUT, IMAGENET_MEAN, IMAGENET_STD),
    "patterns": Preprocessing(INPUT, INPUT, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
}
OPTIMIZERS = {
    "nesterov": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True),
    "adamw": lambda groups, lr: torch.optim.AdamW(groups, lr=lr),
}
ANNEAL: dict[str, Literal["linear", "cos"]] = {"nesterov": "linear", "adamw": "cos"}
AUGMENTED_ALIKE = 512  # images; a group takes about 2 ms before its first pixel is changed
SQUARES = torch.arange(16)
EVALUATION_BATCH = 500


@dataclass(frozen=True)
class PretrainRecipe:
    """The recipe of a compact teacher; saved on its card."""

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    warm_up: float = 0.2  # share of the steps
    label_smoothing: float = 0.1
    shift: int = 2  # pixels
    operations: int = 0  # of RandAugment
    erase: float = 0.0  # probability that a rectangle is erased
    mix_until: float = 0.0  # share of the epochs in which images are mixed: MixUp or CutMix
    drop_path: float = 0.0  # see `CompactViT`
    average: float = 0.0  # decay of the running average of the weights that is kept; 0 for none
    squares: int = 16  # how many of the 4×4 squares of an image a guided network is shown…
    all_squares_from: float = 0.0  # …up to this share of the epochs, never in the last
    image_sizes: tuple[int, ...] = (IMAGE_SIZE,)  # pixels, in equal shares of the epochs: smaller images are cheaper

    def __post_init__(self) -> None:
        check_learning_rate(self.learning_rate)

    @property
    def changes_images(self) -> bool:
        """Whether images are shown otherwise than as they are or mirrored."""
        return any((self.shift, self.operations, self.erase, self.mix_until))


class Classification(pl.LightningModule):
    """Teaches `model` the labels of `source`, never touching its held-out 10 %."""

    def __init__(self, model: CompactClassifier, source: Source, recipe: PretrainRecipe, seed: int):
        super().__init__()
        self.model, self.source, self.recipe, self.seed = model, source, recipe, seed
        self.preprocessing = PREPROCESSING[source.name]
        self.kept, self.held_out = holdout_split(len(source.labels("train")))
        self.averaged = None
        if recipe.average:
            averaging = get_ema_multi_avg_fn(recipe.average)
            self.averaged = AveragedModel(model, multi_avg_fn=averaging, use_buffers=True)

    def prepare(self, device: str) -> None:
        """Do what takes long and comes before the first epoch, on a device; nothing here."""

    def train_dataloader(self) -> loop.Loader:
        dataset = TensorDataset(torch.arange(len(self.kept)), self.source.labels("train")[self.kept])
        return loop.shuffled(dataset, self.recipe.batch_size, self.seed)

    def val_dataloader(self) -> loop.Loader:
        images, labels = self.source.images("train", self.held_out), self.source.labels("train")[self.held_out]
        device = self.trainer.strategy.root_device
        return loop.in_order(TensorDataset(images.to(device), labels.to(device)), EVALUATION_BATCH)

    def on_fit_start(self) -> None:
        self.images = self.source.images("train", self.kept).to(self.trainer.strategy.root_device)
        coin = torch.rand(len(self.kept), generator=torch.Generator().manual_seed(self.seed)) < 0.5
        self.coin = coin.to(self.images.device)

    def on_train_epoch_start(self) -> None:
        # Alternating flip: every second epoch shows the mirror image of the epoch before.
        self.mirrored = self.coin ^ bool(self.current_epoch % 2)
        images = torch.where(self.mirrored[:, None, None, None], self.images.flip(-1), self.images)
        self.shown = random_augment(images, self.recipe)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        places, labels = batch
        images = self.shown[places]
        pixels, targets = shrunk(self.preprocessing(images), self._image_size()), labels
        if self.current_epoch < self.recipe.mix_until * self.recipe.epochs:
            pixels, targets = mixed(pixels, labels, len(self.source.classes))
        loss = self.loss(pixels, targets)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def _image_size(self) -> int:
        image_sizes = self.recipe.image_sizes
        return image_sizes[self.current_epoch * len(image_sizes) // self.recipe.epochs]

    def _squares(self, n: int, device: torch.device) -> Tensor:
        """The squares of n images to show in this epoch, (n, k): a random choice for each image, or all."""
        epochs = self.recipe.epochs
        if self.current_epoch >= min(self.recipe.all_squares_from * epochs, epochs - 1):
            return SQUARES.to(device).expand(n, -1)
        return torch.rand(n, len(SQUARES), device=device).argsort(1)[:, : self.recipe.squares]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)

    @property
    def kept_model(self) -> CompactClassifier:
        """The network that is evaluated and saved."""
        if self.averaged is None:
            return self.model
        averaged = self.averaged.module
        assert isinstance(averaged, CompactClassifier)
        return averaged

    def learning(self) -> list[nn.Parameter]:
        """The parameters that the optimiser updates."""
        return list(self.model.parameters())

    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """The training loss of one batch, a scalar; `labels` (B,) or, of mixed images, shares of classes (B, C)."""
        return cross_entropy(self.model(pixels), labels, label_smoothing=self.recipe.label_smoothing)

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        images, labels = batch
        logits = self.kept_model(self.preprocessing(images))
        self.log("val_loss", cross_entropy(logits, labels), batch_size=len(images))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean(), batch_size=len(images))

    def configure_optimizers(self) -> dict[str, Any]:
        recipe = self.recipe
        trained = self.learning()
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = OPTIMIZERS[recipe.optimizer](groups, lr=recipe.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.learning_rate, steps, pct_start=recipe.warm_up, anneal_strategy=ANNEAL[recipe.optimizer],
            cycle_momentum=False,
        )  # fmt: skip
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def random_shift(images: Tensor, most: int) -> Tensor:
    """Move each image by up to `most` pixels each way, filling the border by reflection."""
    size = images.shape[-1]
    padded = torch.nn.functional.pad(images.float(), (most,) * 4, mode="reflect").to(images.dtype)
    return crop_at(padded, torch.randint(0, 2 * most + 1, (len(images), 2), device=images.device), (size, size))


def shrunk(pixels: Tensor, image_size: int) -> Tensor:
    """Resize normalised pixels (B, 3, H, H) to `image_size`×`image_size`; fast.ai's progressive resizing."""
    return (
        pixels if image_size == pixels.shape[-1] else interpolate(pixels, image_size, mode="bilinear", antialias=True)
    )


def random_augment(images: Tensor, recipe: PretrainRecipe) -> Tensor:
    """Shift uint8 images (N, 3, H, W), then apply RandAugment (arXiv 1909.13719) and erasing (arXiv 1708.04896).

    Random groups share their draws: one by one, a GPU would wait for them. Given the images of a whole epoch, every
    batch of it mixes many groups.
    """
    from torchvision.transforms import v2

    change = v2.Compose([v2.RandAugment(recipe.operations), v2.RandomErasing(recipe.erase, value=128)])
    changed = torch.empty_like(images)
    for group in torch.randperm(len(images), device=images.device).split(AUGMENTED_ALIKE):
        changed[group] = change(random_shift(images[group], recipe.shift))
    return changed


def mixed(pixels: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mix a batch with itself by MixUp or CutMix (arXiv 1710.09412, 1905.04899); returns soft labels (B, C), too."""
    from torchvision.transforms import v2

    return v2.RandomChoice([v2.MixUp(alpha=0.8, num_classes=classes), v2.CutMix(num_classes=classes)])(pixels, labels)


class GuidedClassification(Classification):
    """Classification that also regresses an older teacher's last two maps, each through one linear layer.

    A transformer learns from 64 + 16 places an image instead of one label, which is most of what
    it lacks against a CNN when time is short. The guide is paid for once where its answers fit into
    memory, which takes a recipe that does not change images; and most epochs show some squares of an image only.
    """

    def __init__(self, model: CompactClassifier, source: Source, recipe: PretrainRecipe, seed: int, guide: Teacher):
        super().__init__(model, source, recipe, seed)
        self.guide = replace(guide, network=LastMaps(guide.network))
        blank = torch.zeros(2, 3, 32, 32)
        targets, own = self.guide(blank), model.maps_and_logits(blank, SQUARES.expand(2, -1))[0]
        if [layer.shape[1] for layer in targets] != [layer.shape[1] for layer in own]:
            raise UserError(f"teacher {guide.name!r} cannot guide this backbone: its last maps are not 8×8 and 4×4")
        if guide.preprocessing != self.preprocessing:
            raise UserError(f"teacher {guide.name!r} cannot guide on {source.name}: it wants its pixels otherwise")
        self.readers = nn.ModuleList(nn.Linear(o.shape[2], t.shape[2]) for o, t in zip(own, targets, strict=True))

    def on_train_start(self) -> None:
        self.guide = self.guide.to(self.images.device)
        if not self.recipe.changes_images:
            self.guide = cache_features(self.guide, Views([self.images], [self.images], self.images.device))

    def learning(self) -> list[nn.Parameter]:
        """Those of `Classification`, and the readers."""
        return [*super().learning(), *self.readers.parameters()]

    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        squares = self._squares(len(pixels), pixels.device)
        maps, logits = self.model.maps_and_logits(pixels, squares)
        read = [reader(own) for reader, own in zip(self.readers, maps, strict=True)]
        copied = distillation_loss(layer_errors(read, in_squares(self.guide.targets(pixels), squares)), mse_weight=0.0)
        return cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing) + copied


class LastMaps(FeatureNetwork):
    """A teacher's last two maps without prefix, in half precision, so that those of a data set fit into memory."""

    def __init__(self, network: FeatureNetwork):
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Normalised pixels to (B, 64, D) and (B, 16, D)."""
        return [layer[:, self.network.prefix :].half() for layer in self.network(pixels)[-2:]]
