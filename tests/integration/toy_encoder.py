"""An encoder as an installed package would bring it: stride 8, slices that keep their aspect, a setting of its own."""

from collections.abc import Mapping

from torch import nn

from medsam_core.base.geometry import EMBEDDING_CHANNELS, PADDED
from medsam_core.models.encoders.base import Encoder
from medsam_core.models.encoders.registry import EncoderSpec, Setting
from medsam_core.models.layers import embedding_neck

STRIDE = 8


class ToyEncoder(Encoder):
    """One convolution and the neck."""

    def build(self, image_side: int, settings: Mapping[str, Setting]) -> nn.Module:
        width = int(settings["width"])
        return nn.Sequential(nn.Conv2d(3, width, STRIDE, stride=STRIDE), nn.GELU(), embedding_neck(width))


TOY = ToyEncoder()
SPEC = EncoderSpec(
    name="toy", builder=f"{__name__}:TOY", stride=STRIDE, input_kind="min_max", frame=PADDED, settings={"width": 16}
)

EMBEDDING = (EMBEDDING_CHANNELS, 8, 8)
"""At 64 pixels."""
