"""Rows of other methods, on the images and at the size that kdad reads."""

import json

import torch

from benchmarks import peers


class Brightness:
    """A peer to which the brightest place is the worst, after it has seen the normals."""

    def fit(self, pixels):
        self.normal = max(float(image.mean()) for image in pixels)

    def judge(self, pixels):
        shown = pixels.mean(1)[0] - self.normal
        return peers.Judged(float(shown.max()), torch.nn.functional.avg_pool2d(shown[None], 8)[0])


def test_a_row_per_method_and_folder_and_a_new_run_replaces_it(defect_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "PEERS", {"brightness": Brightness})
    file = tmp_path / "peers.json"
    for _ in range(2):
        peers.main([str(defect_folder), "--methods", "brightness", "--results", str(file)])
    (row,) = json.loads(file.read_text())["rows"]
    assert (row["dataset"], row["method"], row["image_size"]) == ("screws", "brightness", [256, 256])
    assert row["auroc"] == 1 and row["pixel_auroc"] > 0.95 and row["pro"] > 0.9
    assert str(tmp_path) not in file.read_text()
