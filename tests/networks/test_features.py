"""What every network says of an image as a whole, and how it is asked."""

import torch

from kdad.networks.features import PIXELS_AT_ONCE, FeatureNetwork, forward_in_chunks


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


def test_a_network_is_asked_about_a_few_images_at_once_whatever_their_size():
    asked = []

    def network(pixels):
        asked.append(len(pixels))
        return [pixels.flatten(2).mT, pixels[:, :, :1, 0].mT]

    side = int((PIXELS_AT_ONCE // 3) ** 0.5)
    pixels = torch.rand(8, 1, side, side)
    fine, coarse = forward_in_chunks(network, pixels)
    assert asked == [3, 3, 2]
    assert torch.equal(fine, pixels.flatten(2).mT) and torch.equal(coarse, pixels[:, :, :1, 0].mT)
    asked.clear()
    forward_in_chunks(network, pixels[:, :, : side // 4, : side // 4])
    assert asked == [8]
    asked.clear()
    forward_in_chunks(network, torch.zeros(2, 1, 2 * side, 2 * side))
    assert asked == [1, 1], "an image larger than that is still one"
