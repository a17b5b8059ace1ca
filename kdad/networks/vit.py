"""Vision Transformers: any transformers ViT-family model as a teacher, and the student that copies it."""

import contextlib
import copy
import inspect
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdad.data.preprocessing import Preprocessing, patches_of
from kdad.errors import UserError
from kdad.files import write_atomically, write_json
from kdad.networks.features import CompactClassifier, FeatureNetwork

FAMILY = ("vit", "deit", "dinov2", "dinov2_with_registers", "vit_msn")
CRITICAL_LAYERS = 4


class ViTFeatures(FeatureNetwork):
    """A ViT-family model read after blocks n/4, n/2, 3n/4 and n.

    Hidden states are the residual stream: the model's closing layer norm comes after the last
    critical layer and is cut off.

    Args:
        model: a transformers model of a type in `FAMILY`.
        size: side of the square input in pixels.

    Raises:
        UserError: the type is not in `FAMILY`, or n is not a multiple of four.
    """

    def __init__(self, model: Any, size: int):
        super().__init__()
        config = model.config
        if config.model_type not in FAMILY:
            raise UserError(f"a {config.model_type!r} model is no ViT teacher; known types: {', '.join(FAMILY)}")
        if config.num_hidden_layers % CRITICAL_LAYERS:
            raise UserError(f"a ViT teacher needs 4, 8, 12… blocks; this one has {config.num_hidden_layers}")
        model.layernorm, model.pooler = nn.Identity(), None
        self.model: Any = model
        self.patch: int = config.patch_size
        self.width: int = config.hidden_size
        step = config.num_hidden_layers // CRITICAL_LAYERS
        self.taps = tuple(range(step, config.num_hidden_layers + 1, step))
        self.options: dict[str, bool] = self._options(size)
        self.prefix = self._count_prefix(size)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Normalised pixels (B, 3, S, S) to four hidden states (B, prefix + h·w, D)."""
        states = self.model(pixel_values=pixels, output_hidden_states=True, **self.options).hidden_states
        return [states[tap] for tap in self.taps]

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """(h, w) in patches, the same for all four layers."""
        return [(height // self.patch, width // self.patch)] * CRITICAL_LAYERS

    @contextlib.contextmanager
    def attending(self) -> Iterator[None]:
        """Within the context, the model returns its attention weights, which fused kernels do not."""
        usual = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            yield
        finally:
            self.model.set_attn_implementation(usual)

    def _options(self, size: int) -> dict[str, Any]:
        """Ask for interpolated positions where the input is not the trained size (DINOv2 always interpolates)."""
        accepts = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        return {"interpolate_pos_encoding": True} if accepts and size != self.model.config.image_size else {}

    @torch.no_grad()
    def _count_prefix(self, size: int) -> int:
        height, width = self.grids(size, size)[0]
        blank = torch.zeros(1, 3, size, size, dtype=self.model.dtype, device=self.model.device)
        return self(blank)[0].shape[1] - height * width


class ViTStudent(FeatureNetwork):
    """Pre-norm transformer blocks, one per critical layer, over all tokens of the teacher.

    A student narrower than its teacher reads each block through one linear projection.
    """

    def __init__(
        self,
        *,
        size: int,
        patch: int,
        prefix: int,
        width: int,
        hidden: int,
        heads: int,
        dropout: float,
        teacher_width: int,
        layers: int = CRITICAL_LAYERS,
    ):
        super().__init__()
        self.size, self.patch, self.prefix = size, patch, prefix
        self.embed = nn.Conv2d(3, width, patch, stride=patch)
        self.prefix_tokens = nn.Parameter(torch.zeros(1, prefix, width))
        self.positions = nn.Parameter(torch.randn(1, prefix + (size // patch) ** 2, width) / math.sqrt(width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, hidden, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        narrow = width != teacher_width
        self.projections = nn.ModuleList(
            nn.Linear(width, teacher_width) if narrow else nn.Identity() for _ in range(layers)
        )

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Normalised pixels (B, 3, S, S) to four tensors (B, prefix + h·w, D of the teacher)."""
        patches = self.embed(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix_tokens.expand(len(pixels), -1, -1), patches], 1) + self.positions
        read = []
        with self._attention(pixels.device):
            for block, project in zip(self.blocks, self.projections, strict=True):
                x = block(x)
                read.append(project(x))
        return read

    def _attention(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        """The plain attention kernel for training on a CPU, where the backward pass of the fused one is slow."""
        return sdpa_kernel(SDPBackend.MATH) if self.training and device.type == "cpu" else contextlib.nullcontext()

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """(h, w) in patches, the same for all layers."""
        return [(height // self.patch, width // self.patch)] * len(self.blocks)


@contextlib.contextmanager
def _keeping_patches(embeddings: nn.Module, kept: Tensor) -> Iterator[None]:
    """Within the context, `embeddings` returns only the CLS token and the patches `kept` (B, n)."""

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        index = (kept + 1)[:, :, None].expand(-1, -1, output.shape[2])
        return torch.cat([output[:, :1], output.gather(1, index)], 1)

    hook = embeddings.register_forward_hook(keep)
    try:
        yield
    finally:
        hook.remove()


class CompactViT(CompactClassifier):
    """The classifier that, trained, is a compact ViT teacher: 12 blocks at patch 4, 3.6 M parameters.

    It is a `transformers.ViTForImageClassification`, and saved as one. `forward` maps normalised
    pixels (B, 3, 32, 32) to logits (B, classes).

    Args:
        classes: how many.
        drop_path: how often training skips a branch of the last block for an image; of earlier blocks
            proportionally less often (stochastic depth, arXiv 1603.09382).
    """

    def __init__(self, classes: int, drop_path: float = 0.0):
        from torchvision.ops import StochasticDepth
        from transformers import ViTConfig, ViTForImageClassification

        super().__init__()
        # Under autocast on a CPU, fused attention falls back to float32: with 65 tokens, eager is twice as fast.
        config = ViTConfig(
            attn_implementation="sdpa" if torch.cuda.is_available() else "eager",
            hidden_size=192,
            num_hidden_layers=12,
            num_attention_heads=3,
            intermediate_size=384,
            image_size=32,
            patch_size=4,
            num_labels=classes,
        )
        self.model = ViTForImageClassification(config)
        blocks = self.model.vit.layers
        for block, rate in zip(blocks, torch.linspace(0, drop_path, len(blocks)).tolist(), strict=True):
            block.dropout = StochasticDepth(rate, "row")  # what a block applies to both of its branches

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).logits

    def maps_and_logits(self, pixels: Tensor, squares: Tensor) -> tuple[list[Tensor], Tensor]:
        """What can be compared with another network's maps when only some squares of 2×2 patches are looked at.

        Args:
            pixels: (B, 3, 32, 32), normalised.
            squares: (B, k), which of the 4×4 squares of each image to keep; the rest costs nothing.

        Returns:
            Patches after block 9 (B, 4·k, 192) in the order of `patches_of(squares)`, squares after block 12
            (B, k, 192), and the logits (B, classes).
        """
        with _keeping_patches(self.model.vit.embeddings, patches_of(squares)):
            output = self.model(pixel_values=pixels, output_hidden_states=True)
        last = output.hidden_states[-1][:, 1:].unflatten(1, (-1, 4)).mean(2)
        return [output.hidden_states[9][:, 1:], last], output.logits

    def save(self, folder: Path, preprocessing: Preprocessing) -> None:
        """Write an ordinary transformers folder, the weights last and in half precision."""
        size = {"height": preprocessing.resize, "width": preprocessing.resize}
        processor = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": size}
        scaling = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "resample": 1}
        colours = {"image_mean": preprocessing.mean, "image_std": preprocessing.std}
        write_json(folder / "preprocessor_config.json", {**processor, **scaling, **colours})
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            copy.deepcopy(self.model).half().save_pretrained(temporary)
            for name in ("config.json", "model.safetensors"):
                write_atomically(folder / name, (Path(temporary) / name).replace)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The classifier that `save` wrote, in float32 and eval mode.

        Raises:
            UserError: the folder is damaged, or no transformers ViT.
        """
        from transformers import ViTForImageClassification

        try:
            loaded, info = ViTForImageClassification.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
        except Exception as error:  # transformers raises many types on a bad folder
            raise UserError(f"{folder} is no compact ViT: {' '.join(str(error).split())[:200]}") from None
        if missing := sorted(info["missing_keys"]):  # transformers would leave them random
            raise UserError(f"{folder} is no compact ViT: it lacks {missing[0]}")
        classifier = cls(loaded.config.num_labels)
        classifier.model = loaded
        return classifier.eval()
