"""Images as points: a teacher's pooled features of whole images, and their projection to two dimensions."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from kdad.errors import one_of

if TYPE_CHECKING:
    from torch import Tensor

    from kdad.networks.teachers.loading import Teacher

PCA, TSNE = METHODS = ("PCA", "t-SNE")
COMPONENTS, PERPLEXITY = 50, 30.0  # of t-SNE: principal components that it reads, and neighbours that it keeps


def pooled_features(teacher: "Teacher", images: "Tensor | Iterable[Tensor]") -> Iterator[np.ndarray]:
    """The teacher's summary of each whole image, in batches (B, D) float32 and in order.

    Args:
        images: uint8 (N, 3, H, W), or images (3, H, W) of any sizes, resized as the teacher prescribes.
    """
    from kdad.data.images import in_batches

    for batch in in_batches(images):
        yield teacher.network.summary(teacher(teacher.preprocessing(batch))).cpu().numpy()


def project(features: np.ndarray, method: str) -> tuple[np.ndarray, tuple[str, str]]:
    """Coordinates (N, 2) of features (N, D), N ≥ 3, each standardised first, and what the two axes are.

    PCA shows the two directions of most variance; t-SNE (van der Maaten and Hinton 2008) keeps neighbours together, and
    its distances between groups mean nothing. The same features give the same map.

    Raises:
        UserError: there is no such method.
    """
    from sklearn.decomposition import PCA as PrincipalComponents
    from sklearn.manifold import TSNE as StochasticNeighbours

    one_of("projection", method, METHODS)
    features = features.astype(np.float64)
    spread = features.std(0)
    standardised = (features - features.mean(0)) / np.where(spread > 0, spread, 1)
    if method == PCA:
        with np.errstate(invalid="ignore"):  # images that are all alike have no variance to share
            places = PrincipalComponents(2, random_state=0).fit_transform(standardised)
        shares = 100 * places.var(0) / max(float(standardised.var(0).sum()), 1e-12)
        return places, (f"component 1, {shares[0]:.0f} % of variance", f"component 2, {shares[1]:.0f} % of variance")
    reduced = PrincipalComponents(min(COMPONENTS, *standardised.shape), random_state=0).fit_transform(standardised)
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    places = StochasticNeighbours(2, init="pca", perplexity=perplexity, random_state=0).fit_transform(reduced)
    return places, ("t-SNE 1", "t-SNE 2")
