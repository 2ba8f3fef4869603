"""The transformer of SAM's mask decoder. What belongs here: attention between tokens and image, in both directions.

Not here: what the tokens mean and what becomes of them (`sam`). Keys and shapes are those of published checkpoints.

An image has thousands of cells and a box seven tokens. So cells are not projected to queries, keys and values where
each box has its own: the tokens take the projection's place, (x W) k = x (W k). And what all boxes of an image have in
common, all that the first block reads of it, is computed once an image (`docs/adr/0027`).

Legend: B images, N prompts, N / B of each image one after another, T tokens, S = h * w cells of the embedding grid,
C channels, H heads of d channels.
"""

import torch
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
        return self._merged(
            F.scaled_dot_product_attention(
                self._heads(self.q_proj(q)), self._heads(self.k_proj(k)), self._heads(self.v_proj(v))
            )
        )

    def _merged(self, heads: Tensor) -> Tensor:
        """Map (N, H, T, d) to (N, T, C)."""
        out: Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))
        return out

    def _by_head(self, projection: nn.Linear) -> tuple[Tensor, Tensor]:
        """Return weight (H, d, C) and bias (H, d, 1) of a projection to the inner width."""
        heads = self.num_heads
        return projection.weight.view(heads, -1, projection.in_features), projection.bias.view(heads, -1, 1)

    def _scaled_heads(self, projected: Tensor) -> Tensor:
        heads = self._heads(projected)
        scaled: Tensor = heads * heads.shape[-1] ** -0.5
        return scaled

    def tokens_to_image(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from tokens `q` (N, T, C) to cells `k`, `v`, (N, S, C), or (B, S, C) where boxes share them.

        Returns:
            (N, T, C), what `forward` gives for cells that are repeated for each box.
        """
        if len(k) != len(q):
            out: Tensor = self(q.reshape(len(k), -1, q.shape[2]), k, v)
            return out.reshape(q.shape)
        heads = self._scaled_heads(self.q_proj(q))
        weight, bias = self._by_head(self.k_proj)
        queries = heads @ weight
        scores = torch.baddbmm((heads @ bias).flatten(1, 2), queries.flatten(1, 2), k.transpose(1, 2))
        attended = (scores.softmax(dim=-1) @ v).view(queries.shape)
        weight, bias = self._by_head(self.v_proj)
        return self._merged(attended @ weight.transpose(1, 2) + bias.transpose(1, 2))

    def image_to_tokens(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from cells `q`, (N, S, C), or (B, S, C) where boxes share them, to tokens `k`, `v` (N, T, C).

        Returns:
            (N, S, C), what `forward` gives for cells that are repeated for each box.
        """
        heads = self._scaled_heads(self.k_proj(k))
        weight, bias = self._by_head(self.q_proj)
        keys, shift = (heads @ weight).reshape(len(q), -1, q.shape[2]), (heads @ bias).reshape(len(q), 1, -1)
        scores = torch.baddbmm(shift, q, keys.transpose(1, 2))
        weights = scores.view(*scores.shape[:2], -1, self.num_heads, k.shape[1]).softmax(dim=-1)
        per_box = weights.transpose(1, 2).reshape(len(k), q.shape[1], -1)
        out_weight = self.out_proj.weight.t().view(self.num_heads, -1, self.out_proj.out_features)
        values = self._heads(self.v_proj(v)) @ out_weight
        return torch.baddbmm(self.out_proj.bias, per_box, values.flatten(1, 2))


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
        """Update tokens (N, T, C) and image, (N, S, C), or (B, S, C) where boxes share it, with each other's.

        The first block's tokens still equal their own positional encoding: there SAM adds none and keeps no residual.
        """
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        image_keys = image + image_pe
        attended = self.cross_attn_token_to_image.tokens_to_image(tokens + token_pe, image_keys, image)
        tokens = self.norm2(tokens + attended)
        tokens = self.norm3(tokens + self.mlp(tokens))
        attended = self.cross_attn_image_to_token.image_to_tokens(image_keys, tokens + token_pe, tokens)
        own = attended.view(len(image), -1, *image.shape[1:]) + image.unsqueeze(1)
        return tokens, self.norm4(own.flatten(0, 1))


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
        """Return tokens (N, T, C) and image (N, S, C), from `image` (B, S, C), `image_pe` (1, S, C) and tokens."""
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        attended = self.final_attn_token_to_image.tokens_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + attended), image
