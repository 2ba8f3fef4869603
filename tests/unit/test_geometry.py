"""Sizes of a model's grids, and where a slice lies in its frame."""

import pytest

from medsam_core.base.geometry import FRAMES, PADDED, SQUARE, Geometry


@pytest.mark.parametrize(("image", "stride", "embedding", "logits"), [(1024, 16, 64, 256), (256, 4, 64, 256)])
def test_sides_follow_from_the_stride(image: int, stride: int, embedding: int, logits: int) -> None:
    geometry = Geometry.of_stride(image, stride)
    assert (geometry.image_side, geometry.embedding_side, geometry.logit_side) == (image, embedding, logits)
    assert geometry.embedding_shape == (256, embedding, embedding)
    assert geometry.frame == SQUARE


def test_a_stride_that_does_not_divide_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"multiple of the stride 24, found 64"):
        Geometry.of_stride(64, 24)


def test_an_embedding_that_does_not_divide_the_image_is_refused() -> None:
    for side in (0, 5):
        with pytest.raises(ValueError, match=rf"divisor of image_side 64, found {side}"):
            Geometry(64, side, 4 * side)


def test_an_unknown_frame_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(ValueError, match=f"expected one of {SQUARE}, {PADDED}, found 'round'"):
        Geometry.of_stride(64, 16, "round")


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(100, 50, (64, 32)), (50, 100, (32, 64)), (7, 7, (64, 64)), (3000, 4, (64, 1)), (300, 200, (64, 43))],
)
def test_the_padded_frame_keeps_the_aspect(height: int, width: int, expected: tuple[int, int]) -> None:
    assert Geometry.of_stride(64, 16, PADDED).content(height, width) == expected
    assert Geometry.of_stride(64, 16).content(height, width) == (64, 64)


@pytest.mark.parametrize("frame", FRAMES)
def test_a_slice_fits_into_every_frame(frame: str) -> None:
    geometry = Geometry.of_stride(128, 8, frame)
    sizes = [geometry.content(height, width) for height in (1, 29, 512, 4000) for width in (1, 30, 512, 3000)]
    assert all(1 <= side <= 128 for size in sizes for side in size)
    assert all(max(size) == 128 for size in sizes)


def test_an_unknown_resampling_is_refused() -> None:
    with pytest.raises(ValueError, match="resampling: expected one of bilinear, area, found 'cubic'"):
        Geometry.of_stride(64, 16, resampling="cubic")
