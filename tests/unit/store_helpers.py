"""Small slice stores for the tests of the store, the index and the reader. Not here: anything that reads npz files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from storage.base.blobs import Blobs, LocalBlobs
from storage.base.fingerprints import array_hash
from storage.slices.config import StoreConfig
from storage.slices.manifest import StoreManifest
from storage.slices.publishing import publish
from storage.slices.store_plan import plan_parts
from storage.slices.writer import missing_parts, write_part
from storage.sources.case import Case

CONFIG = StoreConfig(chunk_bytes=64, chunks_per_shard=4, part_shards=3)
"""Chunks of 64 bytes and shards of 256, so that ordinary test slices cross both."""


def make_case(
    imgs: npt.NDArray[np.uint8], gts: npt.NDArray[Any] | None, *, is_3d: bool = False, spacing: float | None = None
) -> Case:
    """Return a case as the npz source would."""
    arrays = {"imgs": imgs} if gts is None else {"imgs": imgs, "gts": gts}
    return Case(imgs, is_3d, gts, None, (spacing,) * 3 if spacing else None, array_hash(arrays))


def random_case(
    seed: int, shape: tuple[int, ...], *, is_3d: bool = False, dtype: str | None = "uint8", largest: int = 3
) -> Case:
    """Return a case of noise with labels 0 to `largest`; no labels without a dtype."""
    rng = np.random.default_rng(seed)
    imgs = rng.integers(0, 256, shape, dtype=np.uint8)
    plane = shape if is_3d else shape[:2]
    gts = None if dtype is None else rng.integers(0, largest + 1, plane).astype(dtype)
    return make_case(imgs, gts, is_3d=is_3d, spacing=0.5 if is_3d else None)


def varied_cases() -> dict[str, Case]:
    """Return cases of every shape the store must hold; see CONFIG for what is larger than a chunk and a shard."""
    return {
        "d/colour": random_case(1, (7, 9, 3)),
        "d/dot": random_case(2, (1, 1), largest=1),
        "d/larger_than_chunk": random_case(3, (11, 13)),
        "d/larger_than_shard": random_case(4, (31, 29), dtype="uint16", largest=65535),
        "d/many_labels": random_case(5, (20, 20), dtype="uint16", largest=400),
        "d/unlabelled": random_case(6, (5, 6), dtype=None),
        "d/volume": random_case(7, (5, 8, 9), is_3d=True),
        "d/volume_u16": random_case(8, (3, 10, 17), is_3d=True, dtype="uint16", largest=300),
        "d/whole_chunks": random_case(9, (8, 16)),
    }


def manifest_of(cases: Mapping[str, Case], modality: str = "CT") -> pd.DataFrame:
    """Return the manifest rows of accepted cases."""
    rows = [
        {
            "case_id": case_id,
            "modality": modality,
            "dataset": case_id.split("/")[0],
            "group": f"patient-{case_id}",
            "status": "accepted",
            "is_3d": case.is_3d,
            "depth": case.depth,
            "height": case.height,
            "width": case.width,
            "channels": case.channels,
            "gt_dtype": "" if case.gts is None else case.gts.dtype.name,
            "content_hash": case.content_hash,
        }
        for case_id, case in cases.items()
    ]
    columns = ["case_id", "modality", "dataset", "group", "status", "is_3d", "depth", "height", "width", "channels"]
    return pd.DataFrame(rows, columns=[*columns, "gt_dtype", "content_hash"])


def build_store(
    root: Path, cases: Mapping[str, Case], modality: str = "CT", config: StoreConfig = CONFIG
) -> StoreManifest:
    """Plan, write what is missing and publish in a folder; returns the manifest."""
    return build_in(LocalBlobs(root), cases, modality, config)


def build_in(
    place: Blobs, cases: Mapping[str, Case], modality: str = "CT", config: StoreConfig = CONFIG
) -> StoreManifest:
    """Plan, write what is missing and publish; returns the manifest."""
    plan = plan_parts(place, modality, manifest_of(cases, modality), config)
    for part in missing_parts(place, modality, plan):
        write_part(place, part, cases.__getitem__)
    return publish(place, modality, plan)


def files_below(folder: Path) -> dict[str, bytes]:
    """Return every file's content by its path, but for locks, which hold a process id."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def shard_files(root: Path, modality: str = "CT", array: str = "imgs") -> Sequence[Path]:
    """Return the shard files of an array by number."""
    return sorted((root / modality / array / "c").iterdir(), key=lambda path: int(path.name))
