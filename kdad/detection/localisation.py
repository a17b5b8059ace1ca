"""Localise anomalies: all methods by name, one interface.

Besides the forward-only `patch`, the gradient methods of Salehi et al. 2020 (arXiv 2011.11108, section 3.3),
computed by Captum, and attention rollout for comparison, which shows where a ViT teacher looks, anomalous or not.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from kdad.data.images import in_batches
from kdad.detection.detector import Detector, Prediction
from kdad.detection.discrepancy import layer_errors
from kdad.detection.tiles import in_chunks
from kdad.errors import UserError, one_of
from kdad.networks.vit import AttendingFeatures
from kdad.scores import published_score

STUDENT = "student"
SAMPLES = 50
NOISE = 0.05  # share of the range of pixel values; the published code squares it, to about 0.0025
SAMPLES_AT_ONCE = 10
CLIP_PERCENTILE = 99
SIGMA, SIGMA_SIDE = 4.0, 128  # the published blur in pixels, and the side of the images it was meant for


def localise(detector: Detector, images: Tensor, method: str = "patch", noise: float = NOISE) -> np.ndarray:
    """Heatmaps float32 (B, H, W) of uint8 images (B, 3, H, W) by a method of `METHODS`.

    `patch`, of what the score reads, and `student`, of patch errors where the score reads something else, are in
    standard deviations above a normal patch; the others have a unit of their own, so their values compare within an
    image only.

    Args:
        noise: the standard deviation of `smoothgrad`'s noise, as a share of the range of pixel values.

    Raises:
        UserError: the method is unknown, or not for this kind of network.
    """
    saliency = _saliency(detector, method, noise)
    if saliency is None:
        predictions = [detector.predict(batch) for batch in in_batches(images)]
        return np.concatenate([_student(each) if method == STUDENT else each.heatmap for each in predictions])
    return np.concatenate([_over_images(detector, batch, saliency) for batch in in_batches(images)])


def check_method(detector: Detector, method: str) -> None:
    """Raise a `UserError` if a method is unknown, or not for this kind of network."""
    _saliency(detector, method, NOISE)


def methods_for(detector: Detector) -> list[str]:
    """The names of the methods that this detector's networks allow."""
    fit = {
        STUDENT: detector.calibration is not None and detector.calibration.patches is not None,
        "guided-backprop": _rectifies(detector),
        "attention-rollout": _attends(detector),
    }
    return [name for name in METHODS if fit.get(name, True)]


def _student(prediction: Prediction) -> np.ndarray:
    return prediction.student_heatmap_at(*prediction.size)


Saliency = Callable[[Tensor], Tensor]  # normalised pixels (B, 3, S, S) to maps (B, S, S)


def _saliency(detector: Detector, method: str, noise: float) -> Saliency | None:
    """The function that makes a method's maps; None for methods whose maps every prediction has."""
    make = METHODS[one_of("localisation method", method, METHODS)]
    return None if make is None else make(detector, noise)


def _over_images(detector: Detector, images: Tensor, saliency: Saliency) -> np.ndarray:
    """Maps (B, H, W) over images, whole or tile by tile."""
    preprocessing, tiler = detector.teacher.preprocessing, detector.tiler
    pieces = tiler.split(images.to(detector.device))
    (maps,) = in_chunks(lambda chunk: (saliency(preprocessing(chunk)),), pieces)
    height, width = images.shape[2:]
    return tiler.to_image(tiler.merge(maps, height, width), height, width).cpu().numpy()


class _Score(nn.Module):
    """Normalised pixels (B, 3, S, S) to the published score (B,), as one network for Captum."""

    def __init__(self, detector: Detector):
        super().__init__()
        self.student, self.teacher = detector.student, detector.teacher.network
        self.mse_weight = detector.config.recipe.mse_weight

    def forward(self, pixels: Tensor) -> Tensor:
        return published_score(layer_errors(self.student(pixels), self.teacher(pixels)), self.mse_weight)


def _gradients(detector: Detector, noise: float) -> Saliency:
    """|d score / d pixel|: the paper's plain gradients."""
    from captum.attr import Saliency as CaptumSaliency

    captum = CaptumSaliency(_Score(detector))
    return lambda pixels: _tidy(captum.attribute(pixels.requires_grad_(), abs=False))


def _smoothgrad(detector: Detector, noise: float) -> Saliency:
    """The mean gradient of noisy copies: Smilkov et al. 2017 (arXiv 1706.03825), `SAMPLES` of them."""
    from captum.attr import NoiseTunnel
    from captum.attr import Saliency as CaptumSaliency

    captum = NoiseTunnel(CaptumSaliency(_Score(detector)))

    def of_one(pixels: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[pixels.device] if pixels.is_cuda else []):
            torch.manual_seed(0)  # for every image anew: its map must not depend on the others of its batch
            gradient = captum.attribute(
                pixels.requires_grad_(), nt_type="smoothgrad", nt_samples=SAMPLES, stdevs=noise * _range(detector),
                nt_samples_batch_size=SAMPLES_AT_ONCE, abs=False,
            )  # fmt: skip
        return _tidy(gradient)

    return lambda pixels: torch.cat([of_one(each) for each in pixels.split(1)])


def _range(detector: Detector) -> float:
    """The range of normalised pixel values, mean over the channels."""
    return float(np.mean([1 / std for std in detector.teacher.preprocessing.std]))


def _guided_backprop(detector: Detector, noise: float) -> Saliency:
    """Gradients that pass only what is positive at every ReLU: Springenberg et al. 2015 (arXiv 1412.6806)."""
    from captum.attr import GuidedBackprop

    if not _rectifies(detector):
        raise UserError("guided-backprop is for networks of ReLUs; of this student, choose gradients or smoothgrad")
    score = _Score(detector)

    def saliency(pixels: Tensor) -> Tensor:
        with _out_of_place(score):
            return _tidy(GuidedBackprop(score).attribute(pixels.requires_grad_()))

    return saliency


@contextmanager
def _out_of_place(network: nn.Module) -> Iterator[None]:
    """Keep ReLUs from overwriting their inputs inside the block, which backward hooks do not allow."""
    rectifiers = [module for module in network.modules() if isinstance(module, nn.ReLU) and module.inplace]
    for module in rectifiers:
        module.inplace = False
    try:
        yield
    finally:
        for module in rectifiers:
            module.inplace = True


def _attention_rollout(detector: Detector, noise: float) -> Saliency:
    """The attention of the teacher's CLS token to each patch: Abnar and Zuidema 2020 (arXiv 2005.00928)."""
    network, teacher = detector.teacher.network, detector.teacher
    if not isinstance(network, AttendingFeatures):
        raise UserError("attention-rollout is for ViT teachers; of a VGG student, choose another method")

    @torch.no_grad()
    def saliency(pixels: Tensor) -> Tensor:
        attentions = network.attentions(pixels)
        identity = torch.eye(attentions[0].shape[-1], device=pixels.device)
        flow = identity
        for attention in attentions:
            mixed = attention.mean(1) + identity  # heads alike, and the residual connection
            flow = mixed / mixed.sum(-1, keepdim=True) @ flow
        return flow[:, 0, teacher.prefix :].unflatten(1, teacher.grids[-1])

    return saliency


def _rectifies(detector: Detector) -> bool:
    """Whether the teacher has plain ReLUs: the method does not handle others, such as EfficientNet-Lite0's ReLU6."""
    return any(isinstance(module, nn.ReLU) for module in detector.teacher.network.modules())


def _attends(detector: Detector) -> bool:
    """Whether the teacher gives its attention weights."""
    return isinstance(detector.teacher.network, AttendingFeatures)


def _tidy(gradient: Tensor) -> Tensor:
    """Input gradients (B, 3, S, S) to maps (B, S, S) as published.

    The channels' absolute values are summed, clipped at the 99th percentile of the image and
    blurred; the blur keeps its share of an image of any side.
    """
    from torchvision.transforms.functional import gaussian_blur

    maps = gradient.detach().abs().sum(1)
    top = maps.flatten(1).quantile(CLIP_PERCENTILE / 100, dim=1)
    maps = maps.minimum(top[:, None, None])
    sigma = SIGMA * maps.shape[-1] / SIGMA_SIDE
    reach = min(int(np.ceil(4 * sigma)), (maps.shape[-1] - 1) // 2)
    return gaussian_blur(maps[:, None], 2 * reach + 1, sigma)[:, 0]


METHODS: dict[str, Callable[[Detector, float], Saliency] | None] = {
    "patch": None,  # the heatmap of every prediction
    STUDENT: None,
    "gradients": _gradients,
    "smoothgrad": _smoothgrad,
    "guided-backprop": _guided_backprop,
    "attention-rollout": _attention_rollout,
}
