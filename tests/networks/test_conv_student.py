"""The student of CNNs whose layers differ in width and stride."""

import pytest
import torch

from kdad.networks.conv_student import ConvStudent
from kdad.networks.students import build_student


@pytest.mark.parametrize(
    ("strides", "channels"), [((8, 16, 32), (5, 6, 7)), ((1, 2), (4, 3)), ((4, 32, 32), (2, 3, 4)), ((16,), (9,))]
)
def test_it_has_the_teachers_widths_on_the_teachers_grids(strides, channels):
    student = ConvStudent(strides=strides, channels=channels).eval()
    read = student(torch.randn(2, 3, 64, 96))
    assert [layer.shape for layer in read] == [
        (2, (64 // stride) * (96 // stride), width) for stride, width in zip(strides, channels, strict=True)
    ]
    assert student.grids(64, 96) == [(64 // stride, 96 // stride) for stride in strides]


def test_a_patch_is_where_its_pixels_are():
    """Changing a corner of the image changes what is read there, and nothing far from it."""
    torch.manual_seed(0)
    student = ConvStudent(strides=(8,), channels=(4,)).eval()
    pixels = torch.randn(1, 3, 96, 96)
    changed = pixels.clone()
    changed[:, :, :8, 88:] += 3
    with torch.no_grad():
        difference = (student(changed)[0] - student(pixels)[0]).abs().sum(2).view(12, 12)
    assert difference[:3, 9:].max() == difference.max() > 0
    assert difference[4:].max() == difference[:, :8].max() == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"strides": [8, 12], "channels": [1, 1]}, {"strides": [16, 8], "channels": [1, 1]},
        {"strides": [8], "channels": [1, 2]}, {"strides": [], "channels": []}, {"strides": 8, "channels": 1}, {},
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_built_is_refused(arguments, refusal):
    assert "cannot be built" in refusal(build_student, {"kind": "conv", **arguments})
