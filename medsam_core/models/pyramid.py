"""The pyramid neck. What belongs here: joining the stages of a convolutional trunk on one grid.

Not here: trunks (`encoders`), or the neck of one grid (`layers`). Idea: "Feature Pyramid Networks" (arXiv 1612.03144);
why it is built like this, and what it costs: `docs/adr/0023`.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from medsam_core.base.geometry import EMBEDDING_CHANNELS
from medsam_core.models.layers import ConvNorm, LayerNorm2d


@dataclass(frozen=True)
class Level:
    """The output of a stage.

    Attributes:
        channels: Its channels.
        stride: Model pixels along each side of its cells.
    """

    channels: int
    stride: int


class PyramidNeck(nn.Module):
    """Brings every level to 256 channels, sums them from the coarsest to the finest, and ends as SAM's neck does.

    SAM's neck is a 1x1 convolution, a norm, a 3x3 convolution, a norm. Here the lateral 1x1 convolutions together are
    the first of these: one more after the sum would be a product of two linear maps.

    Args:
        levels: From the finest to the coarsest.
        stride: Of the output. Levels that are finer are averaged over its cells.
    """

    def __init__(self, levels: Sequence[Level], stride: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(ConvNorm(level.channels, EMBEDDING_CHANNELS) for level in levels)
        self._strides = [max(level.stride, stride) for level in levels]
        self._averaged = [max(stride // level.stride, 1) for level in levels]
        self._stride = stride
        self.output = nn.Sequential(
            OrderedDict(
                norm1=LayerNorm2d(EMBEDDING_CHANNELS),
                conv=nn.Conv2d(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS, kernel_size=3, padding=1, bias=False),
                norm2=LayerNorm2d(EMBEDDING_CHANNELS),
            )
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map the levels' features, each (B, channels, S / its stride, likewise), to (B, 256, S / stride, likewise)."""
        total: Tensor | None = None
        coarser = 0
        levels = list(zip(features, self.lateral, self._strides, self._averaged, strict=True))
        for feature, lateral, stride, averaged in reversed(levels):
            here: Tensor = lateral(F.avg_pool2d(feature, averaged) if averaged > 1 else feature)
            total = here if total is None else here + _enlarged(total, coarser // stride)
            coarser = stride
        if total is None:
            raise ValueError("features: expected one for each level, found none")
        embeddings: Tensor = self.output(_enlarged(total, coarser // self._stride))
        return embeddings


def _enlarged(x: Tensor, factor: int) -> Tensor:
    """Enlarge (B, C, h, w) by a whole factor, bilinearly: copies would leave steps that no 3x3 convolution smooths."""
    return x if factor == 1 else F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)
