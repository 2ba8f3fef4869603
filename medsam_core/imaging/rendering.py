"""Rendering: from a microbatch of plan slots and a reader of slices to the tensors one device takes.

What belongs here: reading, bringing into the model frame, and mixing inside the microbatch. Not here: anything random,
or what student and teacher each do with the raw pixels.

Legend: B slots of a microbatch, K boxes of a slot, S side of the model frame, G side of the logits, which is the loss
grid.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medsam_core.base.config import MIX_KINDS
from medsam_core.base.data import LabelMap, SliceReader
from medsam_core.base.geometry import Geometry
from medsam_core.imaging.preprocessing import image_to_model, masks_to_grid
from medsam_core.imaging.torch_resampling import TorchResampler
from medsam_core.imaging.views import View, boxes_to_model


@dataclass(frozen=True, eq=False)
class Microbatch:
    """A rendered microbatch.

    Attributes:
        images: (B, 3, S, S) float32, raw values in 0..255, augmented and mixed, for student and teacher.
        boxes: (B, K, 4) float32, `xyxy_px` of the model frame, half-open; K = 0 in distillation.
        masks: (B, K, G, G) float32 of 0 and 1; K = 0 in distillation.
        n_small: Number of objects too small for the loss grid, which are kept by max-pooling.
    """

    images: Tensor
    boxes: Tensor
    masks: Tensor
    n_small: int


def render_microbatch(
    slots: npt.NDArray[np.void], record: np.void, reader: SliceReader, geometry: Geometry
) -> Microbatch:
    """Render a microbatch of a plan.

    Args:
        slots: (B,) of `medsam_core.planning.plan_epoch.slot_dtype`; those without prompts get neither boxes nor masks.
        record: The mixing, one record of `medsam_core.planning.plan_epoch.microbatch_dtype`.
        reader: Reads the slices that the slots name.
        geometry: Of the model that is to see the microbatch.

    Returns:
        The batch, on the CPU.

    Raises:
        ValueError: If a slice that gives prompts has no mask.
    """
    side, grid = geometry.image_side, geometry.logit_side
    images = torch.empty((len(slots), 3, side, side))
    n_prompts = slots["labels"].shape[1]
    boxes = torch.empty((len(slots), n_prompts, 4))
    masks = torch.empty((len(slots), n_prompts, grid, grid))
    n_small, resampler = 0, TorchResampler()
    for index, slot in enumerate(slots):
        view = view_of(slot)
        image, label_map = reader.read(int(slot["row"]))
        images.numpy()[index] = image_to_model(image, view, geometry, resampler)
        if n_prompts:
            boxes.numpy()[index] = boxes_to_model(slot["boxes"], view, geometry)
            masks.numpy()[index], small = masks_to_grid(_masks_of(slot, label_map), view, geometry, resampler)
            n_small += small
    return Microbatch(mix(images, record), boxes, masks, n_small)


def view_of(slot: np.void) -> View:
    """Return what a slot shows of its slice."""
    x_min, y_min, x_max, y_max = (int(value) for value in slot["crop"])
    return View((x_min, y_min, x_max, y_max), bool(slot["flip_x"]), bool(slot["flip_y"]), int(slot["quarter_turns"]))


def mix(images: Tensor, record: np.void) -> Tensor:
    """Mix the images of a microbatch, (B, 3, S, S) float32, as its record says."""
    kind = MIX_KINDS[int(record["mix"])]
    if kind == "none":
        return images
    partner = torch.from_numpy(record["partner"].astype(np.int64))
    if kind == "cutmix":
        return cutmix(images, partner, tuple(int(value) for value in record["cut"]))
    grid = round(len(record["lam"]) ** 0.5)
    return mixpatch(images, partner, torch.from_numpy(record["lam"].reshape(grid, grid).copy()))


def mixpatch(images: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """Blend every patch of each image with the same patch of its partner, one weight per patch position.

    Args:
        images: (B, 3, S, S) float32.
        partner: (B,) int64, indices into the microbatch.
        lam: (g, g) float32, weight of the image itself at each of g x g patches of side S / g.

    Returns:
        (B, 3, S, S) float32.
    """
    side = images.shape[-1] // lam.shape[-1]
    weight = lam.repeat_interleave(side, dim=0).repeat_interleave(side, dim=1)
    return weight * images + (1 - weight) * images[partner]


def cutmix(images: Tensor, partner: Tensor, cut: tuple[int, ...]) -> Tensor:
    """Replace the inside of one box by that of each image's partner.

    Args:
        images: (B, 3, S, S) float32.
        partner: (B,) int64, indices into the microbatch.
        cut: `xyxy_px` of the model frame, half-open.

    Returns:
        (B, 3, S, S) float32.
    """
    x_min, y_min, x_max, y_max = cut
    mixed = images.clone()
    mixed[..., y_min:y_max, x_min:x_max] = images[partner, :, y_min:y_max, x_min:x_max]
    return mixed


def _masks_of(slot: np.void, label_map: LabelMap | None) -> npt.NDArray[np.bool_]:
    """Return (K, H, W) bool: the native mask of each of the slot's labels."""
    if label_map is None:
        raise ValueError(
            f"row {int(slot['row'])}: expected a mask for its labels, found none; "
            "build the plan on cases that have ground truth"
        )
    masks: npt.NDArray[np.bool_] = label_map[None] == slot["labels"][:, None, None]
    return masks
