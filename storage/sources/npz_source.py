"""One npz file of the challenge: checked, read, normalised.

What belongs here: the npz contract, the reasons for which a file is rejected, the normalised case. Not here: the zip
layer (`storage.sources.npy_archive`), which files there are (`storage.sources.raw_manifest`), how slices are stored.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from storage.base.fingerprints import array_hash
from storage.base.modalities import VOLUMETRIC
from storage.sources.npy_archive import Archive, Header, open_archive, read_array, read_headers, reject

READER_VERSION: Final = 2
"""Bumped by hand whenever some file would be read, named or judged differently than before."""

REASONS: Final[dict[str, str]] = {
    "unreadable": "The file cannot be opened or read.",
    "truncated": "The zip archive is damaged: cut short, or its bytes fail their checksum.",
    "not_npz": "The file is not a zip archive of npy arrays.",
    "pickled": "An array holds pickled Python objects, which are never opened.",
    "missing_imgs": "The archive has no array `imgs`.",
    "imgs_dtype": "`imgs` is not uint8.",
    "imgs_shape": "`imgs` is empty or has none of the shapes (H, W), (H, W, 3) and (D, H, W) that its name allows.",
    "gts_dtype": "`gts` does not hold integers.",
    "gts_shape": "`gts` has another size than `imgs`.",
    "gts_range": "`gts` holds a label below 0 or above 65535.",
    "boxes_shape": "`boxes` is no (N, 4) or, for a volume, (N, 6) list of whole numbers with min <= max.",
    "spacing": "`spacing` is not three positive, finite numbers.",
    "no_modality": "Neither the file's name nor a folder above it states a known modality.",
    "withdrawn": "The case was withdrawn; its file is not read.",
    "too_large": "The arrays promise more bytes than the source's limit allows.",
}
"""Reason code of a rejected file -> what it means."""

MAX_LABEL: Final = 65535

CASE_COPIES: Final = 2
"""Times its array bytes that a case takes at most while it is read: once, and once more where the file's labels are
wider than the stored ones or its arrays in Fortran order."""

_MOST_INFLATED: Final = 1032
"""Bytes that deflate makes of one at most (zlib's technical details)."""

_ARRAYS: Final = ("imgs", "gts", "boxes", "spacing")

LabelArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class SourceConfig:
    """How the files of one source are to be understood."""

    spacing_order: Literal["zyx", "xyz"] = "zyx"
    """Axis order of `spacing` in the files; the organisers' converter writes xyz (DESIGN section 7)."""
    max_case_bytes: int = 8 * 2**30
    """Most array bytes that one file may promise in its headers."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If one is out of range.
        """
        if self.spacing_order not in ("zyx", "xyz"):
            raise ValueError(
                f"spacing_order: expected 'zyx' or 'xyz', found {self.spacing_order!r}; correct the source"
            )
        if self.max_case_bytes < 1:
            raise ValueError(f"max_case_bytes: expected at least 1, found {self.max_case_bytes}; correct the source")


@dataclass(frozen=True, eq=False)
class NpzCase:
    """A case as read: one image, or one volume of slices along axis 0."""

    imgs: npt.NDArray[np.uint8]
    """(H, W), (H, W, 3) or, where `is_3d`, (D, H, W)."""
    is_3d: bool
    gts: LabelArray | None
    """Label ids, (H, W) or (D, H, W), in the smaller dtype that holds them; None if the file has none."""
    boxes: npt.NDArray[np.int64] | None
    """(N, 4) x, y minima then maxima, or (N, 6) x, y, z minima then maxima; native pixels, maxima inclusive."""
    spacing_zyx: tuple[float, float, float] | None
    """Voxel size in mm along the array's axes; None for images and where the file states none."""
    content_hash: str
    """BLAKE3 of the normalised arrays: independent of compression, member order and integer width."""

    @property
    def depth(self) -> int:
        """Slices; 1 for an image."""
        return int(self.imgs.shape[0]) if self.is_3d else 1

    @property
    def height(self) -> int:
        """Rows of a slice."""
        return int(self.imgs.shape[1 if self.is_3d else 0])

    @property
    def width(self) -> int:
        """Columns of a slice."""
        return int(self.imgs.shape[2 if self.is_3d else 1])

    @property
    def channels(self) -> int:
        """3 for a colour image, else 1."""
        return 3 if self.imgs.ndim == 3 and not self.is_3d else 1

    def slice_image(self, z: int) -> npt.NDArray[np.uint8]:
        """Return the image of slice `z`, (H, W) or (H, W, 3), as a view."""
        self._check_slice(z)
        return self.imgs[z] if self.is_3d else self.imgs

    def slice_mask(self, z: int) -> LabelArray | None:
        """Return the label ids of slice `z`, (H, W), as a view; None if the case has no `gts`."""
        self._check_slice(z)
        return self.gts[z] if self.is_3d and self.gts is not None else self.gts

    def label_ids(self) -> npt.NDArray[np.int64]:
        """Return the distinct label ids above 0, ascending; empty without `gts`."""
        seen = np.zeros(MAX_LABEL + 1, dtype=np.bool_)
        for z in range(self.depth):
            mask = self.slice_mask(z)
            if mask is not None:
                seen[mask] = True
        seen[0] = False
        return np.flatnonzero(seen).astype(np.int64)

    def _check_slice(self, z: int) -> None:
        if not 0 <= z < self.depth:
            raise IndexError(f"slice: expected 0 to {self.depth - 1}, found {z}")


def read_case(path: Path, name: str, modality: str, config: SourceConfig) -> NpzCase:
    """Read, check and normalise one npz file.

    An `imgs` of three dimensions is a volume where `name` begins with `3D`, a colour image where it begins with
    `2D`, and else a volume for the modalities in `VOLUMETRIC` and a colour image for the others. `spacing` has no
    meaning for an image and is not read there.

    Args:
        path: The file.
        name: The file's name, or a relative path ending in it; it decides between image and volume.
        modality: Canonical modality, one of `storage.base.modalities.MODALITIES`.
        config: How the source is to be understood.

    Raises:
        BadSampleError: If the file cannot be used; `code` is one of `REASONS`.
    """
    with open_archive(path) as archive:
        return _read(archive, PurePosixPath(name).name, modality, config)


def case_memory(path: Path, n_bytes: int, config: SourceConfig, at_ease: int) -> int:
    """Return a bound on the bytes that reading a file takes.

    Args:
        path: The file.
        n_bytes: Its size.
        config: How the source is to be understood.
        at_ease: A file that cannot take more than this is not opened to know better.

    Raises:
        BadSampleError: As `read_case` does for what headers tell.
    """
    bound = CASE_COPIES * _MOST_INFLATED * n_bytes
    if bound <= at_ease:
        return bound
    with open_archive(path) as archive:
        headers = read_headers(archive, _ARRAYS, config.max_case_bytes)
        return CASE_COPIES * sum(header.n_bytes for header in headers.values())


def _read(archive: Archive, stem: str, modality: str, config: SourceConfig) -> NpzCase:
    headers = read_headers(archive, _ARRAYS, config.max_case_bytes)
    if "imgs" not in headers:
        reject(
            "missing_imgs", f"expected an array imgs, found {sorted(archive.members)[:9]}; add it or remove the file"
        )
    is_3d = _check_imgs(headers["imgs"], stem, modality)
    if not is_3d:
        headers.pop("spacing", None)
    _check_others(headers, is_3d)
    arrays = {name: read_array(name, header) for name, header in headers.items()}
    if "gts" in arrays:
        arrays["gts"] = _narrow_labels(arrays["gts"])
    if "boxes" in arrays:
        arrays["boxes"] = _whole_boxes(arrays["boxes"])
    if "spacing" in arrays:
        arrays["spacing"] = _spacing_zyx(arrays["spacing"], config.spacing_order)
    spacing = arrays.get("spacing")
    return NpzCase(
        imgs=arrays["imgs"],
        is_3d=is_3d,
        gts=arrays.get("gts"),
        boxes=arrays.get("boxes"),
        spacing_zyx=None if spacing is None else (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        # (H, W, 3) and (D, H, 3) may hold the same bytes and still be different cases
        content_hash=array_hash({**arrays, "is_3d": np.array([is_3d])}),
    )


def _check_imgs(header: Header, stem: str, modality: str) -> bool:
    """Check `imgs` by its header; return whether it is a volume."""
    if header.dtype != np.uint8:
        reject("imgs_dtype", f"imgs: expected uint8 from 0 to 255, found {header.dtype}; convert the intensities")
    shape, prefix = header.shape, stem[:2].upper()
    is_3d = prefix == "3D" or (prefix != "2D" and modality in VOLUMETRIC and len(shape) != 2)
    wanted = "(D, H, W)" if is_3d else "(H, W) or (H, W, 3)"
    fits = len(shape) == 3 if is_3d else len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)
    if not fits or 0 in shape:
        reject(
            "imgs_shape",
            f"imgs: expected {wanted} without empty axes for {stem} ({modality}), found {shape}; "
            "correct the array, or the 2D or 3D that the name begins with",
        )
    return is_3d


def _check_others(headers: dict[str, Header], is_3d: bool) -> None:
    """Check `gts`, `boxes` and `spacing` as far as their headers go."""
    gts, boxes, spacing = (headers.get(name) for name in _ARRAYS[1:])
    size = headers["imgs"].shape if is_3d else headers["imgs"].shape[:2]
    columns = 6 if is_3d else 4
    if gts and gts.dtype.kind not in "bui":
        reject("gts_dtype", f"gts: expected integers, found {gts.dtype}; store label ids as uint8 or uint16")
    if gts and gts.shape != size:
        reject("gts_shape", f"gts: expected {size} as imgs has, found {gts.shape}; correct the array")
    if boxes and (boxes.dtype.kind not in "uif" or len(boxes.shape) != 2 or boxes.shape[1] != columns):
        found = f"{boxes.dtype} {boxes.shape}"
        reject("boxes_shape", f"boxes: expected whole numbers (N, {columns}), found {found}; correct the array")
    if spacing and (spacing.dtype.kind not in "uif" or spacing.shape != (3,)):
        found = f"{spacing.dtype} {spacing.shape}"
        reject("spacing", f"spacing: expected three numbers, found {found}; correct the array or leave it out")


def _narrow_labels(gts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return label ids as uint8, or as uint16 where an id needs it."""
    low, high = int(gts.min()), int(gts.max())
    if low < 0 or high > MAX_LABEL:
        reject("gts_range", f"gts: expected labels from 0 to {MAX_LABEL}, found {low} to {high}; renumber them")
    return gts.astype(np.uint8 if high <= np.iinfo(np.uint8).max else np.uint16, copy=False)


def _whole_boxes(boxes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return boxes as int64; they may be stored as floats, but only with whole values."""
    with np.errstate(invalid="ignore"):  # NaN and what exceeds int64 differ from their cast, and are found below
        whole = boxes.astype(np.int64)
    half = boxes.shape[1] // 2
    wrong = np.flatnonzero((whole != boxes).any(axis=1) | (whole[:, :half] > whole[:, half:]).any(axis=1))
    if wrong.size:
        found = f"{boxes[wrong[0]].tolist()} in row {wrong[0]}"
        reject("boxes_shape", f"boxes: expected whole numbers with min <= max, found {found}; correct the array")
    return whole


def _spacing_zyx(spacing: npt.NDArray[Any], order: str) -> npt.NDArray[np.float64]:
    """Return the spacing in array order."""
    values = spacing.astype(np.float64)
    if not (np.isfinite(values) & (values > 0)).all():
        reject("spacing", f"spacing: expected positive finite mm, found {values.tolist()}; correct it or leave it out")
    return values if order == "zyx" else values[::-1].copy()
