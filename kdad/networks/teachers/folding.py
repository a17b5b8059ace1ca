"""Batch norms of frozen networks, folded into the convolutions before them."""

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(network: nn.Module) -> None:
    """Let every convolution do the work of the batch norm that stands right behind it; in place.

    Features stay what they were up to rounding. On a CPU, a network of light convolutions spends much of its time in
    batch norms. What stands in the place of one is the activation that came with it, if any, so that layers keep their
    numbers.

    Args:
        network: in eval mode, and such that a convolution's output goes nowhere but to the module after it.
    """
    for parent in list(network.modules()):
        for (name, layer), (name_of_norm, norm) in pairwise(list(parent.named_children())):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(layer, norm))
                setattr(parent, name_of_norm, getattr(norm, "act", nn.Identity()))
