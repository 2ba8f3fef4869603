"""The ways back that the project never goes, by which tests see that a way there loses nothing; RepViT fused.

What belongs here: inverses of conversions. Not here: expectations.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from medsam_core.base.geometry import Geometry
from medsam_core.imaging import views
from medsam_core.models.encoders import sam_vit
from medsam_core.models.timm_backbones import ensure_torchvision_importable


def fused(model: nn.Module) -> nn.Module:
    """Return an evaluation-mode copy with RepViT's parallel branches and batch norms folded into convolutions."""
    ensure_torchvision_importable()
    from timm.utils.model import reparameterize_model

    copy: nn.Module = reparameterize_model(model, inplace=False).eval()
    return copy


def to_sam_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of a `Segmenter` that holds a `SamViTEncoder` to a SAM checkpoint's."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        sam_key = key
        if key.startswith(sam_vit._OWN_PREFIX):
            sam_key = sam_vit.PREFIX + key.removeprefix(sam_vit._OWN_PREFIX)
            for sam, timm in sam_vit._RENAMED:
                sam_key = sam_key.replace(timm, sam)
        renamed[sam_key] = value
    return renamed


def boxes_to_native(boxes: npt.NDArray[np.number], view: views.View, geometry: Geometry) -> npt.NDArray[np.float32]:
    """Scale boxes from the model frame back to the native frame, without rounding: inverse of `boxes_to_model`.

    Args:
        boxes: (K, 4) `xyxy_px` of the model frame, half-open.
        view: What the model frame shows.
        geometry: Of the model.

    Returns:
        (K, 4) float32 `xyxy_px` of the native slice, half-open.
    """
    offset, scale = views._offset_and_scale(view, geometry)
    side = geometry.image_side
    x_min, y_min, x_max, y_max = boxes.astype(np.float64).T
    for _ in range(view.quarter_turns):
        x_min, y_min, x_max, y_max = side - y_max, x_min, side - y_min, x_max
    if view.flip_y:
        y_min, y_max = side - y_max, side - y_min
    if view.flip_x:
        x_min, x_max = side - x_max, side - x_min
    return (np.stack([x_min, y_min, x_max, y_max], axis=-1) / scale + offset).astype(np.float32)
