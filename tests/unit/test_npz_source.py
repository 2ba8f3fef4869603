"""One npz file: what is accepted, what is rejected with which code, and what a reader gets."""

import io
import os
import random
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from storage.base.errors import BadSampleError
from storage.sources import npz_source
from storage.sources.case import Case
from storage.sources.npz_source import REASONS, case_memory, read_case
from storage.sources.source import SourceConfig, Use

IMAGE = np.arange(20, dtype=np.uint8).reshape(4, 5)
VOLUME = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(name: str = "US_1", *, compressed: bool = True, **arrays: Any) -> Path:
        path = tmp_path / f"{name}.npz"
        (np.savez_compressed if compressed else np.savez)(path, **arrays)
        return path

    return _write


def read(path: Path, modality: str = "US", use: Use = Use.LABELS, **settings: Any) -> Case:
    return read_case(path, path.stem, modality, SourceConfig(**settings), use)


def code_of(path: Path, modality: str = "US", use: Use = Use.LABELS, **settings: Any) -> str:
    with pytest.raises(BadSampleError) as caught:
        read(path, modality, use, **settings)
    assert caught.value.code in REASONS
    assert "expected" in str(caught.value)
    assert "found" in str(caught.value)
    assert str(path.parent) not in str(caught.value)
    return caught.value.code


def npy_header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def write_members(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


class TestAccepted:
    def test_grey_image_with_labels(self, write: Write) -> None:
        gts = np.zeros((4, 5), np.int64)
        gts[1, 2] = 2
        case = read(write(imgs=IMAGE, gts=gts))
        assert (case.is_3d, case.depth, case.height, case.width, case.channels) == (False, 1, 4, 5, 1)
        assert case.gts is not None
        assert case.gts.dtype == np.uint8
        np.testing.assert_array_equal(case.imgs, IMAGE)
        np.testing.assert_array_equal(case.gts, gts)
        assert case.label_ids().tolist() == [2]
        assert case.boxes is None
        assert case.spacing_zyx is None

    def test_volume_slices_are_views(self, write: Write) -> None:
        gts = (VOLUME > 30).astype(np.uint8)
        case = read(write("CT_1", imgs=VOLUME, gts=gts, spacing=np.array([3.0, 1.0, 0.5])), "CT")
        assert (case.is_3d, case.depth, case.height, case.width, case.channels) == (True, 3, 4, 5, 1)
        assert case.spacing_zyx == (3.0, 1.0, 0.5)
        np.testing.assert_array_equal(case.slice_image(2), VOLUME[2])
        np.testing.assert_array_equal(case.slice_mask(2), gts[2])
        assert np.shares_memory(case.slice_image(2), case.imgs)

    @pytest.mark.parametrize("z", [-1, 3])
    def test_slice_outside_the_volume(self, write: Write, z: int) -> None:
        case = read(write("CT_1", imgs=VOLUME), "CT")
        with pytest.raises(IndexError, match="expected 0 to 2"):
            case.slice_image(z)

    def test_no_ground_truth(self, write: Write) -> None:
        boxes = np.array([[0, 1, 2, 3]])
        case = read(write("2DBox_US_1", imgs=IMAGE, boxes=boxes))
        assert case.gts is None
        assert case.slice_mask(0) is None
        assert case.label_ids().tolist() == []
        assert case.boxes is not None
        assert case.boxes.dtype == np.int64
        np.testing.assert_array_equal(case.boxes, boxes)

    def test_empty_mask(self, write: Write) -> None:
        case = read(write(imgs=IMAGE, gts=np.zeros((4, 5), bool)))
        assert case.gts is not None
        assert case.label_ids().tolist() == []

    def test_labels_with_a_gap(self, write: Write) -> None:
        assert read(write(imgs=IMAGE, gts=np.where(IMAGE > 9, 2, 0))).label_ids().tolist() == [2]

    def test_300_objects_need_uint16(self, write: Write) -> None:
        gts = np.arange(301).reshape(7, 43)
        case = read(write(imgs=np.zeros((7, 43), np.uint8), gts=gts))
        assert case.gts is not None
        assert case.gts.dtype == np.uint16
        assert case.label_ids().tolist() == list(range(1, 301))

    @pytest.mark.parametrize(("top", "dtype"), [(255, "uint8"), (256, "uint16"), (65535, "uint16")])
    def test_label_dtype_is_the_smaller_that_fits(self, write: Write, top: int, dtype: str) -> None:
        gts = np.zeros((4, 5), np.uint64)
        gts[0, 0] = top
        case = read(write(imgs=IMAGE, gts=gts))
        assert case.gts is not None
        assert case.gts.dtype == dtype
        assert case.label_ids().tolist() == [top]

    def test_one_pixel(self, write: Write) -> None:
        case = read(write(imgs=np.full((1, 1), 7, np.uint8), gts=np.ones((1, 1), np.uint8)))
        assert (case.height, case.width, case.label_ids().tolist()) == (1, 1, [1])

    def test_fortran_order_and_big_endian(self, write: Write) -> None:
        gts = np.arange(60, dtype=">i4").reshape(3, 4, 5)
        plain = read(write("CT_a", imgs=VOLUME, gts=gts.astype(np.uint8)), "CT")
        odd = read(write("CT_b", imgs=np.asfortranarray(VOLUME), gts=np.asfortranarray(gts)), "CT")
        np.testing.assert_array_equal(odd.imgs, VOLUME)
        assert odd.gts is not None
        np.testing.assert_array_equal(odd.gts, gts)
        assert odd.content_hash == plain.content_hash

    def test_whole_float_boxes(self, write: Write) -> None:
        case = read(write("3DBox_CT_1", imgs=VOLUME, boxes=np.array([[0.0, 1, 0, 2, 3, 2]])), "CT")
        assert case.boxes is not None
        assert case.boxes.tolist() == [[0, 1, 0, 2, 3, 2]]

    def test_xyz_spacing_is_turned(self, write: Write) -> None:
        path = write("CT_1", imgs=VOLUME, spacing=np.array([0.5, 1.0, 3.0]))
        assert read(path, "CT", spacing_order="xyz").spacing_zyx == (3.0, 1.0, 0.5)

    def test_spacing_of_an_image_is_ignored(self, write: Write) -> None:
        assert read(write(imgs=IMAGE, spacing=np.array([0.1, 0.1]))).spacing_zyx is None

    def test_unknown_members_are_not_opened(self, write: Write) -> None:
        read(write(imgs=IMAGE, meta=np.array([{"a": 1}], dtype=object)))


class TestColourOrVolume:
    THREE = np.zeros((6, 4, 3), np.uint8)

    @pytest.mark.parametrize(
        ("name", "modality", "is_3d"),
        [
            ("2DBox_CT_1", "CT", False),
            ("2D_MR_1", "MR", False),
            ("CT_1", "CT", True),
            ("3DBox_PET_1", "PET", True),
            ("US_1", "US", False),
            ("2DBox_US_1", "US", False),
            ("3DBox_US_1", "US", True),
        ],
    )
    def test_last_axis_of_three(self, write: Write, name: str, modality: str, is_3d: bool) -> None:
        case = read(write(name, imgs=self.THREE), modality)
        assert case.is_3d is is_3d
        assert (case.depth, case.height, case.width, case.channels) == ((6, 4, 3, 1) if is_3d else (1, 6, 4, 3))

    def test_flat_ct_slice_is_an_image(self, write: Write) -> None:
        assert not read(write("CT_1", imgs=IMAGE), "CT").is_3d

    def test_colour_image_and_volume_of_equal_bytes_differ(self, write: Write) -> None:
        flat, deep = (read(write(name, imgs=self.THREE), "CT") for name in ("2D_CT", "3D_CT"))
        assert flat.content_hash != deep.content_hash

    def test_name_may_carry_folders(self, write: Write) -> None:
        path = write("2DBox_CT_1", imgs=self.THREE)
        assert not read_case(path, "3D/CT/2DBox_CT_1", "CT", SourceConfig()).is_3d

    @pytest.mark.parametrize(
        ("name", "modality", "shape"),
        [
            ("2DBox_CT_1", "CT", (6, 4, 5)),
            ("US_1", "US", (6, 4, 5)),
            ("US_1", "US", (6, 4, 4)),
            ("3DBox_CT_1", "CT", (6, 4)),
            ("CT_1", "CT", (6, 4, 5, 3)),
            ("2DBox_US_1", "US", (2, 6, 4, 3)),
            ("US_1", "US", (6,)),
            ("US_1", "US", ()),
            ("US_1", "US", (0, 4)),
            ("CT_1", "CT", (0, 4, 4)),
        ],
    )
    def test_other_shapes(self, write: Write, name: str, modality: str, shape: tuple[int, ...]) -> None:
        assert code_of(write(name, imgs=np.zeros(shape, np.uint8)), modality) == "imgs_shape"


class TestRejectedArrays:
    def test_missing_imgs(self, write: Write) -> None:
        assert code_of(write(gts=IMAGE)) == "missing_imgs"

    @pytest.mark.parametrize("dtype", ["float32", "int16", "bool", "uint16"])
    def test_imgs_dtype(self, write: Write, dtype: str) -> None:
        assert code_of(write(imgs=IMAGE.astype(dtype))) == "imgs_dtype"

    @pytest.mark.parametrize(
        ("name", "use"),
        [("imgs", Use.LABELS), ("imgs", Use.BOXES), ("gts", Use.LABELS), ("spacing", Use.LABELS), ("boxes", Use.BOXES)],
    )
    def test_pickled(self, write: Write, name: str, use: Use) -> None:
        path = write("CT_1", **{"imgs": VOLUME, name: np.array([[None]], dtype=object)})
        assert code_of(path, "CT", use) == "pickled"

    @pytest.mark.parametrize("name", ["imgs", "gts", "spacing", "boxes"])
    def test_objects_of_any_number_or_in_records_are_pickled(self, write: Write, name: str) -> None:
        records = np.array([], dtype=[("box", object)])
        for array in (np.array([None]), np.array(None), records, np.zeros((2, 2), object)):
            use = Use.BOXES if name == "boxes" else Use.LABELS
            assert code_of(write("CT_1", **{"imgs": VOLUME, name: array}), "CT", use) == "pickled"

    @pytest.mark.parametrize("name", ["imgs", "gts", "spacing"])
    def test_no_objects_in_the_place_of_an_array_that_cannot_be_empty(self, write: Write, name: str) -> None:
        assert code_of(write("CT_1", **{"imgs": VOLUME, name: np.array([], dtype=object)}), "CT") == "pickled"

    @pytest.mark.parametrize("shape", [(0,), (0, 4), (0, 6)])
    def test_no_boxes_as_objects_are_an_empty_list_whatever_is_pickled(
        self, tmp_path: Path, shape: tuple[int, ...]
    ) -> None:
        bomb = b"cos\nsystem\n(S'touch %s'\ntR." % str(tmp_path / "ran").encode()
        imgs = npy_header(VOLUME.shape, VOLUME.dtype.str) + VOLUME.tobytes()
        members = {"imgs.npy": imgs, "boxes.npy": npy_header(shape, "|O") + bomb}
        boxes = read(write_members(tmp_path / "CT_1.npz", members), "CT", Use.BOXES).boxes
        assert boxes is not None
        assert boxes.shape == (0, 6)
        assert not (tmp_path / "ran").exists()

    def test_no_boxes_as_objects_leave_the_hash_of_a_labelled_case_as_it_was(self, write: Write) -> None:
        hashed = read(write(imgs=IMAGE, gts=IMAGE)).content_hash
        assert read(write(imgs=IMAGE, gts=IMAGE, boxes=np.array([], dtype=object))).content_hash == hashed

    def test_pickle_is_never_run(self, tmp_path: Path) -> None:
        bomb = b"cos\nsystem\n(S'touch %s'\ntR." % str(tmp_path / "ran").encode()
        path = write_members(tmp_path / "US_1.npz", {"imgs.npy": npy_header((1,), "|O") + bomb})
        assert code_of(path) == "pickled"
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("dtype", ["float32", "complex64", "<U3"])
    def test_gts_dtype(self, write: Write, dtype: str) -> None:
        assert code_of(write(imgs=IMAGE, gts=IMAGE.astype(dtype))) == "gts_dtype"

    @pytest.mark.parametrize("shape", [(5, 4), (4, 5, 1), (1, 4, 5), ()])
    def test_gts_shape(self, write: Write, shape: tuple[int, ...]) -> None:
        assert code_of(write(imgs=IMAGE, gts=np.zeros(shape, np.uint8))) == "gts_shape"

    def test_gts_shape_of_a_volume_and_a_colour_image(self, write: Write) -> None:
        assert code_of(write("CT_1", imgs=VOLUME, gts=VOLUME[:2]), "CT") == "gts_shape"
        colour = np.zeros((4, 5, 3), np.uint8)
        assert code_of(write(imgs=colour, gts=colour)) == "gts_shape"
        read(write(imgs=colour, gts=IMAGE))

    @pytest.mark.parametrize("value", [-1, 65536])
    def test_gts_range(self, write: Write, value: int) -> None:
        assert code_of(write(imgs=IMAGE, gts=np.full((4, 5), value))) == "gts_range"

    @pytest.mark.parametrize(
        "boxes",
        [
            np.zeros((1, 6), int),
            np.zeros(4, int),
            np.array([[0.5, 0, 1, 1]]),
            np.array([[np.nan, 0, 1, 1]]),
            np.array([[0, 0, np.inf, 1]]),
            np.array([[2, 0, 1, 1]]),
            np.array([["a", "b", "c", "d"]]),
        ],
    )
    def test_boxes(self, write: Write, boxes: npt.NDArray[Any]) -> None:
        assert code_of(write(imgs=IMAGE, boxes=boxes), use=Use.BOXES) == "boxes_shape"

    @pytest.mark.parametrize(
        ("name", "modality", "imgs", "box"),
        [
            ("US_1", "US", IMAGE, [60, 3, 70, 3]),
            ("US_1", "US", IMAGE, [5, 0, 5, 0]),
            ("US_1", "US", IMAGE, [-9, 0, -1, 3]),
            ("CT_1", "CT", VOLUME, [0, 0, 3, 4, 3, 3]),
        ],
    )
    def test_a_box_without_a_pixel_is_told_as_the_file_has_it(
        self, write: Write, name: str, modality: str, imgs: npt.NDArray[np.uint8], box: list[int]
    ) -> None:
        path = write(name, imgs=imgs, boxes=np.array([[0] * len(box), box]))
        with pytest.raises(BadSampleError, match="at least one pixel") as caught:
            read(path, modality, Use.BOXES)
        assert f"found {box} as box 2 of 2 (1 such in all)" in str(caught.value)
        assert "exclusive" not in str(caught.value)

    def test_a_box_at_the_last_pixel_is_inside(self, write: Write) -> None:
        boxes = np.array([[4, 3, 4, 3], [-2, -2, 0, 0]])
        case = read(write(imgs=IMAGE, boxes=boxes), use=Use.BOXES)
        np.testing.assert_array_equal(case.boxes, boxes)

    @pytest.mark.parametrize(
        "spacing", [[1.0, 1.0], [1.0, 0.0, 1.0], [1.0, -1.0, 1.0], [np.nan, 1, 1], [np.inf, 1, 1], ["1", "1", "1"]]
    )
    def test_spacing(self, write: Write, spacing: list[Any]) -> None:
        assert code_of(write("CT_1", imgs=VOLUME, spacing=np.array(spacing)), "CT") == "spacing"


UNSOUND_BOXES: dict[str, Any] = {
    "dicts of the 2025 challenge": np.array([{"z_min": 1}], dtype=object),
    "one flat box": np.zeros(4, int),
    "columns of the other kind": np.zeros((1, 7), int),
    "turned round": np.array([[2, 0, 1, 1]]),
    "a fraction": np.array([[0.5, 0, 1, 1]]),
    "not a number": np.array([[np.nan, 0, 1, 1]]),
    "text": np.array([["a", "b", "c", "d"]]),
    "a structure": np.zeros(3, dtype=[("x", int)]),
    "more than the limit": np.zeros((300, 4), int),
}


class TestUnusedArrays:
    """An array that is not used is never a reason to reject a file."""

    @pytest.mark.parametrize("boxes", UNSOUND_BOXES.values(), ids=UNSOUND_BOXES)
    @pytest.mark.parametrize(("name", "modality", "imgs"), [("US_1", "US", IMAGE), ("CT_1", "CT", VOLUME)])
    def test_boxes_where_labels_are_used(
        self, write: Write, name: str, modality: str, imgs: npt.NDArray[np.uint8], boxes: npt.NDArray[Any]
    ) -> None:
        without = read(write(name, imgs=imgs, gts=imgs), modality, max_case_bytes=4000)
        path = write(name, imgs=imgs, gts=imgs, boxes=boxes, text_prompts=np.array({"1": "liver"}, dtype=object))
        case = read(path, modality, max_case_bytes=4000)
        assert case.boxes is None
        assert case.content_hash == without.content_hash
        np.testing.assert_array_equal(case.gts, imgs)
        assert case_memory(path, 10**9, SourceConfig(max_case_bytes=4000), 0) >= 2 * imgs.nbytes

    @pytest.mark.parametrize(
        "member",
        [
            b"",
            b"no header",
            npy_header((1, 4), "<i8"),
            npy_header((10**9, 4), "<i8"),
            npy_header((1, 4), "|u1") + b"abc",
        ],
        ids=["empty", "no header", "no payload", "promises 32 GB", "short"],
    )
    def test_damaged_boxes_where_labels_are_used(self, tmp_path: Path, member: bytes) -> None:
        good = {"imgs.npy": npy_header((4, 5)) + IMAGE.tobytes()}
        without = read(write_members(tmp_path / "US_1.npz", good)).content_hash
        path = write_members(tmp_path / "US_2.npz", {**good, "boxes.npy": member})
        assert read(path).content_hash == without
        assert code_of(path, use=Use.BOXES) in ("not_npz", "truncated", "too_large")

    def test_a_flipped_byte_of_boxes_where_labels_are_used(self, write: Write) -> None:
        path = write(imgs=IMAGE, boxes=np.full((1, 4), 77), compressed=False)
        data = path.read_bytes()
        payload = np.full((1, 4), 77).tobytes()
        assert data.count(payload) == 1
        path.write_bytes(data.replace(payload, np.full((1, 4), 78).tobytes()))
        assert read(path).boxes is None
        assert code_of(path, use=Use.BOXES) == "truncated"

    @pytest.mark.parametrize(
        "more",
        [
            {"gts": np.array([[None]], dtype=object)},
            {"gts": VOLUME.astype(np.float32)},
            {"gts": VOLUME[:2]},
            {"gts": np.full(VOLUME.shape, -1)},
            {"spacing": np.array([None])},
            {"spacing": np.array([0.0, 1.0, 1.0])},
            {"spacing": np.ones(2)},
            {"other": np.array([None])},
        ],
    )
    def test_labels_and_spacing_where_boxes_are_used(self, write: Write, more: dict[str, Any]) -> None:
        boxes = np.array([[0, 0, 0, 2, 2, 1]])
        case = read(write("CT_1", imgs=VOLUME, boxes=boxes, **more), "CT", Use.BOXES)
        np.testing.assert_array_equal(case.boxes, boxes)
        assert (case.gts, case.spacing_zyx, case.content_hash) == (None, None, "")

    def test_spacing_of_an_image(self, write: Write) -> None:
        case = read(write(imgs=IMAGE, gts=IMAGE, spacing=np.array([None])))
        assert case.content_hash == read(write(imgs=IMAGE, gts=IMAGE)).content_hash

    @pytest.mark.parametrize("boxes", [np.array([]), np.zeros((0, 4)), np.zeros((0, 6), int), np.zeros((1, 0))])
    @pytest.mark.parametrize(("name", "modality", "imgs"), [("US_1", "US", IMAGE), ("CT_1", "CT", VOLUME)])
    def test_an_empty_list_of_boxes_is_no_box(
        self, write: Write, name: str, modality: str, imgs: npt.NDArray[np.uint8], boxes: npt.NDArray[Any]
    ) -> None:
        path = write(name, imgs=imgs, boxes=boxes)
        found = read(path, modality, Use.BOXES).boxes
        assert found is not None
        assert found.shape == (0, 6 if modality == "CT" else 4)
        assert read(path, modality).boxes is not None


class TestDamagedFiles:
    def test_absent_file(self, tmp_path: Path) -> None:
        assert code_of(tmp_path / "US_1.npz") == "unreadable"

    @pytest.mark.parametrize("linked", [False, True])
    @pytest.mark.parametrize("kind", ["pipe", "endless device"])
    def test_what_is_no_ordinary_file_is_not_read(self, tmp_path: Path, kind: str, linked: bool) -> None:
        """A pipe that nobody writes to would be waited for, and a device that never ends would fill the memory."""
        path = tmp_path / "US_special.npz"
        if kind == "pipe":
            os.mkfifo(tmp_path / "pipe" if linked else path)
        if linked or kind != "pipe":
            path.symlink_to(tmp_path / "pipe" if kind == "pipe" else "/dev/zero")
        with pytest.raises(BadSampleError, match="expected an ordinary file") as caught:
            read(path)
        assert caught.value.code == "unreadable"

    def test_folder_of_that_name(self, tmp_path: Path) -> None:
        (tmp_path / "US_1.npz").mkdir()
        assert code_of(tmp_path / "US_1.npz") == "unreadable"

    def test_empty_file(self, tmp_path: Path) -> None:
        path = tmp_path / "US_1.npz"
        path.touch()
        assert code_of(path) == "truncated"

    @pytest.mark.parametrize("compressed", [True, False])
    def test_cut_at_every_length(self, write: Write, compressed: bool) -> None:
        path = write(imgs=IMAGE, gts=IMAGE, compressed=compressed)
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            assert code_of(path) == "truncated", length

    @pytest.mark.parametrize("size", [2**20 - 128, 2**20 - 127, 2**20, 3 * 2**20 + 7])
    @pytest.mark.parametrize("compressed", [True, False])
    def test_arrays_larger_than_a_piece_of_reading(self, write: Write, size: int, compressed: bool) -> None:
        """2**20 - 128 and its npy header of 128 bytes fill a piece of 1 MiB to the last byte."""
        image = np.random.default_rng(size).integers(0, 4, (1, size), dtype=np.uint8)
        image[:, size // 2 :] = 0
        path = write(imgs=image, compressed=compressed)
        np.testing.assert_array_equal(read(path).imgs, image)
        with np.load(path) as file:
            np.testing.assert_array_equal(file["imgs"], image)

    def test_a_member_that_inflates_to_more_than_it_promises_is_stopped(self, tmp_path: Path) -> None:
        """The directory and both headers are made to promise 20 bytes; 1 GiB would come."""
        path = tmp_path / "US_1.npz"
        header = npy_header((4, 5))
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("imgs.npy", "w") as member:
            member.write(header)
            for _ in range(64):
                member.write(bytes(2**24))
        size = (len(header) + 64 * 2**24).to_bytes(4, "little")
        data = path.read_bytes()
        assert data.count(size) == 2, "one in the local header, one in the directory"
        path.write_bytes(data.replace(size, (len(header) + 20).to_bytes(4, "little")))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert code_of(path) == "truncated"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "KiB; 1 GiB was not held"

    def test_a_local_header_longer_than_the_directory_says(self, tmp_path: Path) -> None:
        """As writers leave that reserve room for zip64 sizes, numpy among them."""
        path = tmp_path / "US_1.npz"
        with zipfile.ZipFile(path, "w") as archive, archive.open("imgs.npy", "w", force_zip64=True) as member:
            member.write(npy_header((4, 5)) + IMAGE.tobytes())
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo("imgs.npy")
            local = path.read_bytes()[info.header_offset + 28 : info.header_offset + 30]
            assert int.from_bytes(local, "little") > len(info.extra)
        np.testing.assert_array_equal(read(path).imgs, IMAGE)

    def test_not_a_zip(self, tmp_path: Path) -> None:
        path = tmp_path / "US_1.npz"
        np.save(path.open("wb"), IMAGE)
        assert code_of(path) == "not_npz"

    @pytest.mark.parametrize("members", [{}, {"readme.txt": b"hello"}, {"imgs": IMAGE.tobytes()}])
    def test_zip_without_arrays(self, tmp_path: Path, members: dict[str, bytes]) -> None:
        assert code_of(write_members(tmp_path / "US_1.npz", members)) == "not_npz"

    @pytest.mark.parametrize(
        "data", [b"", b"hello", b"\x93NUMPY\x09\x00", npy_header((4,))[:20], npy_header((-4, -5)) + IMAGE.tobytes()]
    )
    def test_member_without_a_usable_header(self, tmp_path: Path, data: bytes) -> None:
        assert code_of(write_members(tmp_path / "US_1.npz", {"imgs.npy": data})) == "not_npz"

    @pytest.mark.parametrize("shape", [(4, 6), (4, 4), (40000, 50000)])
    def test_header_that_disagrees_with_the_payload(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        path = write_members(tmp_path / "US_1.npz", {"imgs.npy": npy_header(shape) + IMAGE.tobytes()})
        assert code_of(path) == "truncated"

    def test_header_that_promises_too_much(self, tmp_path: Path) -> None:
        data = npy_header((10**6, 10**6)) + IMAGE.tobytes()
        assert code_of(write_members(tmp_path / "US_1.npz", {"imgs.npy": data})) == "too_large"

    def test_limit_covers_all_arrays(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write(imgs=IMAGE, gts=IMAGE)
        read(path, max_case_bytes=40)
        monkeypatch.delattr(npz_source, "read_array")  # nothing may be inflated
        assert code_of(path, max_case_bytes=39) == "too_large"

    @pytest.mark.parametrize("compressed", [True, False])
    def test_flipped_payload_byte(self, write: Write, compressed: bool) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
        path = write(imgs=noise, compressed=compressed)
        data = bytearray(path.read_bytes())
        for position in range(300, 4000, 37):
            data[position] ^= 1
            path.write_bytes(data)
            assert code_of(path) == "truncated", position
            data[position] ^= 1

    def test_any_damage_is_a_rejection_or_harmless(self, write: Write) -> None:
        path = write("CT_1", imgs=VOLUME, gts=VOLUME, boxes=np.zeros((2, 6), int), spacing=np.ones(3))
        whole, good = path.read_bytes(), read(path, "CT")
        draw = random.Random(0)
        codes: list[str] = []
        for _ in range(500):
            data = bytearray(whole)
            data[draw.randrange(len(data))] = draw.randrange(256)
            path.write_bytes(data)
            try:
                case = read(path, "CT")
            except BadSampleError as error:
                codes.append(error.code)
            else:
                np.testing.assert_array_equal(case.imgs, good.imgs)
        assert set(codes) <= set(REASONS)
        assert len(codes) > 200

    @pytest.mark.parametrize("descr", ["()", "('u1',)", "[]", "{}", "'|u1' * 9**9", "None", "[('a', '<i4')]"])
    def test_header_whose_type_is_none(self, tmp_path: Path, descr: str) -> None:
        text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (4, 5), }}".ljust(117) + "\n"
        data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + IMAGE.tobytes()
        code = code_of(write_members(tmp_path / "US_1.npz", {"imgs.npy": data}))
        assert code in ("not_npz", "imgs_dtype", "truncated")

    def test_local_header_beyond_any_file(self, tmp_path: Path) -> None:
        """By a 64-bit offset (APPNOTE 4.5.3) that no system call takes."""
        path = write_members(tmp_path / "US_1.npz", {"imgs.npy": npy_header((4, 5)) + IMAGE.tobytes()})
        data = path.read_bytes()
        begin = data.index(b"PK\x01\x02")
        end = data.index(b"PK\x05\x06")
        entry = bytearray(data[begin:end])
        extra = (1).to_bytes(2, "little") + (8).to_bytes(2, "little") + (2**64 - 9).to_bytes(8, "little")
        entry[30:32] = len(extra).to_bytes(2, "little")
        entry[42:46] = b"\xff" * 4
        directory = bytes(entry) + extra
        closing = bytearray(data[end:])
        closing[12:16] = len(directory).to_bytes(4, "little")
        path.write_bytes(data[:begin] + directory + bytes(closing))
        assert code_of(path) == "truncated"

    def test_unknown_compression(self, tmp_path: Path) -> None:
        data = npy_header((4, 5)) + IMAGE.tobytes()
        assert code_of(write_members(tmp_path / "US_1.npz", {"imgs.npy": data}, zipfile.ZIP_LZMA)) == "unreadable"


class TestContentHash:
    def test_independent_of_packing(self, write: Write, tmp_path: Path) -> None:
        gts = (IMAGE > 9).astype(np.uint8)
        hashes = {
            read(write("US_a", imgs=IMAGE, gts=gts)).content_hash,
            read(write("US_b", imgs=IMAGE, gts=gts, compressed=False)).content_hash,
            read(write("US_c", gts=gts.astype(np.int32), imgs=IMAGE)).content_hash,
            read(write("US_d", imgs=IMAGE, gts=gts.astype(bool), extra=np.ones(3))).content_hash,
        }
        assert len(hashes) == 1

    def test_depends_on_every_array(self, write: Write) -> None:
        boxes, spacing = np.zeros((1, 6), int), np.ones(3)
        arrays = {"imgs": VOLUME, "gts": VOLUME, "boxes": boxes, "spacing": spacing}
        variants: list[dict[str, Any]] = [arrays]
        variants += [{**arrays, name: array + np.ones((), array.dtype)} for name, array in arrays.items()]
        variants += [
            {key: array for key, array in arrays.items() if key != name} for name in ("gts", "boxes", "spacing")
        ]
        hashes = [read(write(f"CT_{n}", **variant), "CT").content_hash for n, variant in enumerate(variants)]
        assert len(set(hashes)) == len(variants)

    @pytest.mark.parametrize(
        ("name", "arrays", "digest"),
        [
            ("US_1", {"gts": IMAGE > 9}, "76d39cf21343adee"),
            ("US_1", {"gts": IMAGE > 9, "boxes": np.array([[0.0, 1, 2, 3]])}, "4641f05c8849a497"),
            ("US_1", {"boxes": np.zeros((0, 4), int)}, "1f73a96c4847ad1c"),
            (
                "CT_1",
                {"gts": VOLUME * 5, "boxes": np.zeros((2, 6), int), "spacing": np.array([3.0, 1.0, 0.5])},
                "deac730fb8d66a0c",
            ),
        ],
    )
    def test_is_what_stores_and_releases_were_made_from(
        self, write: Write, name: str, arrays: dict[str, Any], digest: str
    ) -> None:
        """Another value makes every store, release and model anew."""
        imgs = VOLUME if name.startswith("CT") else IMAGE
        assert read(write(name, imgs=imgs, **arrays), name[:2]).content_hash.startswith(digest)

    def test_depends_on_the_order_of_spacing(self, write: Write) -> None:
        path = write("CT_1", imgs=VOLUME, spacing=np.array([3.0, 1.0, 1.0]))
        assert read(path, "CT").content_hash != read(path, "CT", spacing_order="xyz").content_hash


@pytest.mark.parametrize("settings", [{"spacing_order": "yxz"}, {"max_case_bytes": 0}])
def test_source_config_limits(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        SourceConfig(**settings)
