"""Rendering: a microbatch of the plan becomes the same tensors for every reader; mixing stays inside it."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from medsam_core.base.config import MIX_KINDS, AugmentationConfig, StageConfig
from medsam_core.base.geometry import Geometry
from medsam_core.imaging.preprocessing import image_to_model, masks_to_grid
from medsam_core.imaging.rendering import Microbatch, cutmix, mix, mixpatch, render_microbatch, view_of
from medsam_core.imaging.torch_resampling import TorchResampler, as_tensor
from medsam_core.imaging.views import View, boxes_to_model
from medsam_core.learning.stages import DISTILLATION, FINETUNING, Stage
from medsam_core.planning.plan import Plan
from medsam_core.planning.plan_epoch import microbatch_dtype, slot_dtype
from tests.unit.slices import ArrayReader, table_of_masks

S, GRID = 64, 16
GEOMETRY = Geometry.of_stride(S, 16)


def make_reader(n_slices: int = 7, *, with_masks: bool = True) -> ArrayReader:
    """Return slices of random sizes, grey and colour in turn, each with labels 2 and 5 as blocks."""
    rng = np.random.default_rng(3)
    images, masks = [], []
    for index in range(n_slices):
        height, width = rng.integers(20, 90, 2)
        shape = (height, width, 3) if index % 2 else (height, width)
        images.append(rng.integers(0, 256, shape, dtype=np.uint8))
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[2:9, 3:11], mask[12:18, 8:19] = 2, 5
        masks.append(mask if with_masks else None)
    return ArrayReader(images, masks)


READER = make_reader()
TABLE = table_of_masks([mask for mask in READER.masks if mask is not None], [0, 0, 1, 1, 1, 2, 2])


def make_plan(stage: Stage) -> Plan:
    """Return one epoch: mixed and cropped for distillation, two prompts a slot for fine-tuning."""
    mixed = AugmentationConfig(crop=0.5, mixing=MIX_KINDS, rotate_right_angles=True)
    turned = AugmentationConfig(rotate_right_angles=True)
    config = StageConfig(
        epochs=1,
        microbatch_size=4,
        microbatches_per_step=1,
        epoch_slots=48,
        prompts_per_slot=2,
        augmentation=mixed if stage is DISTILLATION else turned,
    )
    return Plan.build(TABLE, config, stage, S, 0)


def render(plan: Plan, microbatch: int, reader: ArrayReader = READER) -> Microbatch:
    slots, record, _ = plan.microbatch_slots(0, microbatch)
    return render_microbatch(slots, record, reader, GEOMETRY)


def unmixed(slots: npt.NDArray[np.void]) -> Tensor:
    """Return the images of slots before mixing."""
    shown = [image_to_model(READER.images[slot["row"]], view_of(slot), GEOMETRY, TorchResampler()) for slot in slots]
    return torch.stack([as_tensor(image) for image in shown])


def test_finetuning_batch_is_image_boxes_and_masks_of_each_slot() -> None:
    plan = make_plan(FINETUNING)
    for index in range(plan.microbatches_per_epoch):
        slots, _, _ = plan.microbatch_slots(0, index)
        batch = render(plan, index)
        assert batch.images.shape == (4, 3, S, S)
        assert batch.boxes.shape == (4, 2, 4)
        assert batch.masks.shape == (4, 2, GRID, GRID)
        assert {batch.images.dtype, batch.boxes.dtype, batch.masks.dtype} == {torch.float32}
        assert batch.images.equal(unmixed(slots))
        for slot, boxes, masks in zip(slots, batch.boxes, batch.masks, strict=True):
            label_map = READER.masks[slot["row"]]
            np.testing.assert_array_equal(boxes, boxes_to_model(slot["boxes"], view_of(slot), GEOMETRY))
            for label, cells in zip(slot["labels"], masks, strict=True):
                expected, _ = masks_to_grid((label_map == label)[None], view_of(slot), GEOMETRY, TorchResampler())
                np.testing.assert_array_equal(cells, expected[0])


def test_boxes_hold_their_masks() -> None:
    plan = make_plan(FINETUNING)
    for index in range(plan.microbatches_per_epoch):
        batch = render(plan, index)
        for box, cells in zip(batch.boxes.reshape(-1, 4), batch.masks.reshape(-1, GRID, GRID), strict=True):
            y, x = torch.nonzero(cells, as_tuple=True)
            centres = (torch.stack([x, y], dim=1) + 0.5) * (S / GRID)
            assert len(centres)
            assert (centres >= box[:2]).all()
            assert (centres <= box[2:]).all()


def test_distillation_batch_has_images_alone_and_needs_no_masks() -> None:
    plan = make_plan(DISTILLATION)
    batch = render(plan, 0, make_reader(with_masks=False))
    assert batch.boxes.shape == (4, 0, 4)
    assert batch.masks.shape == (4, 0, GRID, GRID)
    assert batch.n_small == 0
    assert batch.images.dtype == torch.float32


def test_finetuning_without_a_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a mask for its labels, found none"):
        render(make_plan(FINETUNING), 0, make_reader(with_masks=False))


def test_rendering_twice_gives_the_same_bits() -> None:
    plan = make_plan(DISTILLATION)
    for index in range(plan.microbatches_per_epoch):
        assert render(plan, index).images.equal(render(plan, index).images)


def test_small_objects_are_counted_over_the_microbatch() -> None:
    image, mask = np.zeros((200, 200), dtype=np.uint8), np.zeros((200, 200), dtype=np.uint8)
    mask[150, 20], mask[30:100, 30:100] = 1, 2
    slots = np.zeros(2, dtype=slot_dtype(2))
    slots["crop"], slots["labels"] = [0, 0, 200, 200], [1, 2]
    slots["boxes"] = [[20, 150, 21, 151], [30, 30, 100, 100]]
    microbatch = np.zeros(1, dtype=microbatch_dtype(2, 16))[0]
    batch = render_microbatch(slots, microbatch, ArrayReader([image], [mask]), GEOMETRY)
    assert batch.n_small == 2
    assert torch.argwhere(batch.masks[0, 0]).tolist() == [[12, 1]]


def test_each_kind_of_mixing_of_the_plan_is_the_one_rendered() -> None:
    plan = make_plan(DISTILLATION)
    kinds = set()
    for index in range(plan.microbatches_per_epoch):
        slots, microbatch, _ = plan.microbatch_slots(0, index)
        clean, mixed = unmixed(slots), render(plan, index).images
        kinds.add(kind := MIX_KINDS[microbatch["mix"]])
        weight = torch.empty(S, S)
        for y, x in np.ndindex(S, S):
            x_min, y_min, x_max, y_max = microbatch["cut"]
            shows_partner = kind == "cutmix" and x_min <= x < x_max and y_min <= y < y_max
            weight[y, x] = 0 if shows_partner else float(microbatch["lam"][(y // 16) * 4 + x // 16])
        for item, partner in enumerate(microbatch["partner"]):
            expected = weight * clean[item] + (1 - weight) * clean[int(partner)]
            torch.testing.assert_close(mixed[item], expected, rtol=1e-5, atol=1e-3)
        if kinds == set(MIX_KINDS):
            return
    pytest.fail(f"only {kinds} were drawn")


def test_cutmix_shows_the_previous_item() -> None:
    images = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, S, S)
    microbatch = np.zeros(1, dtype=microbatch_dtype(4, 16))
    microbatch["mix"], microbatch["partner"], microbatch["cut"] = (
        MIX_KINDS.index("cutmix"),
        [3, 0, 1, 2],
        [8, 4, 24, 40],
    )
    mixed = mix(images, microbatch[0])
    inside = torch.zeros(S, S, dtype=torch.bool)
    inside[4:40, 8:24] = True
    for item in range(4):
        assert (mixed[item][:, inside] == (item - 1) % 4).all()
        assert (mixed[item][:, ~inside] == item).all()


def test_mixpatch_weights_are_shared_by_the_microbatch_and_differ_by_patch() -> None:
    images = torch.tensor([0.0, 200.0]).reshape(2, 1, 1, 1).expand(2, 3, S, S)
    lam = torch.linspace(0, 1, 16).reshape(4, 4)
    mixed = mixpatch(images, torch.tensor([1, 0]), lam)
    torch.testing.assert_close(mixed[0] + mixed[1], torch.full((3, S, S), 200.0))
    for row, column in np.ndindex(4, 4):
        patch = mixed[1, :, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16]
        torch.testing.assert_close(patch, torch.full((3, 16, 16), 200 * float(lam[row, column])))


def test_mixing_does_not_round() -> None:
    images = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 3, S, S)
    mixed = mixpatch(images, torch.tensor([1, 0]), torch.full((4, 4), 0.3))
    torch.testing.assert_close(mixed[0], torch.full((3, S, S), 0.7))


def test_mixing_leaves_its_input_alone() -> None:
    images = torch.rand(3, 3, S, S)
    before = images.clone()
    cutmix(images, torch.tensor([2, 0, 1]), (0, 0, 9, 9))
    mixpatch(images, torch.tensor([2, 0, 1]), torch.rand(4, 4))
    assert images.equal(before)


def test_mixing_never_reaches_another_microbatch() -> None:
    plan = make_plan(DISTILLATION)
    for index in range(plan.microbatches_per_epoch):
        slots, _, _ = plan.microbatch_slots(0, index)
        own = set(slots["row"])
        darkened = ArrayReader(
            [image if row in own else np.zeros_like(image) for row, image in enumerate(READER.images)], READER.masks
        )
        assert render(plan, index).images.equal(render(plan, index, darkened).images)


def test_the_view_of_a_slot_is_made_of_plain_values() -> None:
    slot = np.zeros(1, dtype=slot_dtype(0))
    slot["crop"], slot["flip_y"], slot["quarter_turns"] = [1, 2, 30, 40], True, 3
    assert view_of(slot[0]) == View((1, 2, 30, 40), flip_x=False, flip_y=True, quarter_turns=3)
