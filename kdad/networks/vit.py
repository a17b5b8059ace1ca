"""Vision Transformers: shared blocks, teachers from transformers' ViT family, and the ViT student."""

import contextlib
import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, scaled_dot_product_attention

from kdad.errors import UserError
from kdad.networks.features import FeatureNetwork

FAMILY = ("vit", "deit", "dinov2", "dinov2_with_registers", "vit_msn")
CRITICAL_LAYERS = 4


class AttendingFeatures(FeatureNetwork):
    """A ViT of n blocks, read after blocks n/4, n/2, 3n/4 and n, that provides its attention weights."""

    patch: int
    width: int

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """(h, w) in patches, the same for all four layers."""
        return [(height // self.patch, width // self.patch)] * CRITICAL_LAYERS

    def attentions(self, pixels: Tensor) -> list[Tensor]:
        """Attention weights (B, heads, T, T) of every block for normalised pixels (B, 3, S, S)."""
        raise NotImplementedError


class ViTFeatures(AttendingFeatures):
    """A ViT-family model read after blocks n/4, n/2, 3n/4 and n.

    Hidden states are the residual stream: the model's final layer norm comes after the last
    critical layer and is removed.

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
        self.patch = config.patch_size
        self.width = config.hidden_size
        step = config.num_hidden_layers // CRITICAL_LAYERS
        self.taps = tuple(range(step, config.num_hidden_layers + 1, step))
        self.options: dict[str, bool] = self._options(size)
        self.prefix = self._count_prefix(size)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Normalised pixels (B, 3, S, S) to four hidden states (B, prefix + h·w, D)."""
        states = self.model(pixel_values=pixels, output_hidden_states=True, **self.options).hidden_states
        return [states[tap] for tap in self.taps]

    def attentions(self, pixels: Tensor) -> list[Tensor]:
        """As in `AttendingFeatures`; uses eager attention, as fused kernels do not return weights."""
        usual = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            return list(self.model(pixel_values=pixels, output_attentions=True, **self.options).attentions)
        finally:
            self.model.set_attn_implementation(usual)

    def _options(self, size: int) -> dict[str, Any]:
        """Request interpolated positions if the input is not of the trained size (DINOv2 always interpolates)."""
        accepts = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        return {"interpolate_pos_encoding": True} if accepts and size != self.model.config.image_size else {}

    @torch.no_grad()
    def _count_prefix(self, size: int) -> int:
        height, width = self.grids(size, size)[0]
        blank = torch.zeros(1, 3, size, size, dtype=self.model.dtype, device=self.model.device)
        return self(blank)[0].shape[1] - height * width


class Block(nn.TransformerEncoderLayer):
    """torch's pre-norm block without its generic checks and copies.

    These take a large share of the time for a single small image.
    """

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]  # no masks
        """Tokens (B, T, D) to tokens."""
        tokens = tokens + self.dropout1(self._attended(self.norm1(tokens)))
        hidden = self.dropout(self.activation(self.linear1(self.norm2(tokens))))
        return tokens + self.dropout2(self.linear2(hidden))

    def _attended(self, tokens: Tensor) -> Tensor:
        attention = self.self_attn
        joined = linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = joined.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        drawn = scaled_dot_product_attention(query, key, value, dropout_p=attention.dropout if self.training else 0.0)
        return attention.out_proj(drawn.transpose(1, 2).flatten(2))


class TokenBlocks(FeatureNetwork):
    """Pre-norm transformer blocks over prefix tokens and patches, with learned positions.

    Args:
        size: side of the square input in pixels; `patch`, that of a patch.
        prefix: number of tokens before the patches.
        width, hidden, heads, dropout: of every block; `blocks`, their number.
        epsilon: constant added to the variance in layer norms.
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
        blocks: int,
        epsilon: float = 1e-5,
    ):
        super().__init__()
        self.size, self.patch, self.prefix = size, patch, prefix
        self.embed = nn.Conv2d(3, width, patch, stride=patch)
        self.prefix_tokens = nn.Parameter(torch.zeros(1, prefix, width))
        self.positions = nn.Parameter(torch.empty(1, prefix + (size // patch) ** 2, width))
        if not self.positions.is_meta:  # on the meta device, this would import the compiler, which takes a second
            nn.init.normal_(self.positions, std=1 / math.sqrt(width))
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden, dropout, "gelu", layer_norm_eps=epsilon, batch_first=True, norm_first=True)
            for _ in range(blocks)
        )

    def tokens(self, pixels: Tensor) -> Tensor:
        """Embed normalised pixels (B, 3, S, S) as inputs of the first block, (B, prefix + h·w, D)."""
        patches = self.embed(pixels).flatten(2).transpose(1, 2)
        return torch.cat([self.prefix_tokens.expand(pixels.shape[0], -1, -1), patches], 1) + self.positions

    def states(self, tokens: Tensor) -> list[Tensor]:
        """Outputs of all blocks for the inputs of the first."""
        found = []
        with self._attention(tokens.device):
            for block in self.blocks:
                found.append(tokens := block(tokens))
        return found

    def _attention(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        """Select the plain attention kernel for training on a CPU, where the fused backward pass is slow."""
        return sdpa_kernel(SDPBackend.MATH) if self.training and device.type == "cpu" else contextlib.nullcontext()

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """(h, w) in patches, the same for all layers."""
        return [(height // self.patch, width // self.patch)] * len(self.blocks)


class ViTStudent(TokenBlocks):
    """One block per critical layer, over all tokens of the teacher.

    A student narrower than its teacher reads each block through one linear projection.
    """

    def __init__(self, *, width: int, teacher_width: int, layers: int = CRITICAL_LAYERS, **sizes: Any):
        super().__init__(width=width, blocks=layers, **sizes)
        narrow = width != teacher_width
        self.projections = nn.ModuleList(
            nn.Linear(width, teacher_width) if narrow else nn.Identity() for _ in range(layers)
        )

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Normalised pixels (B, 3, S, S) to one tensor (B, prefix + h·w, D of the teacher) per critical layer."""
        states = self.states(self.tokens(pixels))
        return [project(state) for project, state in zip(self.projections, states, strict=True)]
