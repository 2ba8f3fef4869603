"""ViT image encoders of teachers. What belongs here: SAM's ViT-B and the small stand-in, their key maps and sizes.

Not here: the transformer itself (timm's), or reading checkpoint files (`checkpoints`).
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from medsam_core.config import TeacherConfig
from medsam_core.geometry import EMBEDDING_CHANNELS
from medsam_core.models.timm_backbones import sam_vit

SAM_PREFIX = "image_encoder."
"""Prefix of the image encoder's keys in published SAM and MedSAM checkpoints."""

_OWN_PREFIX = "image_encoder.vit."
"""Prefix of the same keys in a `Segmenter` that holds a `SamViTEncoder`."""

_RENAMED = ((".mlp.lin1.", ".mlp.fc1."), (".mlp.lin2.", ".mlp.fc2."))
"""SAM's and timm's names of the feed-forward layers; all other names agree."""


class SamViTEncoder(nn.Module):
    """SAM's ViT image encoder: ViT-B as in MedSAM, or the stand-in, small and with global attention in every block.

    Args:
        config: Architecture and input size.
    """

    def __init__(self, config: TeacherConfig) -> None:
        super().__init__()
        if config.kind == "medsam_vit_b":
            self.vit = sam_vit(
                image_size=config.image_size,
                embed_dim=768,
                depth=12,
                num_heads=12,
                neck_channels=EMBEDDING_CHANNELS,
                window_size=14,
                global_blocks=(2, 5, 8, 11),
            )
        else:
            self.vit = sam_vit(
                image_size=config.image_size,
                embed_dim=config.embed_dim,
                depth=config.depth,
                num_heads=config.num_heads,
                neck_channels=EMBEDDING_CHANNELS,
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (B, 3, S, S) to embeddings (B, 256, S / 16, S / 16)."""
        embeddings: Tensor = self.vit(x)
        return embeddings


def from_sam_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a SAM checkpoint's keys to a `Segmenter`'s; prompt encoder and mask decoder share theirs."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        own = key
        if key.startswith(SAM_PREFIX):
            own = _OWN_PREFIX + key.removeprefix(SAM_PREFIX)
            for sam, timm in _RENAMED:
                own = own.replace(sam, timm)
        renamed[own] = value
    return renamed


def to_sam_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of a `Segmenter` that holds a `SamViTEncoder` to a SAM checkpoint's."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        sam_key = key
        if key.startswith(_OWN_PREFIX):
            sam_key = SAM_PREFIX + key.removeprefix(_OWN_PREFIX)
            for sam, timm in _RENAMED:
                sam_key = sam_key.replace(timm, sam)
        renamed[sam_key] = value
    return renamed


def _resize_absolute(table: Tensor, height: int, width: int) -> Tensor:
    """Resize an absolute position embedding (1, h, w, C) bicubically.

    Antialiasing matters when shrinking; it also selects the kernel that reproduces linear ramps exactly.
    """
    channels_first = table.permute(0, 3, 1, 2)
    resized = F.interpolate(channels_first, size=(height, width), mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1)


def _resize_relative(table: Tensor, length: int) -> Tensor:
    """Resize a relative position table (2 g - 1, C) linearly about its centre, offset zero, as SAM does."""
    resized = F.interpolate(table.T.unsqueeze(0), size=length, mode="linear", align_corners=False)
    return resized.squeeze(0).T


def resize_positions(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Carry weights to another image size: resize the position embeddings whose shape differs from the target's.

    Args:
        state: Weights of a `Segmenter`.
        target: State dict of the same architecture at the other image size; only its shapes are read.

    Returns:
        The state with absolute embeddings (1, h, w, C) and relative tables (2 g - 1, C) fitted; windowed blocks'
        tables have the same shape at every image size and stay, as does everything else.
    """
    fitted = dict(state)
    for key, value in state.items():
        if key not in target or target[key].shape == value.shape:
            continue
        if key.endswith(".pos_embed"):
            fitted[key] = _resize_absolute(value, *target[key].shape[1:3])
        elif key.endswith((".rel_pos_h", ".rel_pos_w")):
            fitted[key] = _resize_relative(value, len(target[key]))
    return fitted
