"""Export a detector as one ONNX file, for use without torch: uint8 images in; score, p-value and heatmap out.

Preprocessing, teacher, student and calibration are inside. What is exported is `Detector.measure` itself: there is no
second way to judge an image.
"""

import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdad.detection.detector import Detector
from kdad.errors import UserError, WorkFailed, one_line
from kdad.files import check_output, write_bytes

INPUT, OUTPUTS = "images", ("score", "p_value", "heatmap")
OPSETS = range(18, 24)
ENDING = ".onnx"
# How far onnxruntime's answers may be from torch's: of scores and heatmaps, whose unit is one standard deviation.
TOLERANCE = 5e-3
CHECKED_BATCHES = (1, 3)


class DetectorModule(nn.Module):
    """A detector as a network: uint8 images (B, 3, H, W) to scores (B,), p-values (B,) and heatmaps (B, H, W).

    Without calibration, p-values are NaN.
    """

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = detector
        self.networks = nn.ModuleList([detector.student, detector.teacher.network])  # so that they are found
        normals = detector.calibration_scores
        self.normals = nn.Buffer(torch.empty(0) if normals is None else torch.from_numpy(np.sort(normals)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        measurement = self.detector.measure(images)
        score = self.detector.score(measurement)
        heatmap = self.detector.renderer.render_score(measurement, *images.shape[-2:])
        if not len(self.normals):
            return score, torch.full_like(score, torch.nan), heatmap
        at_least = (self.normals >= score[:, None]).sum(1)  # as `conformal.p_values` counts them
        return score, (1 + at_least) / (len(self.normals) + 1), heatmap


def export(detector: Detector, file: Path, *, size: tuple[int, int] | None = None, opset: int = OPSETS[0]) -> float:
    """Write a detector as an ONNX file, and check it against torch by onnxruntime.

    The file's metadata say what the student is, and the threshold of its verdict.

    Args:
        detector: on the CPU.
        size: (height, width) of the images to come, in pixels; by default what the teacher sees, (resize, resize).
        opset: ONNX's version of its operators, one of `OPSETS`.

    Returns:
        The largest difference between onnxruntime's and torch's scores and heatmaps, at most `TOLERANCE`.

    Raises:
        UserError: ONNX is not installed, the opset is not supported, the network cannot be exported with it, or the
            file's name does not end with .onnx or it cannot be written.
        WorkFailed: onnxruntime and torch disagree.
    """
    _check_installed()
    check_output(file, (ENDING,))
    if opset not in OPSETS:
        raise UserError(f"ONNX opset {opset} is not supported; choose one of {OPSETS[0]} to {OPSETS[-1]}")
    height, width = size or detector.teacher.preprocessing.resize
    network = DetectorModule(detector).eval()
    content = _exported(network, height, width, opset)
    difference = _difference(network, content, height, width)
    if not difference <= TOLERANCE:
        raise WorkFailed(f"onnxruntime and torch disagree by up to {difference:.2g}; nothing is written")
    write_bytes(file, content)
    return difference


def _exported(network: DetectorModule, height: int, width: int, opset: int) -> bytes:
    """Export a network for images of one size; returns the file's bytes."""
    example = _images(2, height, width)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        network(example)  # resize matrices are made before, for they are constants
        try:
            program = torch.onnx.export(
                network, (example,), dynamo=True, verbose=False, opset_version=opset, input_names=[INPUT],
                output_names=list(OUTPUTS), dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
            )  # fmt: skip
        except Exception as error:  # the exporter raises many types on what it does not know
            raise UserError(f"this student cannot be exported to ONNX: {one_line(error)}") from None
    assert program is not None
    if program.model.opset_imports[""] != opset:
        raise UserError(f"this student cannot be exported to ONNX opset {opset}; try another --opset")
    program.model.metadata_props.update(_metadata(network.detector, height, width))
    return program.model_proto.SerializeToString()


def _metadata(detector: Detector, height: int, width: int) -> dict[str, str]:
    config, normals = detector.config, detector.calibration_scores
    names = ("dataset", "normal_class", "teacher", "label_overlap", "score", "weights_sha256")
    values = {name: getattr(config, name) for name in names} | {"height": height, "width": width}
    if normals is not None:
        values |= {"false_positive_rate": detector.default_fpr, "threshold": detector.threshold()}
        values |= {"calibration": config.calibration, "calibration_normals": len(normals)}
    return {f"kdad.{name}": value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def _difference(network: DetectorModule, content: bytes, height: int, width: int) -> float:
    """The largest difference between onnxruntime's and torch's scores and heatmaps of some images."""
    import onnxruntime

    session, most = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]), 0.0
    for count in CHECKED_BATCHES:
        images = _images(count, height, width)
        score, _, heatmap = session.run(None, {INPUT: images.numpy()})
        expected_score, _, expected_heatmap = network(images)
        for values, expected in ((score, expected_score), (heatmap, expected_heatmap)):
            most = max(most, float(np.abs(values - expected.numpy()).max()))
    return most


def _images(count: int, height: int, width: int) -> Tensor:
    """Random images with both flat and busy regions."""
    generator = torch.Generator().manual_seed(count)
    coarse = torch.randint(0, 256, (count, 3, -(-height // 8), -(-width // 8)), generator=generator)
    return coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :, :height, :width].byte().contiguous()


def _check_installed() -> None:
    if not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        raise UserError("exporting to ONNX needs extra packages: pip install 'kdad[onnx]'")
