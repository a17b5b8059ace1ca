"""Folding of batch norms into convolutions, for frozen networks."""

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(network: nn.Module) -> None:
    """Fold each batch norm into the preceding convolution, in place.

    Features are unchanged up to rounding. On a CPU, networks of light convolutions spend much of their time in batch
    norms. Each batch norm is replaced by its activation or by the identity, which preserves the numbering of layers.

    Args:
        network: in eval mode; a convolution's output must be used only by the module after it.
    """
    for parent in list(network.modules()):
        for (name, layer), (name_of_norm, norm) in pairwise(list(parent.named_children())):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(layer, norm))
                setattr(parent, name_of_norm, getattr(norm, "act", nn.Identity()))
