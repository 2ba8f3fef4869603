"""Prediction of images and volumes, with a model whose answers can be worked out by hand."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from medsam_core.base.geometry import PADDED, Geometry
from medsam_core.imaging.preprocessing import logits_to_native
from medsam_core.imaging.prompts import tight_boxes
from medsam_core.imaging.resampling import Floats, NumpyResampler, Resampler
from medsam_core.imaging.torch_resampling import TorchResampler
from medsam_core.inference.overlaps import Canvas, Overlap, painting_order
from medsam_core.inference.predictor import Predictor
from medsam_core.inference.propagation import PROPAGATION_MARGIN_PX
from medsam_core.inference.volume_prompts import VolumePrompts, section_boxes
from medsam_core.models.config import TeacherConfig
from medsam_core.models.segmenter import build_teacher

SIDE = 64


class Threshold:
    """Answers a box with the pixels in it that are brighter than 100; its embedding is the image itself."""

    geometry = Geometry(SIDE, 4, SIDE)

    def __init__(self) -> None:
        self.encoded: list[Floats] = []
        self.decoded: list[int] = []

    def encode(self, image: Floats) -> Floats:
        self.encoded.append(image)
        return image

    def decode(self, embedding: object, boxes: Floats) -> tuple[Floats, Floats]:
        assert isinstance(embedding, np.ndarray)
        self.decoded.append(len(boxes))
        centre = np.arange(SIDE) + 0.5
        x_min, y_min, x_max, y_max = (side[:, None] for side in boxes.T)
        inside_x = (centre > x_min) & (centre < x_max)
        inside_y = (centre > y_min) & (centre < y_max)
        inside = inside_y[:, :, None] & inside_x[:, None, :]
        bright = embedding.mean(axis=0) > 100
        return (inside & bright).astype(np.float32) * 2 - 1, np.zeros(len(boxes), dtype=np.float32)


def discs(depth: int, centres: list[tuple[int, int] | None], radius: int = 6) -> npt.NDArray[np.uint8]:
    """Return a volume with a bright disc at (x, y) of each slice, or none."""
    volume = np.zeros((depth, SIDE, SIDE), dtype=np.uint8)
    y, x = np.mgrid[:SIDE, :SIDE]
    for z, centre in enumerate(centres):
        if centre is not None:
            volume[z][(x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2] = 200
    return volume


def test_an_image_is_encoded_once_and_each_box_answers_with_its_order() -> None:
    image = np.zeros((SIDE, SIDE), dtype=np.uint8)
    image[4:12, 4:12] = image[40:60, 30:50] = 255
    model = Threshold()
    segs = Predictor(model).predict(image, np.array([[30, 40, 50, 60], [4, 4, 12, 12]]), is_3d=False)
    assert segs.dtype == np.uint16
    expected = np.zeros_like(segs)
    expected[40:60, 30:50], expected[4:12, 4:12] = 1, 2
    np.testing.assert_array_equal(segs, expected)
    assert len(model.encoded) == 1


def test_the_later_box_wins_where_answers_overlap() -> None:
    image = np.full((SIDE, SIDE), 255, dtype=np.uint8)
    segs = Predictor(Threshold(), batch_boxes=1).predict(image, np.array([[0, 0, 40, 8], [20, 0, 64, 8]]), is_3d=False)
    assert segs[0].tolist() == [1] * 20 + [2] * 44


@pytest.mark.parametrize("shape", [(128, 32), (1, 1), (1, 300), (200, 1), (64, 64)])
def test_grey_and_rgb_of_any_size_come_back_at_native_size(shape: tuple[int, int]) -> None:
    image = np.full(shape, 255, dtype=np.uint8)
    box = np.array([[0, 0, shape[1], shape[0]]])
    grey = Predictor(Threshold()).predict(image, box, is_3d=False)
    rgb = Predictor(Threshold()).predict(np.stack([image] * 3, axis=-1), box, is_3d=False)
    assert grey.shape == shape
    assert (grey == 1).all(), "a box up to every border is answered up to every border"
    np.testing.assert_array_equal(rgb, grey)


def test_boxes_are_decoded_in_batches_and_more_than_255_keep_their_numbers() -> None:
    image = np.full((SIDE, SIDE), 255, dtype=np.uint8)
    y, x = np.divmod(np.arange(300), 32)
    boxes = np.stack([2 * x, 2 * y, 2 * x + 2, 2 * y + 2], axis=1)
    model = Threshold()
    segs = Predictor(model, batch_boxes=16).predict(image, boxes, is_3d=False)
    assert model.decoded == [16] * 18 + [12]
    labels, found = tight_boxes(segs)
    assert labels.tolist() == list(range(1, 301))
    np.testing.assert_array_equal(found, boxes)


@pytest.mark.parametrize("boxes", [np.zeros((0, 4), dtype=np.int64), np.array([])])
def test_no_box_gives_no_answer_and_costs_nothing(boxes: npt.NDArray[Any]) -> None:
    model = Threshold()
    assert not Predictor(model).predict(np.ones((5, 7), dtype=np.uint8), boxes, is_3d=False).any()
    assert Predictor(model).predict(np.ones((2, 5, 7), dtype=np.uint8), boxes, is_3d=True).shape == (2, 5, 7)
    assert not model.encoded


# The cut at the end of a box that reaches over seven slices is half as wide as the box.
@pytest.mark.parametrize(("volume_prompts", "low", "high"), [("propagated", 20, 40), ("sections", 12, 49)])
@pytest.mark.parametrize(("first", "last"), [(0, 6), (0, 0), (6, 6), (2, 3), (1, 5)])
def test_the_z_range_is_closed_at_both_ends(
    first: int, last: int, volume_prompts: VolumePrompts, low: int, high: int
) -> None:
    volume = discs(7, [(30, 30)] * 7)
    predictor = Predictor(Threshold(), volume_prompts=volume_prompts)
    segs = predictor.predict(volume, np.array([[low, low, first, high, high, last]]), is_3d=True)
    assert np.flatnonzero(segs.any(axis=(1, 2))).tolist() == list(range(first, last + 1))
    np.testing.assert_array_equal(segs[first : last + 1] == 1, volume[first : last + 1] > 0)


def test_the_box_follows_an_object_that_drifts_out_of_it() -> None:
    drifting = [(32 + 2 * (z - 6), 32) for z in range(13)]
    volume = discs(13, list(drifting))
    predictor = Predictor(Threshold(), volume_prompts="propagated")
    segs = predictor.predict(volume, np.array([[26, 26, 0, 39, 39, 12]]), is_3d=True)
    np.testing.assert_array_equal(segs == 1, volume > 0)


def test_after_a_gap_the_box_as_given_is_used_again() -> None:
    volume = discs(5, [(30, 30), (30, 30), None, (30, 30), (34, 30)])
    predictor = Predictor(Threshold(), volume_prompts="propagated")
    segs = predictor.predict(volume, np.array([[24, 24, 0, 37, 37, 4]]), is_3d=True)
    np.testing.assert_array_equal((segs == 1)[:4], volume[:4] > 0)
    assert (segs[4] == 1).any()


def test_the_next_prompt_is_the_tight_box_of_the_mask_grown_in_the_model_frame() -> None:
    volume = np.full((2, 128, 128), 255, dtype=np.uint8)
    seen: list[list[float]] = []

    class Watched(Threshold):
        def decode(self, embedding: object, boxes: Floats) -> tuple[Floats, Floats]:
            seen.extend(boxes.tolist())
            return super().decode(embedding, boxes)

    predictor = Predictor(Watched(), volume_prompts="propagated")
    predictor.predict(volume, np.array([[20, 40, 0, 120, 128, 1]]), is_3d=True)
    margin = PROPAGATION_MARGIN_PX
    assert seen == [[10, 20, 60, 64], [10 - margin, 20 - margin, 60 + margin, 64]]


def follow_alone(volume: npt.NDArray[np.uint8], box: list[int]) -> npt.NDArray[np.bool_]:
    """Return the answer to one box, written as the rule says: outward from the middle, slice by slice, no cache."""
    mask = np.zeros(volume.shape, dtype=bool)
    x_min, y_min, first, x_max, y_max, last = box
    middle = (first + last) // 2
    given = np.array([x_min, y_min, x_max, y_max], dtype=np.float32)
    for path in (range(middle, last + 1), range(middle, first - 1, -1)):
        prompt = given
        for z in path:
            logits, _ = Threshold().decode(volume[z][None].astype(np.float32), prompt[None])
            mask[z] = logits[0] > 0
            _, found = tight_boxes(mask[z].astype(np.uint8))
            prompt = given
            if len(found):
                prompt = np.clip(found[0].astype(np.float32) + np.array([-3, -3, 3, 3], np.float32), 0, SIDE)
    return mask


@pytest.mark.parametrize("cached_slices", [1, 3, 64])
def test_boxes_that_travel_together_answer_as_each_alone(cached_slices: int) -> None:
    rng = np.random.default_rng(4)
    volume = (rng.random((20, SIDE, SIDE)) < 0.02).astype(np.uint8) * 255
    low = rng.integers(0, [50, 50, 19], (25, 3))
    high = low + 1 + rng.integers(0, [13, 13, 10], (25, 3))
    boxes = np.concatenate([low, np.minimum(high, [SIDE, SIDE, 19])], axis=1)
    model = Threshold()
    predictor = Predictor(model, batch_boxes=4, cached_slices=cached_slices, volume_prompts="propagated")
    segs = predictor.predict(volume, boxes, is_3d=True)
    expected = np.zeros_like(segs)
    for label, box in enumerate(boxes.tolist(), start=1):
        expected[follow_alone(volume, box)] = label
    np.testing.assert_array_equal(segs, expected)
    assert len(np.unique(segs)) > 20
    visited = len({z for box in boxes for z in range(box[2], box[5] + 1)})
    assert len(model.encoded) <= (visited if cached_slices == 64 else 2 * visited)


def test_a_constant_image_hides_the_pixels_and_nothing_else() -> None:
    model = Threshold()
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 40, 3), dtype=np.uint8)
    segs = Predictor(model, constant_image=128).predict(image, np.array([[0, 0, 20, 50]]), is_3d=False)
    assert (model.encoded[0] == 128).all()
    assert segs[:, :20].all()
    assert not segs[:, 20:].any()


def test_wrong_arguments_are_refused() -> None:
    predictor = Predictor(Threshold())
    box = np.array([[0, 0, 1, 1]])
    images: list[npt.NDArray[Any]] = [np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8)]
    for image in images:
        with pytest.raises(ValueError, match=r"\(H, W\) or \(H, W, 3\)"):
            predictor.predict(image, box, is_3d=False)
    with pytest.raises(ValueError, match=r"\(D, H, W\)"):
        predictor.predict(np.zeros((4, 4), np.uint8), box, is_3d=True)
    with pytest.raises(ValueError, match=r"\(N, 6\)"):
        predictor.predict(np.zeros((4, 4, 4), np.uint8), box, is_3d=True)
    with pytest.raises(ValueError, match="batch_boxes"):
        Predictor(Threshold(), batch_boxes=0)


def test_a_segmenter_predicts_without_leaving_traces_and_not_while_it_trains() -> None:
    torch.set_num_threads(1)
    teacher = build_teacher(TeacherConfig(kind="stand_in", image_size=64, embed_dim=32, depth=1, num_heads=2))
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        Predictor(teacher.train())
    predictor = Predictor(teacher.eval())
    volume = discs(4, [(30, 30)] * 4)
    boxes = np.array([[20, 20, 0, 40, 40, 3], [0, 0, 1, 10, 10, 2]])
    segs = predictor.predict(volume, boxes, is_3d=True)
    assert segs.shape == volume.shape
    assert set(np.unique(segs).tolist()) <= {0, 1, 2}
    np.testing.assert_array_equal(predictor.predict(volume, boxes, is_3d=True), segs)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_sections_are_the_boxes_of_an_ellipsoid_cut_by_slices() -> None:
    box = np.array([[10, 20, 3, 50, 40, 12]])
    half_depth, middle = 5.0, 7.5
    for z in range(3, 13):
        share = np.sqrt(1 - ((z - middle) / half_depth) ** 2)
        expected = [30 - 20 * share, 30 - 10 * share, 30 + 20 * share, 30 + 10 * share]
        np.testing.assert_allclose(section_boxes(box, z), [expected], rtol=1e-12)


def test_the_section_of_a_flat_or_a_middle_slice_is_the_box_and_none_is_below_a_pixel() -> None:
    boxes = np.array([[3, 4, 5, 30, 40, 5], [0, 0, 2, 10, 12, 8]])
    np.testing.assert_array_equal(section_boxes(boxes, 5), boxes[:, [0, 1, 3, 4]])
    thin = np.array([[6, 6, 0, 8, 7, 199]])
    np.testing.assert_allclose(section_boxes(thin, 0), [[6.5, 6, 7.5, 7]])


def test_a_section_beyond_the_box_is_refused() -> None:
    for z in (2, 6):
        with pytest.raises(ValueError, match=f"contain slice {z}, found slices 3 to 5"):
            section_boxes(np.array([[0, 0, 3, 9, 9, 5]]), z)


def test_each_slice_of_a_volume_is_encoded_once_and_asked_with_its_sections() -> None:
    volume = np.full((9, SIDE, SIDE), 255, dtype=np.uint8)
    boxes = np.array([[8, 8, 1, 40, 40, 4], [20, 20, 3, 60, 50, 7]])
    model = PaddedThreshold()
    segs = Predictor(model).predict(volume, boxes, is_3d=True)
    assert len(model.encoded) == 7
    asked = [section_boxes(boxes[[k for k in (0, 1) if boxes[k, 2] <= z <= boxes[k, 5]]], z) for z in range(1, 8)]
    for prompts, expected in zip(model.prompts, asked, strict=True):
        np.testing.assert_allclose(prompts, expected, rtol=1e-6)
    assert np.flatnonzero((segs == 1).any(axis=(1, 2))).tolist() == [1, 2, 3, 4]
    assert np.flatnonzero((segs == 2).any(axis=(1, 2))).tolist() == [3, 4, 5, 6, 7]


class Graded(Threshold):
    """Answers each box with a logit that falls from its centre on."""

    def decode(self, embedding: object, boxes: Floats) -> tuple[Floats, Floats]:
        inside, ious = super().decode(embedding, boxes)
        centre = np.arange(SIDE) + 0.5
        middle = (boxes[:, 0] + boxes[:, 2]) / 2
        return np.where(inside > 0, SIDE - np.abs(centre - middle[:, None])[:, None, :], -1).astype(np.float32), ious


@pytest.mark.parametrize("depth", [None, 3])
@pytest.mark.parametrize(
    ("overlap", "row"),
    [
        ("last", [1] * 8 + [3] * 48 + [0] * 8),
        ("largest-first", [1] * 16 + [2] * 8 + [1] * 8 + [3] * 24 + [0] * 8),
        # The middle of box 1 is nearest up to x = 18, then that of box 2 to the end of it.
        ("logit", [1] * 18 + [2] * 6 + [3] * 32 + [0] * 8),
    ],
)
def test_pixels_of_several_boxes_go_by_the_rule(overlap: Overlap, row: list[int], depth: int | None) -> None:
    image = np.full((SIDE, SIDE) if depth is None else (depth, SIDE, SIDE), 255, dtype=np.uint8)
    planar = np.array([[0, 0, 32, 64], [16, 0, 24, 64], [8, 0, 56, 64]])
    # A plane alone is cut at its whole size, so the volume's boxes are one slice deep.
    flat = np.ones((3, 1), dtype=np.int64)
    boxes = planar if depth is None else np.hstack([planar[:, :2], flat, planar[:, 2:], flat])
    segs = Predictor(Graded(), batch_boxes=2, overlap=overlap).predict(image, boxes, is_3d=depth is not None)
    assert (segs if depth is None else segs[1])[30].tolist() == row


def test_of_equal_logits_the_later_box_has_the_pixel_in_whatever_order_they_come() -> None:
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 4]])
    for order in ([0, 1], [1, 0]):
        canvas = Canvas((4, 4), boxes, "logit")
        for box in order:
            canvas.paint(box, np.full((4, 4), 2, dtype=np.float32))
        assert (canvas.segs() == 2).all()


def test_boxes_are_painted_from_the_largest_on_by_pixels_or_voxels() -> None:
    planar = np.array([[0, 0, 2, 2], [0, 0, 9, 9], [0, 0, 3, 1], [5, 5, 7, 7]])
    assert painting_order(planar, "largest-first").tolist() == [1, 0, 3, 2]
    assert painting_order(planar, "last").tolist() == painting_order(planar, "logit").tolist() == [0, 1, 2, 3]
    deep = np.array([[0, 0, 0, 4, 4, 0], [0, 0, 0, 3, 3, 1]])
    assert painting_order(deep, "largest-first").tolist() == [1, 0]


@pytest.mark.parametrize("resampler", [NumpyResampler(), TorchResampler()], ids=["numpy", "torch"])
def test_masks_are_where_the_sigmoid_of_the_resized_logits_is_above_a_half(resampler: Resampler) -> None:
    logits = np.random.default_rng(0).normal(size=(3, 16, 16)).astype(np.float32)
    native = logits_to_native(logits, 50, 37, Geometry(16, 4, 16), resampler)
    canvas = Canvas((50, 37), np.tile([0, 0, 37, 50], (3, 1)), "last")
    masks = [canvas.paint(box, one) for box, one in enumerate(native)]
    assert np.shape(masks) == (3, 50, 37)
    np.testing.assert_array_equal(masks, (torch.sigmoid(torch.from_numpy(native)) > 0.5).numpy())


def test_half_precision_logits_are_resized_in_float32() -> None:
    types = set()

    class Watched(NumpyResampler):
        def resize_logits(self, logits: Floats, height: int, width: int) -> Floats:
            types.add(logits.dtype)
            return super().resize_logits(logits, height, width)

    class Half(Threshold):
        def decode(self, embedding: object, boxes: Floats) -> tuple[Floats, Floats]:
            return half, super().decode(embedding, boxes)[1]

    half = np.random.default_rng(0).normal(size=(2, SIDE, SIDE)).astype(np.float16)
    half_as_float = half.astype(np.float32)
    boxes = np.array([[1, 1, 6, 8], [0, 0, 7, 9]])
    segs = Predictor(Half(), resampler=Watched()).predict(np.ones((9, 7), dtype=np.uint8), boxes, is_3d=False)
    assert types == {np.dtype(np.float32)}
    first, second = logits_to_native(half_as_float, 9, 7, Threshold.geometry, TorchResampler()) > 0
    np.testing.assert_array_equal(segs, np.where(second, 2, first))


class PaddedThreshold(Threshold):
    """The same on a model whose slices keep their aspect; remembers its prompts."""

    geometry = Geometry(SIDE, 4, SIDE, PADDED)

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[Floats] = []

    def decode(self, embedding: object, boxes: Floats) -> tuple[Floats, Floats]:
        self.prompts.append(boxes)
        return super().decode(embedding, boxes)


def test_prompts_and_masks_follow_the_frame_of_the_model() -> None:
    volume = np.zeros((3, SIDE // 2, SIDE), dtype=np.uint8)
    volume[:, 20:32, 40:60] = 255
    model = PaddedThreshold()
    predictor = Predictor(model, volume_prompts="propagated")
    segs = predictor.predict(volume, np.array([[40, 20, 0, 60, 32, 2]]), is_3d=True)
    np.testing.assert_array_equal(segs, volume // 255)
    # The propagated prompt grows by the margin, and no further than the slice: its lower edge lies at half the square.
    margin = PROPAGATION_MARGIN_PX
    moved = [40 - margin, 20 - margin, 60 + margin, SIDE / 2]
    np.testing.assert_array_equal([prompts[0] for prompts in model.prompts], [[40, 20, 60, 32], moved, moved])


def test_logits_of_another_shape_than_the_geometry_says_are_refused() -> None:
    class Coarse(Threshold):
        geometry = Geometry(SIDE, 4, SIDE // 2)

    with pytest.raises(ValueError, match=r"logits: expected \(1, 32, 32\), found \(1, 64, 64\)"):
        Predictor(Coarse()).predict(np.ones((9, 9), np.uint8), np.array([[0, 0, 4, 4]]), is_3d=False)
