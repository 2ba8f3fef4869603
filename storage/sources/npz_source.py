"""One npz file of the challenge: checked, read, normalised.

What belongs here: the npz contract, the reasons for which a file is rejected. Not here: the zip layer
(`storage.sources.npy_archive`), which files there are (`storage.sources.npz_listing`), the case that comes of it
(`storage.sources.case`).
"""

import contextlib
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
import numpy.typing as npt

from storage.base.errors import BadSampleError
from storage.base.fingerprints import array_hash
from storage.base.modalities import VOLUMETRIC
from storage.sources.case import MAX_LABEL, Case, LabelArray
from storage.sources.npy_archive import DAMAGES, Archive, Header, open_archive, read_array, read_header, require_sizes
from storage.sources.source import CASE_COPIES, SourceConfig, Use, reject

READER_VERSION: Final = 3
"""Raised by hand whenever the reader gives another result for some file, or another reason for rejecting it."""
ACCEPTED_ALIKE_SINCE: Final = 2
"""Files that this version of the reader, or a later one, accepted give the same case with the present version."""

REASONS: Final[dict[str, str]] = {
    "unreadable": "The file cannot be opened or read.",
    "truncated": "The zip archive is damaged: cut short, or its bytes fail their checksum.",
    "not_npz": "The file is not a zip archive of npy arrays.",
    "pickled": "An array that is needed holds pickled Python objects, which are never opened.",
    "missing_imgs": "The archive has no array `imgs`.",
    "imgs_dtype": "`imgs` is not uint8.",
    "imgs_shape": "`imgs` is empty or has none of the shapes (H, W), (H, W, 3) and (D, H, W) that its name allows.",
    "gts_dtype": "`gts` does not hold integers.",
    "gts_shape": "`gts` has another size than `imgs`.",
    "gts_range": "`gts` holds a label below 0 or above 65535.",
    "boxes_shape": "To predict: `boxes` is missing, has a box outside the image, or is no (N, 4) or, for a volume, "
    "(N, 6) list of whole numbers with min <= max.",
    "spacing": "`spacing` is not three positive, finite numbers.",
    "no_modality": "Neither the file's name nor a folder above it states a known modality.",
    "withdrawn": "The case was withdrawn; its file is not read.",
    "too_large": "The arrays promise more bytes than the source's limit allows.",
}
"""Reason code of a rejected file -> what it means."""

_MOST_INFLATED: Final = 1032
"""Largest ratio of inflated to deflated bytes (zlib's technical details)."""


def read_case(path: Path, name: str, modality: str, config: SourceConfig, use: Use = Use.LABELS) -> Case:
    """Read, check and normalise one npz file.

    An `imgs` of three dimensions is a volume where `name` begins with `3D`, a colour image where it begins with
    `2D`, and else a volume for the modalities in `VOLUMETRIC` and a colour image for the others. `spacing` has no
    meaning for an image and is not read there.

    An array that `use` does not need is never a reason to reject a file. A case that is read for its labels keeps valid
    boxes, and its content hash covers them; invalid boxes are left out of the case and of the hash.

    Args:
        path: The file.
        name: The file's name, or a relative path ending in it; it decides between image and volume.
        modality: Canonical modality, one of `storage.base.modalities.MODALITIES`; empty if none is known.
        config: How the source is to be understood.
        use: What the case is read for.

    Raises:
        BadSampleError: If the file cannot be used; `code` is one of `REASONS`.
    """
    with open_archive(path) as archive:
        headers, is_3d = _checked_headers(archive, PurePosixPath(name).name, modality, config, use)
        imgs = read_array("imgs", headers["imgs"]).astype(np.uint8, copy=False)
        gts = _narrow_labels(read_array("gts", headers["gts"])) if "gts" in headers else None
        boxes = _read_boxes(headers["boxes"], headers["imgs"], is_3d, use) if "boxes" in headers else None
        spacing = _spacing_zyx(read_array("spacing", headers["spacing"]), config) if "spacing" in headers else None
    found = {"imgs": imgs, "gts": gts, "boxes": boxes, "spacing": spacing}
    # (H, W, 3) and (D, H, 3) may hold the same bytes and still be different cases
    hashed = {name: array for name, array in found.items() if array is not None} | {"is_3d": np.array([is_3d])}
    return Case(
        imgs=imgs,
        is_3d=is_3d,
        gts=gts,
        boxes=boxes,
        spacing_zyx=None if spacing is None else (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        content_hash=array_hash(hashed) if use is Use.LABELS else "",
    )


def case_memory(path: Path, n_bytes: int, config: SourceConfig, at_ease: int) -> int:
    """Return an upper bound of the memory for reading a file, in bytes, valid for every use.

    Args:
        path: The file.
        n_bytes: Its size.
        config: How the source is to be understood.
        at_ease: A file that cannot need more bytes than this is not opened for a tighter bound.

    Raises:
        BadSampleError: As `read_case` does for what headers tell of images and labels.
    """
    bound = CASE_COPIES * _MOST_INFLATED * n_bytes
    if bound <= at_ease:
        return bound
    with open_archive(path) as archive:
        headers = [header for name in ("imgs", "gts") if (header := read_header(archive, name))]
        require_sizes(headers, config.max_case_bytes)
        boxes = _sound_boxes(archive, headers, config)
        return CASE_COPIES * sum(header.n_bytes for header in [*headers, *filter(None, [boxes])])


def _checked_headers(
    archive: Archive, stem: str, modality: str, config: SourceConfig, use: Use
) -> tuple[dict[str, Header], bool]:
    """Return the headers of the arrays that are to be read, and whether the case is a volume."""
    imgs = read_header(archive, "imgs")
    if imgs is None:
        reject(
            "missing_imgs", f"expected an array imgs, found {sorted(archive.members)[:9]}; add it or remove the file"
        )
    is_3d = _check_imgs(imgs, stem, modality)
    needed = ("boxes",) if use is Use.BOXES else ("gts", "spacing") if is_3d else ("gts",)
    # numpy saves an empty list as Python objects where it was given no type; as boxes it is a usual answer.
    found = {name: read_header(archive, name, may_hold_nothing=name == "boxes") for name in needed}
    headers = {"imgs": imgs} | {name: header for name, header in found.items() if header}
    require_sizes(list(headers.values()), config.max_case_bytes)
    if "gts" in headers:
        _check_gts(headers["gts"], imgs.shape if is_3d else imgs.shape[:2])
    if "spacing" in headers:
        _check_spacing(headers["spacing"])
    if use is Use.LABELS and (boxes := _sound_boxes(archive, list(headers.values()), config)):
        headers["boxes"] = boxes
    return headers, is_3d


def _sound_boxes(archive: Archive, others: list[Header], config: SourceConfig) -> Header | None:
    """Return the header of optional boxes; None if they are missing, or do not fit the other arrays."""
    with contextlib.suppress(BadSampleError, *DAMAGES):
        if boxes := read_header(archive, "boxes"):
            require_sizes([*others, boxes], config.max_case_bytes)
            return boxes
    return None


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


def _check_gts(gts: Header, size: tuple[int, ...]) -> None:
    if gts.dtype.kind not in "bui":
        reject("gts_dtype", f"gts: expected integers, found {gts.dtype}; store label ids as uint8 or uint16")
    if gts.shape != size:
        reject("gts_shape", f"gts: expected {size} as imgs has, found {gts.shape}; correct the array")


def _check_spacing(spacing: Header) -> None:
    if spacing.dtype.kind not in "uif" or spacing.shape != (3,):
        found = f"{spacing.dtype} {spacing.shape}"
        reject("spacing", f"spacing: expected three numbers, found {found}; correct the array or leave it out")


def _narrow_labels(gts: npt.NDArray[np.generic]) -> LabelArray:
    """Return label ids as uint8, or as uint16 where an id needs it."""
    low, high = int(gts.min()), int(gts.max())
    if low < 0 or high > MAX_LABEL:
        reject("gts_range", f"gts: expected labels from 0 to {MAX_LABEL}, found {low} to {high}; renumber them")
    small = high <= np.iinfo(np.uint8).max
    return gts.astype(np.uint8, copy=False) if small else gts.astype(np.uint16, copy=False)


def _read_boxes(header: Header, imgs: Header, is_3d: bool, use: Use) -> npt.NDArray[np.int64] | None:
    """Return the boxes; None if they are invalid and not needed."""
    if use is Use.BOXES:
        boxes = _whole_boxes(header, is_3d)
        _require_inside(boxes, imgs.shape[::-1] if is_3d else imgs.shape[1::-1])
        return boxes
    try:
        return _whole_boxes(header, is_3d)
    except (BadSampleError, *DAMAGES):
        return None


def _whole_boxes(header: Header, is_3d: bool) -> npt.NDArray[np.int64]:
    """Return boxes as int64, (N, 4) or (N, 6); they may be stored as floats, but only with whole values."""
    columns = 6 if is_3d else 4
    numeric, empty = header.dtype.kind in "uif", header.n_bytes == 0
    if not numeric or (header.shape[1:] != (columns,) and not empty):
        found = f"{header.dtype} {header.shape}"
        reject("boxes_shape", f"boxes: expected whole numbers (N, {columns}), found {found}; correct the array")
    boxes = read_array("boxes", header).reshape(-1, columns)
    with np.errstate(invalid="ignore"):  # NaN and what exceeds int64 differ from their cast, and are found below
        whole = boxes.astype(np.int64)
    half = columns // 2
    wrong = np.flatnonzero((whole != boxes).any(axis=1) | (whole[:, :half] > whole[:, half:]).any(axis=1))
    if wrong.size:
        found = f"{boxes[wrong[0]].tolist()} as box {wrong[0] + 1} of {len(boxes)}"
        reject("boxes_shape", f"boxes: expected whole numbers with min <= max, found {found}; correct the array")
    return whole


def _require_inside(boxes: npt.NDArray[np.int64], size: tuple[int, ...]) -> None:
    """Reject a file with a box outside the image; `size` is in the order of box coordinates: W, H, and D of volumes."""
    half = len(size)
    outside = np.flatnonzero(((boxes[:, half:] < 0) | (boxes[:, :half] >= np.array(size))).any(axis=1))
    if outside.size:
        reject(
            "boxes_shape",
            f"boxes: expected at least one pixel of the {' x '.join(map(str, size))} image in each, found "
            f"{boxes[outside[0]].tolist()} as box {outside[0] + 1} of {len(boxes)} ({outside.size} such in all); "
            "minima come first, maxima are the last pixel inside",
        )


def _spacing_zyx(spacing: npt.NDArray[np.generic], config: SourceConfig) -> npt.NDArray[np.float64]:
    """Return the spacing in array order."""
    values = spacing.astype(np.float64)
    if not (np.isfinite(values) & (values > 0)).all():
        reject("spacing", f"spacing: expected positive finite mm, found {values.tolist()}; correct it or leave it out")
    return values if config.spacing_order == "zyx" else values[::-1].copy()
