"""The compact ViT of the shipped teachers: 12 blocks, patch size 4, 3.6 M parameters; does not import transformers.

On disk it is a regular transformers folder (`ViTForImageClassification`).
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kdad.data.preprocessing import Preprocessing
from kdad.errors import UserError, one_line
from kdad.files import write_bytes, write_json
from kdad.networks.features import CompactClassifier, patches_of
from kdad.networks.vit import CRITICAL_LAYERS, AttendingFeatures, Block, TokenBlocks

SIZE, PATCH, WIDTH, HIDDEN, HEADS, BLOCKS, EPSILON = 32, 4, 192, 384, 3, 12, 1e-12
# The architecture's fields in transformers' config.json.
ARCHITECTURE = {
    "model_type": "vit",
    "image_size": SIZE,
    "patch_size": PATCH,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_hidden_layers": BLOCKS,
    "hidden_act": "gelu",
    "layer_norm_eps": EPSILON,
    "qkv_bias": True,
}
# Our parameter names and transformers'; the three attention projections are one tensor here.
NAMES = {
    "stack.prefix_tokens": "vit.embeddings.cls_token",
    "stack.positions": "vit.embeddings.position_embeddings",
    "stack.embed": "vit.embeddings.patch_embeddings.projection",
    "stack.blocks": "vit.encoder.layer",
    "self_attn.out_proj": "attention.output.dense",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "norm": "vit.layernorm",
    "head": "classifier",
}
JOINED = "self_attn.in_proj_"
PARTS = ("query", "key", "value")


class CompactViTFeatures(AttendingFeatures, TokenBlocks):
    """Twelve blocks, read after every third."""

    width = WIDTH

    def __init__(self) -> None:
        super().__init__(
            size=SIZE, patch=PATCH, prefix=1, width=WIDTH, hidden=HIDDEN, heads=HEADS, dropout=0.0, blocks=BLOCKS,
            epsilon=EPSILON,
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Normalised pixels (B, 3, 32, 32) to four hidden states (B, 65, 192)."""
        return self.states(self.tokens(pixels))[BLOCKS // CRITICAL_LAYERS - 1 :: BLOCKS // CRITICAL_LAYERS]

    def attentions(self, pixels: Tensor) -> list[Tensor]:
        """As in `AttendingFeatures`."""
        tokens, found = self.tokens(pixels), []
        for block in self.blocks:
            assert isinstance(block, Block)
            normed = block.norm1(tokens)
            found.append(block.self_attn(normed, normed, normed, average_attn_weights=False)[1])
            tokens = block(tokens)
        return found


class CompactViT(CompactClassifier):
    """The classifier that becomes a compact ViT teacher.

    `forward` maps normalised pixels (B, 3, 32, 32) to logits (B, classes).

    Args:
        classes: number of classes.
        drop_path: probability with which training skips a branch of the last block for an image; proportionally
            lower in earlier blocks (stochastic depth, arXiv 1603.09382).
    """

    def __init__(self, classes: int, drop_path: float = 0.0):
        super().__init__()
        self.stack = CompactViTFeatures()
        self.norm = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.head = nn.Linear(WIDTH, classes)
        for name, parameter in self.named_parameters():
            _initialise(name, parameter)
        if drop_path:
            self._drop_paths(torch.linspace(0, drop_path, BLOCKS).tolist())

    def forward(self, pixels: Tensor) -> Tensor:
        return self._logits(self.stack.states(self.stack.tokens(pixels))[-1])

    def maps_and_logits(self, pixels: Tensor, squares: Tensor) -> tuple[list[Tensor], Tensor]:
        """The last two critical layers, comparable with other networks' maps, in some squares of 2×2 patches; logits.

        Args:
            pixels: (B, 3, 32, 32), normalised.
            squares: (B, k), indices of the 4×4 squares to keep in each image; the rest is not computed.

        Returns:
            Patches after block 9 (B, 4·k, 192) in the order of `patches_of(squares)`, squares after block 12
            (B, k, 192), and the logits (B, classes).
        """
        tokens = self.stack.tokens(pixels)
        kept = (patches_of(squares) + 1)[:, :, None].expand(-1, -1, WIDTH)
        states = self.stack.states(torch.cat([tokens[:, :1], tokens.gather(1, kept)], 1))
        last = states[-1][:, 1:].unflatten(1, (-1, 4)).mean(2)
        return [states[8][:, 1:], last], self._logits(states[-1])

    def save(self, folder: Path, preprocessing: Preprocessing) -> None:
        """Write a regular transformers folder, with the weights last and in half precision."""
        size = dict(zip(("height", "width"), preprocessing.resize, strict=True))
        processor = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": size}
        scaling = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "resample": 1}
        colours = {"image_mean": preprocessing.mean, "image_std": preprocessing.std}
        write_json(folder / "preprocessor_config.json", {**processor, **scaling, **colours})
        classifier = {"architectures": ["ViTForImageClassification"], "dtype": "float16"}
        write_json(folder / "config.json", {**classifier, "num_labels": self.head.out_features, **ARCHITECTURE})
        tensors = dict(_as_transformers(self.state_dict()))
        write_bytes(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load a classifier written by `save`, in float32 and eval mode.

        Raises:
            UserError: the folder is damaged or not a compact ViT.
        """
        try:
            config = json.loads((folder / "config.json").read_text())
            if other := [key for key, value in ARCHITECTURE.items() if config.get(key) != value]:
                raise ValueError(f"its {other[0]} is {config.get(other[0])!r}, not {ARCHITECTURE[other[0]]!r}")
            # Older versions wrote the names of all classes.
            classifier = cls(int(config["num_labels"]) if "num_labels" in config else len(config["id2label"]))
            stored = load_file(folder / "model.safetensors")
            expected = dict(_as_transformers(classifier.state_dict()))
            if missing := sorted(expected.keys() - stored.keys()):
                raise ValueError(f"it lacks {missing[0]}")
            classifier.load_state_dict(_as_ours(stored, classifier.state_dict()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{folder} is no compact ViT: {one_line(error)}") from None
        return classifier.eval()

    def _drop_paths(self, rates: list[float]) -> None:
        from torchvision.ops import StochasticDepth  # takes half a second, and is only needed for training

        for block, rate in zip(self.stack.blocks, rates, strict=True):
            block.dropout1 = block.dropout2 = StochasticDepth(rate, "row")  # the dropouts of a block's branches

    def _logits(self, last: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(last[:, 0]))
        return logits


@torch.no_grad()
def _initialise(name: str, parameter: Tensor) -> None:
    """Initialise as the authors of ViT: truncated normal weights, zero biases, identity norms."""
    if "norm" in name:
        parameter.fill_(float(name.endswith("weight")))
    elif name.endswith("bias"):
        parameter.zero_()
    else:
        nn.init.trunc_normal_(parameter, std=0.02)


def _renamed(name: str) -> str:
    """Map one of our parameter names to transformers'."""
    for ours, theirs in NAMES.items():
        name = re.sub(rf"(^|\.){re.escape(ours)}(?=\.|$)", rf"\1{theirs}", name)
    return name


def _as_transformers(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our parameters under transformers' names, in half precision."""
    for name, tensor in state.items():
        if JOINED not in name:
            yield _renamed(name), tensor.half().contiguous()
            continue
        block, kind = name.split(JOINED)
        for part, chunk in zip(PARTS, tensor.chunk(len(PARTS)), strict=True):
            yield f"{_renamed(block.rstrip('.'))}.attention.attention.{part}.{kind}", chunk.half().contiguous()


def _as_ours(stored: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Any]:
    """The parameters named in `state`, from transformers' tensors, in float32."""
    found = {}
    for name in state:
        parts = [stored[theirs].float() for theirs, _ in _as_transformers({name: state[name]})]
        found[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return found
