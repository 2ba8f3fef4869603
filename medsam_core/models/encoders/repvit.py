"""RepViT, the student's image encoder. What belongs here: trunk and neck. Not here: the trunk's layers (timm's)."""

from collections.abc import Mapping

from torch import Tensor, nn

from medsam_core.models.encoders.base import Encoder
from medsam_core.models.encoders.registry import Setting
from medsam_core.models.layers import embedding_neck
from medsam_core.models.timm_backbones import repvit_trunk


class RepViTEncoder(nn.Module):
    """RepViT with the down-sampling of its last stage taken out, and a neck to SAM's 256 channels.

    With the stride of the last stage at 1 the overall stride is 16, so that 1024 x 1024 pixels give the 64 x 64
    embedding that SAM's decoder expects. With `repvit_m1_1` it has 8,496,784 parameters (the paper: 8.5M).

    Args:
        backbone: timm name of the trunk.
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.stem, self.stages, channels = repvit_trunk(backbone)
        self.neck = embedding_neck(channels)
        last_downsampling = self.stages[-1].get_submodule("downsample.spatial_downsample.c")
        if not isinstance(last_downsampling, nn.Conv2d):
            found = type(last_downsampling).__name__
            raise TypeError(f"expected {backbone}'s last down-sampling to be a Conv2d, found {found}; use timm 1.x")
        last_downsampling.stride = (1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (B, 3, S, S) to embeddings (B, 256, S / 16, S / 16)."""
        embeddings: Tensor = self.neck(self.stages(self.stem(x)))
        return embeddings


class RepViT(Encoder):
    """A size of RepViT; it is convolutional, so its weights fit every image side.

    Args:
        backbone: timm name of the trunk.
    """

    def __init__(self, backbone: str) -> None:
        self._backbone = backbone

    def build(self, image_side: int, settings: Mapping[str, Setting]) -> nn.Module:
        """Build the network; errors as in `RepViTEncoder`."""
        del image_side, settings
        return RepViTEncoder(self._backbone)


M0_9 = RepViT("repvit_m0_9")
M1_1 = RepViT("repvit_m1_1")
