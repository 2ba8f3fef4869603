"""The transformer of SAM's mask decoder. What belongs here: attention between tokens and image, in both directions.

Not here: what the tokens mean and what becomes of them (`sam`). Keys and shapes are those of published checkpoints.

Legend: N prompts, T tokens, h w the embedding grid, C channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from medsam_core.base.geometry import EMBEDDING_CHANNELS


class Attention(nn.Module):
    """Multi-head attention whose inner width is the channels divided by `downsample_rate`."""

    def __init__(self, channels: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        inner = channels // downsample_rate
        self.num_heads = num_heads
        self.q_proj = nn.Linear(channels, inner)
        self.k_proj = nn.Linear(channels, inner)
        self.v_proj = nn.Linear(channels, inner)
        self.out_proj = nn.Linear(inner, channels)

    def _heads(self, x: Tensor) -> Tensor:
        N, T, inner = x.shape
        return x.reshape(N, T, self.num_heads, inner // self.num_heads).transpose(1, 2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from `q` (N, Tq, C) to `k`, `v` (N, Tk, C); returns (N, Tq, C)."""
        heads = F.scaled_dot_product_attention(
            self._heads(self.q_proj(q)), self._heads(self.k_proj(k)), self._heads(self.v_proj(v))
        )
        out: Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))
        return out


class TransformerMlp(nn.Module):
    """The feed-forward part of a two-way block; apart from `Mlp` only because of its keys in published checkpoints."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(channels, hidden)
        self.lin2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, C) to (N, T, C)."""
        out: Tensor = self.lin2(F.relu(self.lin1(x)))
        return out


class TwoWayBlock(nn.Module):
    """Self-attention of tokens, tokens to image, feed-forward, image to tokens; a residual and a norm follow each."""

    def __init__(self, channels: int, num_heads: int, mlp_hidden: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(channels, num_heads)
        self.norm1 = nn.LayerNorm(channels)
        self.cross_attn_token_to_image = Attention(channels, num_heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = TransformerMlp(channels, mlp_hidden)
        self.norm3 = nn.LayerNorm(channels)
        self.norm4 = nn.LayerNorm(channels)
        self.cross_attn_image_to_token = Attention(channels, num_heads, downsample_rate=2)

    def forward(self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Update tokens (N, T, C) and image (N, h * w, C) with each other's.

        The first block's tokens still equal their own positional encoding: there SAM adds none and keeps no residual.
        """
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        image_keys = image + image_pe
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, image_keys, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(image_keys, tokens + token_pe, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """Two two-way blocks and a last attention from tokens to image."""

    def __init__(self, channels: int = EMBEDDING_CHANNELS, num_heads: int = 8, mlp_hidden: int = 2048) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(channels, num_heads, mlp_hidden, first=first) for first in (True, False)
        )
        self.final_attn_token_to_image = Attention(channels, num_heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(channels)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (N, T, C) and image (N, h * w, C) from `image` (N, h * w, C) and `image_pe` (1, h * w, C)."""
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        attended = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + attended), image
