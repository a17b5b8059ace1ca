"""What every network says of an image as a whole."""

import torch

from kdad.networks.features import FeatureNetwork


def with_prefix(tokens: int) -> FeatureNetwork:
    network = FeatureNetwork()
    network.prefix = tokens
    return network


def test_the_summary_is_the_mean_over_patches_of_the_last_layer_and_halfway_to_a_class_token():
    last = torch.tensor([[[5.0, 9], [1, 2], [3, 4]]])
    assert with_prefix(0).summary([torch.zeros(1, 9, 5), last]).tolist() == [[3, 5]]
    assert with_prefix(1).summary([torch.zeros(1, 9, 5), last]).tolist() == [[3.5, 6]]
    assert with_prefix(2).summary([torch.zeros(1, 9, 5), last]).tolist() == [[4, 6.5]]  # a register says nothing
    assert with_prefix(0).summary([last.half()]).dtype == torch.float32
