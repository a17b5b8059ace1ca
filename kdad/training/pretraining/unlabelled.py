"""The Lightning module that teaches a compact network what a guide sees in pictures, without their labels."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax
from torch.utils.data import TensorDataset

from kdad.data.sources import Source
from kdad.detection.discrepancy import distillation_loss, layer_errors
from kdad.networks.features import CompactClassifier, in_squares
from kdad.training import loop
from kdad.training.pretraining.classification import EVALUATION_BATCH, SQUARES, Classification, PretrainRecipe
from kdad.training.pretraining.guide_features import GRIDS, Guide, GuideView, guide_features

# Weight of maps against answers. Answers alone teach more slowly, maps alone worse: of short runs with 0, 0.3, 1 and
# 3, the last came nearest to both, and its features told cat and airplane best from CIFAR-10's other validation images.
HINTS = 3.0


class Copied(NamedTuple):
    """The quality of a batch's copy: the loss, and the share of pictures whose likeliest class is the guide's."""

    loss: Tensor
    agreement: Tensor


class UnlabelledDistillation(Classification):
    """Teaches `model` a guide's maps, each through one linear reader, and its soft answers; no label is read.

    Maps: FitNets' hints (Romero et al., arXiv 1412.6550); soft answers: Hinton et al., arXiv 1503.02531, at
    temperature 1. The guide sees pictures as they are: of a mirrored one, its maps are taken to be mirrored.
    """

    def __init__(self, model: CompactClassifier, source: Source, recipe: PretrainRecipe, seed: int, guide: Guide):
        super().__init__(model, source, recipe, seed)
        self.guide = guide
        own = model.maps_and_logits(torch.zeros(2, 3, 32, 32), SQUARES.expand(2, -1))[0]
        widths = zip(own, guide.widths, strict=True)
        self.readers = nn.ModuleList(nn.Linear(layer.shape[2], width) for layer, width in widths)

    def prepare(self, device: str) -> None:
        """Look at every picture through the guide, on a device, or read what it saw."""
        self.guide.teacher.to(device)
        self.features = guide_features(self.guide, self.source, torch.cat([self.kept, self.held_out]))

    def train_dataloader(self) -> loop.Loader:
        return loop.shuffled(TensorDataset(torch.arange(len(self.kept))), self.recipe.batch_size, self.seed)

    def val_dataloader(self) -> loop.Loader:
        rows = torch.arange(len(self.kept), len(self.kept) + len(self.held_out))
        return loop.in_order(TensorDataset(self.source.images("train", self.held_out), rows), EVALUATION_BATCH)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        (places,) = batch
        seen = mirrored_views(self._seen(places), self.mirrored[places])
        squares = self._squares(len(places), places.device)
        copied = self.copied(self.model, self.preprocessing(self.shown[places]), seen, squares)
        self.log("train_loss", copied.loss, on_step=False, on_epoch=True, batch_size=len(places))
        return copied.loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        images, rows = batch
        squares = SQUARES.to(images.device).expand(len(images), -1)
        copied = self.copied(self.kept_model, self.preprocessing(images), self._seen(rows), squares)
        self.log("val_loss", copied.loss, batch_size=len(images))
        self.log("val_agreement", copied.agreement, batch_size=len(images))

    def learning(self) -> list[nn.Parameter]:
        """Those of `Classification`, and the readers."""
        return [*super().learning(), *self.readers.parameters()]

    def copied(self, model: CompactClassifier, pixels: Tensor, seen: GuideView, squares: Tensor) -> Copied:
        """Compare a network with what the guide saw in B pictures, in some squares (B, k) of the maps."""
        maps, logits = model.maps_and_logits(pixels, squares)
        read = [reader(own) for reader, own in zip(self.readers, maps, strict=True)]
        hints = distillation_loss(layer_errors(read, in_squares(seen.maps, squares)), mse_weight=0.0)
        answers, wanted = log_softmax(logits.float(), 1), log_softmax(seen.logits.float(), 1)
        loss = HINTS * hints + kl_div(answers, wanted, log_target=True, reduction="batchmean")
        return Copied(loss, (answers.argmax(1) == wanted.argmax(1)).float().mean())

    def _seen(self, rows: Tensor) -> GuideView:
        maps, logits = self.features[rows]
        return GuideView([layer.to(rows.device) for layer in maps], logits.to(rows.device))


def mirrored_views(seen: GuideView, mirrored: Tensor) -> GuideView:
    """Mirror a guide's view of B pictures where they, `mirrored` (B,) bool, are shown as mirror images."""
    maps = [
        torch.where(mirrored[:, None, None], layer.unflatten(1, (side, side)).flip(2).flatten(1, 2), layer)
        for layer, side in zip(seen.maps, GRIDS, strict=True)
    ]
    return GuideView(maps, seen.logits)
