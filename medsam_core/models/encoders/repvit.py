"""RepViT, the student's image encoder. What belongs here: the trunk with either neck. Not here: the trunk's layers.

They are timm's (`timm_backbones`); the necks are shared (`layers`, `pyramid`).
"""

from collections.abc import Mapping

from torch import Tensor, nn

from medsam_core.models.encoders.base import Encoder
from medsam_core.models.encoders.registry import PYRAMID, Setting, repvit_stride
from medsam_core.models.layers import embedding_neck
from medsam_core.models.pyramid import Level, PyramidNeck
from medsam_core.models.timm_backbones import repvit_trunk

_STRIDES = (4, 8, 16, 16)
"""Of the four stages, with the last down-sampling taken out."""


def _trunk(backbone: str) -> tuple[nn.Module, nn.Sequential, list[int]]:
    """Build stem and stages with the down-sampling of the last stage taken out, and say the channels of each stage.

    With the stride of the last stage at 1 the overall stride is 16, so that 1024 x 1024 pixels give the 64 x 64
    embedding that SAM's decoder expects.
    """
    stem, stages, channels = repvit_trunk(backbone)
    last_downsampling = stages[-1].get_submodule("downsample.spatial_downsample.c")
    if not isinstance(last_downsampling, nn.Conv2d):
        found = type(last_downsampling).__name__
        raise TypeError(f"expected {backbone}'s last down-sampling to be a Conv2d, found {found}; use timm 1.x")
    last_downsampling.stride = (1, 1)
    return stem, stages, channels


class RepViTEncoder(nn.Module):
    """RepViT and a neck to SAM's 256 channels, as the paper has it.

    With `repvit_m1_1` it has 8,496,784 parameters (the paper: 8.5M).

    Args:
        backbone: timm name of the trunk.
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.stem, self.stages, channels = _trunk(backbone)
        self.neck = embedding_neck(channels[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (B, 3, S, S) to embeddings (B, 256, S / 16, S / 16)."""
        embeddings: Tensor = self.neck(self.stages(self.stem(x)))
        return embeddings


class RepViTPyramid(nn.Module):
    """RepViT whose four stages all reach the embedding.

    Args:
        backbone: timm name of the trunk.
        stride: Of the embedding: 4, 8 or 16.
    """

    def __init__(self, backbone: str, stride: int) -> None:
        super().__init__()
        self.stem, self.stages, channels = _trunk(backbone)
        self.neck = PyramidNeck([Level(*level) for level in zip(channels, _STRIDES, strict=True)], stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (B, 3, S, S) to embeddings (B, 256, S / stride, S / stride)."""
        features = [self.stem(x)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        embeddings: Tensor = self.neck(features[1:])
        return embeddings


class RepViT(Encoder):
    """A size of RepViT; it is convolutional, so its weights fit every image side.

    Args:
        backbone: timm name of the trunk.
    """

    def __init__(self, backbone: str) -> None:
        self._backbone = backbone

    def build(self, image_side: int, settings: Mapping[str, Setting]) -> nn.Module:
        """Build the network with the neck of the settings; errors as in `repvit_stride`, and if timm is another one."""
        del image_side
        stride = repvit_stride(settings)
        return RepViTPyramid(self._backbone, stride) if settings["neck"] == PYRAMID else RepViTEncoder(self._backbone)

    def last_norm(self, network: nn.Module) -> nn.Module:
        """Return the neck's."""
        return network.get_submodule("neck.output.norm2" if isinstance(network, RepViTPyramid) else "neck.3")


M0_9 = RepViT("repvit_m0_9")
M1_1 = RepViT("repvit_m1_1")
