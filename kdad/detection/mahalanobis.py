"""The distance of an image from the normals in the teacher's own features: a Gaussian, and no student.

A student shows how badly an image is copied, but a copy can succeed on what is far from every normal. The Gaussian
is the trivial student, that gives the mean of the normals to any image, judged in units of how much they vary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_VARIANCE = 1e-8  # of features; what varies less counts as if it varied so much


@dataclass(frozen=True)
class Gaussian:
    """`mean` (D,) and symmetric `whitening` matrix (D, D) of summaries of normals, float32."""

    mean: Tensor
    whitening: Tensor

    @classmethod
    def fit(cls, features: Iterable[Tensor]) -> Gaussian:
        """The Gaussian of training normals, in batches (B, D) of summaries; rounded as it will be saved.

        Its covariance is shrunk after Ledoit and Wolf (2004), so that fewer images than dimensions will do.
        """
        from sklearn.covariance import LedoitWolf

        known = torch.cat([batch.cpu() for batch in features]).double()
        covariance = torch.from_numpy(LedoitWolf().fit(known.numpy()).covariance_)
        values, vectors = torch.linalg.eigh(covariance)
        spread = (values.clamp(min=MIN_VARIANCE) * len(values)).sqrt()
        whitening = (vectors / spread) @ vectors.T
        return cls(known.mean(0).float(), whitening.half().float())

    def distance(self, features: Tensor) -> Tensor:
        """The squared Mahalanobis distance (…) of summaries (…, D), per dimension: of normals, about 1.

        Source: Lee et al. 2018 (arXiv 1807.03888), equation 2, with one class.
        """
        gaussian = self.to(features.device)
        return ((features - gaussian.mean) @ gaussian.whitening).square().sum(-1)

    def shares(self, parts: Tensor) -> Tensor:
        """The shares (…, n) of n parts (…, n, D), whose mean is a summary, in its `distance`, which is their mean.

        A part that is on the other side of normals than the summary has a negative share.
        """
        gaussian = self.to(parts.device)
        off = parts - gaussian.mean
        towards = off.mean(-2) @ gaussian.whitening @ gaussian.whitening
        return (off @ towards[..., None])[..., 0]

    def to(self, device: torch.device | str) -> Gaussian:
        """The same on another device."""
        return Gaussian(self.mean.to(device), self.whitening.to(device))

    def packed(self) -> dict[str, Tensor]:
        """As calibration.safetensors holds it: one triangle of the whitening matrix, in half precision."""
        row, column = torch.tril_indices(*self.whitening.shape)
        return {"distance_mean": self.mean, "distance_whitening": self.whitening[row, column].half()}

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor]) -> Gaussian:
        """The inverse of `packed`."""
        mean = tensors["distance_mean"]
        row, column = torch.tril_indices(len(mean), len(mean))
        whitening = mean.new_zeros(len(mean), len(mean))
        whitening[row, column] = whitening[column, row] = tensors["distance_whitening"].float()
        return cls(mean, whitening)
