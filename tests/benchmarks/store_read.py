"""Random slices, image and labels, against `np.load` of one npz each. `python -m tests.benchmarks.store_read`.

The rivals read the same slices in the same order, interleaved. Cases ending in `_real` use the cases of
MEDSAM_GOLDEN_DATA, where volumes make `np.load` inflate all their slices for one.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from storage.base.blobs import LocalBlobs
from storage.releases.columns import SliceColumns
from storage.releases.reader import ReleaseReader
from storage.shards.codec import COMPRESSIONS, Compression, decode_chunk
from storage.slices.config import StoreConfig
from storage.slices.index import build_index
from storage.sources.case import Case
from storage.sources.npz_source import read_case
from storage.sources.source import SourceConfig
from tests.benchmarks._ct_like import ct_like_cases, write_npz
from tests.benchmarks._harness import interleaved, report
from tests.unit.store_helpers import build_in, manifest_of

READS = 480
BATCH = 32


def _order(count: int) -> list[int]:
    return [int(row) for row in np.random.default_rng(0).permutation(count)[:READS]]


def _repeat(read: Callable[[Any], object], items: list[Any]) -> Callable[[], None]:
    def work() -> None:
        for item in items:
            read(item)

    return work


def _load_npz(path: Path) -> None:
    with np.load(path, allow_pickle=False) as file:
        file["imgs"]
        file["gts"]


def _decoder(reader: ReleaseReader, rows: list[int], codec: Compression) -> Callable[[], None]:
    """Return what a store of this codec cannot do without: checksum and decompression, of bytes held in memory."""
    shards = reader._store.open("CT")
    table = reader.table
    chunks: list[tuple[bytes, int]] = []
    for row in rows:
        for name, column in (("imgs", "img_offset"), (str(table["gt_array"].iloc[row]), "gt_offset")):
            array = shards._arrays[name]
            layout = array.layout
            first = int(table[column].iloc[row]) // layout.chunk
            count = -(-int(table["height"].iloc[row]) * int(table["width"].iloc[row]) // layout.chunk)
            for chunk in range(first, first + count):
                shard, at = divmod(chunk, layout.chunks_per_shard)
                opened = shards._open(array, shard)
                begin, end = opened.ends[at], opened.ends[at + 1]
                chunks.append((opened.blob.read(begin, end - begin), layout.chunk))

    def work() -> None:
        for data, size in chunks:
            decode_chunk(data, 0, len(data), np.empty(size, np.uint8), codec)

    return work


def _zarr_slice(group: Any, table: Any) -> Callable[[int], None]:
    arrays = {name: group[name] for name in ("imgs", "gts_u8")}
    columns = {name: table[name].to_numpy() for name in ("img_offset", "gt_offset", "height", "width")}

    def read(row: int) -> None:
        pixels = columns["height"][row] * columns["width"][row]
        for name, column in (("imgs", "img_offset"), ("gts_u8", "gt_offset")):
            start = columns[column][row]
            arrays[name][start : start + pixels]

    return read


def _ct_like(folder: Path) -> None:
    cases = ct_like_cases(512)
    paths = write_npz(folder / "npz", cases)
    rows = _order(len(paths))
    npz = _repeat(_load_npz, [paths[row] for row in rows])
    for codec in COMPRESSIONS:
        place = LocalBlobs(folder / codec)
        build_in(place, cases, config=StoreConfig(codec=codec))
        reader = ReleaseReader(place, SliceColumns.of(build_index(place, ["CT"], manifest_of(cases))))
        single = _repeat(reader.read, rows)
        _say(f"single_{codec}", single, "np.load of npz", npz)
        _say(f"decode_share_{codec}", single, f"crc32c and {codec} in memory", _decoder(reader, rows, codec))
        batches = [rows[start : start + BATCH] for start in range(0, READS, BATCH)]
        kept = _repeat(lambda some: [reader.read(row) for row in some], batches)  # noqa: B023 - used before it changes
        _say(f"batch_{codec}", _repeat(reader.read_batch, batches), "single reads, kept as a batch", kept)
        if codec == "zstd":
            group = zarr.open_group(place.root / "CT", mode="r")
            _say(
                "vs_zarr_python",
                single,
                "zarr-python on the same store",
                _repeat(_zarr_slice(group, reader.table), rows),
            )


def _say(case: str, ours: Callable[[], None], rival: str, theirs: Callable[[], None]) -> None:
    seconds, ratio = interleaved(ours, theirs)
    report("store_read", case, READS / seconds, "slices_per_cpu_s", rival=rival, ratio=ratio)


def _real(folder: Path, data: Path) -> None:
    """Read CT, the modality with most slices of real volumes."""
    files = sorted(data.rglob("*CT*.npz"))
    cases = {path.stem: read_case(path, path.stem, "CT", SourceConfig()) for path in files}
    labelled: dict[str, Case] = {name: case for name, case in cases.items() if case.gts is not None}
    paths = {path.stem: path for path in files}
    for codec in COMPRESSIONS:
        place = LocalBlobs(folder / f"real_{codec}")
        build_in(place, labelled, config=StoreConfig(codec=codec))
        table = build_index(place, ["CT"], manifest_of(labelled))
        reader = ReleaseReader(place, SliceColumns.of(table))
        rows = _order(len(reader))
        npz = _repeat(_load_npz, [paths[table["case_id"].iloc[row]] for row in rows])
        _say(f"single_{codec}_real", _repeat(reader.read, rows), "np.load of npz", npz)


def main() -> None:
    """Print one line per case."""
    with tempfile.TemporaryDirectory() as scratch:
        _ct_like(Path(scratch))
        data = os.environ.get("MEDSAM_GOLDEN_DATA")
        if data:
            _real(Path(scratch), Path(data))
        else:
            sys.stderr.write("store_read: MEDSAM_GOLDEN_DATA is not set, so the real cases are left out\n")


if __name__ == "__main__":
    main()
