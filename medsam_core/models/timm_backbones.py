"""The only place that imports timm. What belongs here: building timm's modules and the torchvision remedy.

Not here: what the modules are put together into (`repvit`, `vit`). timm is imported on first use: it takes seconds.
"""

import importlib.util
import logging
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn

logger = logging.getLogger(__name__)


_REGISTRATIONS: list[torch.library.Library] = []
"""Keeps schemas registered: torch withdraws them when their `Library` is collected."""


def _torchvision_libraries() -> list[Path]:
    """Return torchvision's compiled operator libraries, found without importing torchvision."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return []
    return sorted(Path(spec.origin).parent.glob("_C*.so"))


def ensure_torchvision_importable() -> bool:
    """Make `import torchvision` work beside a CPU-only torch; timm imports it unconditionally.

    torchvision's PyPI wheel links against CUDA. Beside a torch without CUDA its operators do not load, and the import
    then fails with `operator torchvision::nms does not exist`. Declaring the schemas of the two operators that
    torchvision's Python code refers to at import is enough; the operators themselves stay uncallable, and nothing
    here calls them. Where the library loads, this does nothing.

    Returns:
        Whether schemas had to be declared.
    """
    if _REGISTRATIONS:
        return True
    try:
        for library in _torchvision_libraries():
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError as error:
        logger.debug("torchvision's operators do not load (%s); declaring their schemas", error)
        declared = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            declared.define(schema)  # type: ignore[no-untyped-call]
        _REGISTRATIONS.append(declared)
    return bool(_REGISTRATIONS)


def repvit_trunk(name: str) -> tuple[nn.Module, nn.Sequential, list[int]]:
    """Build a RepViT trunk with fresh weights and without its classifier.

    Args:
        name: timm name, such as `repvit_m1_1`.

    Returns:
        The stem (3 channels, stride 4), the four stages (strides 1, 2, 2, 2), and the channels of each stage.
    """
    ensure_torchvision_importable()
    import timm

    model = timm.create_model(name, pretrained=False, num_classes=0)
    channels = [int(stage["num_chs"]) for stage in model.feature_info]
    return cast(nn.Module, model.stem), cast(nn.Sequential, model.stages), channels


def sam_vit(
    *,
    image_size: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    neck_channels: int,
    window_size: int = 0,
    global_blocks: tuple[int, ...] = (),
) -> nn.Module:
    """Build the ViT encoder of Segment Anything (patch 16, relative positions) with fresh weights.

    SAM's encoder normalises with epsilon 1e-6, timm's own SAM models with 1e-5; this builds SAM's.

    Args:
        image_size: Side of the square input in pixels.
        embed_dim: Width.
        depth: Blocks.
        num_heads: Attention heads a block.
        neck_channels: Channels of the output.
        window_size: Side of the attention windows in patches; 0 gives global attention in every block.
        global_blocks: Blocks with global attention where `window_size` is not 0.

    Returns:
        A module from (B, 3, image_size, image_size) to (B, neck_channels, image_size / 16, image_size / 16).
    """
    ensure_torchvision_importable()
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    model = VisionTransformerSAM(
        img_size=image_size,
        patch_size=16,
        num_classes=0,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=window_size,
        global_attn_indexes=global_blocks,
        neck_chans=neck_channels,
    )
    model.head = nn.Identity()
    return cast(nn.Module, model)
