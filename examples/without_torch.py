"""Judging an image without torch: `python without_torch.py STUDENT.onnx IMAGE`, with onnxruntime, numpy and Pillow.

The file comes from `python -m kdad export STUDENT_FOLDER STUDENT.onnx`.
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

if len(sys.argv) != 3:
    sys.exit("usage: python without_torch.py STUDENT.onnx IMAGE")
session = onnxruntime.InferenceSession(sys.argv[1])
facts = session.get_modelmeta().custom_metadata_map
size = int(facts["kdad.width"]), int(facts["kdad.height"])
picture = Image.open(sys.argv[2])
if picture.mode not in ("L", "RGB"):
    sys.exit(f"{sys.argv[2]} is of mode {picture.mode}: convert it to 8-bit grey or RGB as `kdad score` would")
image = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BICUBIC))
images = image.transpose(2, 0, 1)[None]  # uint8 (B, 3, H, W): as many as you like
score, p_value, heatmap = session.run(None, {"images": images})

row, column = np.unravel_index(heatmap[0].argmax(), heatmap[0].shape)
verdict = "anomaly" if score[0] > float(facts["kdad.threshold"]) else "normal"
print(f"{verdict}: score {score[0]:.3f}, p {p_value[0]:.4f}, most unusual at row {row}, column {column}")
