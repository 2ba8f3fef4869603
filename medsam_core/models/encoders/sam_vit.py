"""SAM's ViT image encoder. What belongs here: ViT-B as in MedSAM and the small stand-in, key maps, position tables.

Not here: the transformer itself (timm's), or reading checkpoint files (`medsam_core.models.checkpoints`).
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from medsam_core.base.geometry import EMBEDDING_CHANNELS
from medsam_core.models.encoders.base import PREFIX, Encoder
from medsam_core.models.encoders.registry import Setting
from medsam_core.models.timm_backbones import sam_vit

_OWN_PREFIX = "image_encoder.vit."
"""Prefix of SAM's encoder keys in a `Segmenter` that holds a `SamViTEncoder`."""

_RENAMED = ((".mlp.lin1.", ".mlp.fc1."), (".mlp.lin2.", ".mlp.fc2."))
"""SAM's and timm's names of the feed-forward layers; all other names agree."""


class SamViTEncoder(nn.Module):
    """SAM's ViT with patches of 16 pixels and relative positions.

    Args:
        image_side: S, pixels.
        embed_dim: Width.
        depth: Blocks.
        num_heads: Attention heads a block.
        window_size: Side of the attention windows in patches; 0 gives global attention in every block.
        global_blocks: Blocks with global attention where `window_size` is not 0.
    """

    def __init__(
        self,
        image_side: int,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        window_size: int = 0,
        global_blocks: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.vit = sam_vit(
            image_size=image_side,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            neck_channels=EMBEDDING_CHANNELS,
            window_size=window_size,
            global_blocks=global_blocks,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (B, 3, S, S) to embeddings (B, 256, S / 16, S / 16)."""
        embeddings: Tensor = self.vit(x)
        return embeddings


class SamViT(Encoder):
    """What both sizes share: the key map of published checkpoints, and position tables that are resized."""

    def from_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of a SAM or MedSAM checkpoint."""
        return from_sam_keys(state)

    def resize_positions(self, state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Resize absolute and relative position tables."""
        return resize_positions(state, target)

    def last_norm(self, network: nn.Module) -> nn.Module:
        """Return its neck's."""
        return network.get_submodule("vit.neck.3")


class StandIn(SamViT):
    """The stand-in: small, with global attention in every block."""

    def build(self, image_side: int, settings: Mapping[str, Setting]) -> nn.Module:
        """Build it in the width and depth of the settings."""
        embed_dim, depth, num_heads = (int(settings[name]) for name in ("embed_dim", "depth", "num_heads"))
        return SamViTEncoder(image_side, embed_dim=embed_dim, depth=depth, num_heads=num_heads)


class MedSamViTB(SamViT):
    """ViT-B as in MedSAM: windowed attention in all but four blocks."""

    def build(self, image_side: int, settings: Mapping[str, Setting]) -> nn.Module:
        """Build it; it has no settings."""
        del settings
        return SamViTEncoder(
            image_side, embed_dim=768, depth=12, num_heads=12, window_size=14, global_blocks=(2, 5, 8, 11)
        )


STAND_IN = StandIn()
MEDSAM_VIT_B = MedSamViTB()


def from_sam_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a SAM checkpoint's keys to a `Segmenter`'s; prompt encoder and mask decoder share theirs."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        own = key
        if key.startswith(PREFIX):
            own = _OWN_PREFIX + key.removeprefix(PREFIX)
            for sam, timm in _RENAMED:
                own = own.replace(sam, timm)
        renamed[own] = value
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
