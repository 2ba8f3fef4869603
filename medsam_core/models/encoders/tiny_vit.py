"""TinyViT, LiteMedSAM's image encoder. What belongs here: its layers and sizes, under the keys of its checkpoints.

Not here: the neck, which every encoder shares (`layers`), or reading checkpoint files (`published`). Facts: "TinyViT"
(arXiv 2207.10666), and the keys, shapes and outputs of the public code (bowang-lab/MedSAM, branch LiteMedSAM).

timm has a TinyViT of other strides and keys. It keeps attention biases looked up in evaluation mode, and would go on
using them after weights are loaded; here they are looked up in every pass, and nothing can be out of date.

Legend: B images, H W cells of a grid, C channels, n windows of N = window x window cells, h heads of d channels.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsam_core.models.encoders.base import Encoder
from medsam_core.models.encoders.registry import Setting
from medsam_core.models.layers import ConvNorm, embedding_neck

_EXPANSION = 4
"""Hidden channels of bottlenecks and feed-forward layers, as a multiple of a stage's."""

_INITIAL_DEVIATION = 0.02
"""Of the weights of fresh linear layers."""


class Separable(nn.Module):
    """Three convolutions with GELU between them: to other channels, over each channel's neighbours, across channels."""

    def __init__(self, channels: int, hidden: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, stride=stride, groups=hidden)
        self.conv3 = ConvNorm(hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, H / stride, W / stride)."""
        out: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return out


class Bottleneck(Separable):
    """A residual bottleneck that keeps grid and channels; fresh ones pass their input through the residual alone."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, _EXPANSION * channels, channels)
        nn.init.zeros_(self.conv3.get_parameter("bn.weight"))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        return F.gelu(x + super().forward(x))


class WindowAttention(nn.Module):
    """Attention among the cells of each window, with a bias for each head and distance, (|dy|, |dx|).

    Grids that no whole number of windows fills are padded with zeros at the right and below; padding takes part in the
    attention, as in the public code.
    """

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        place = torch.arange(window)
        distance = (place[:, None] - place).abs()
        pairs = distance[:, None, :, None] * window + distance[None, :, None, :]
        self.register_buffer("pairs", pairs.reshape(window**2, window**2), persistent=False)
        self.pairs: Tensor
        """(N, N): which of the biases belongs to two cells of a window."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        images, height, width, channels = x.shape
        side = self.window
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = x.shape[1] // side, x.shape[2] // side
        windows = x.reshape(images, rows, side, columns, side, channels).transpose(2, 3)
        attended = self._attend(self.norm(windows.reshape(-1, side * side, channels)))
        cells = attended.view(images, rows, columns, side, side, channels).transpose(2, 3)
        return cells.reshape(x.shape)[:, :height, :width]

    def _attend(self, windows: Tensor) -> Tensor:
        """Map normalised windows (n, N, C) to (n, N, C)."""
        q, k, v = self.qkv(windows).unflatten(-1, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self.attention_biases[:, self.pairs])
        out: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """Layer norm and two linear layers with GELU between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, _EXPANSION * channels)
        self.fc2 = nn.Linear(_EXPANSION * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return out


class TransformerBlock(nn.Module):
    """Attention in windows, a convolution over each channel's neighbours, and a feed-forward part."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.attn = WindowAttention(channels, heads, window)
        self.mlp = FeedForward(channels)
        self.local_conv = ConvNorm(channels, channels, 3, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        cells = x.permute(0, 2, 3, 1)
        cells = cells + self.attn(cells)
        x = self.local_conv(cells.permute(0, 3, 1, 2))
        fed: Tensor = self.mlp(x.permute(0, 2, 3, 1))
        return x + fed.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Stage:
    """A stage of blocks on one grid.

    Attributes:
        channels: C of its blocks.
        depth: Blocks.
        heads: Attention heads of a block; 0 makes them bottlenecks without attention.
        window: Side of the attention windows, cells.
        stride: Of the merging of cells after its blocks; 0 where there is none, after the last stage.
    """

    channels: int
    depth: int
    heads: int
    window: int
    stride: int

    def build(self, next_channels: int) -> nn.Sequential:
        """Build it, `blocks` and then `downsample`, with fresh weights."""
        blocks = [
            TransformerBlock(self.channels, self.heads, self.window) if self.heads else Bottleneck(self.channels)
            for _ in range(self.depth)
        ]
        parts: OrderedDict[str, nn.Module] = OrderedDict(blocks=nn.Sequential(*blocks))
        if self.stride:
            parts["downsample"] = Separable(self.channels, next_channels, next_channels, stride=self.stride)
        return nn.Sequential(parts)


_STAGES = (Stage(64, 2, 0, 0, 2), Stage(128, 2, 4, 7, 2), Stage(160, 6, 5, 14, 1), Stage(320, 2, 10, 7, 0))
"""TinyViT-5M, whose last merging has stride 1 wherever it encodes for SAM's decoder."""


class PatchEmbedding(nn.Module):
    """Two convolutions with batch norm and GELU between them: cells of stride x stride pixels, each side."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        first = ConvNorm(3, channels // 2, kernel, stride=stride)
        self.seq = nn.Sequential(first, nn.GELU(), ConvNorm(channels // 2, channels, kernel, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, S, S) to (B, C, S / stride**2, S / stride**2)."""
        out: Tensor = self.seq(x)
        return out


class TinyViTEncoder(nn.Module):
    """TinyViT-5M with a neck to SAM's 256 channels; 5,726,740 parameters with patches of one pixel.

    Its weights fit every image side: biases belong to windows, not to the grid.

    Args:
        kernel: Of both convolutions of the patch embedding.
        stride: Likewise.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        channels = [stage.channels for stage in _STAGES]
        self.patch_embed = PatchEmbedding(channels[0], kernel, stride)
        following = [*channels[1:], channels[-1]]
        self.layers = nn.Sequential(*(stage.build(after) for stage, after in zip(_STAGES, following, strict=True)))
        self.neck = embedding_neck(channels[-1])
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (B, 3, S, S) to embeddings (B, 256, h, w)."""
        embeddings: Tensor = self.neck(self.layers(self.patch_embed(x)))
        return embeddings


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=_INITIAL_DEVIATION)
        nn.init.zeros_(module.bias)


class LiteMedSam(Encoder):
    """LiteMedSAM's: patches of one pixel, so that the stride is 4, that of its two mergings. Published keys agree."""

    def build(self, image_side: int, settings: Mapping[str, Setting]) -> nn.Module:
        """Build it; it has no settings."""
        del image_side, settings
        return TinyViTEncoder(kernel=1, stride=1)

    def last_norm(self, network: nn.Module) -> nn.Module:
        """Return its neck's."""
        return network.get_submodule("neck.3")


LITE_MEDSAM = LiteMedSam()
