"""Random slices from what else a user would pick. `python -m tests.benchmarks.store_rivals`.

Every rival reads the same CT-like slices, image and labels, in the same order, interleaved with our zstd store. `ratio`
is the rival's CPU seconds over ours: below 1 it is faster than we are. `bytes` compares sizes. Rivals that are not
installed are left out, with a line that says so; `pip install -e '.[bench]'` brings them.
"""

import importlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from numcodecs import zstd

from storage.base.blobs import LocalBlobs
from storage.releases.columns import SliceColumns
from storage.releases.reader import ReleaseReader
from storage.slices.config import StoreConfig
from storage.slices.index import build_index
from storage.sources.case import Case
from storage.sources.npz_source import read_case
from storage.sources.source import SourceConfig
from tests.benchmarks._ct_like import SIZE, ct_like_cases, write_npz
from tests.benchmarks._harness import interleaved, report
from tests.unit.store_helpers import build_in, manifest_of

SLICES = 256
READS = 64

Read = Callable[[int], object]
Cases = Sequence[Case]


def _labels(case: Case) -> npt.NDArray[Any]:
    if case.gts is None:
        raise ValueError("expected labelled slices, found one without; draw them again")
    return case.gts


def _npz(folder: Path, cases: Mapping[str, Case]) -> Read:
    paths = write_npz(folder, dict(cases))

    def read(row: int) -> object:
        with np.load(paths[row], allow_pickle=False) as file:
            return file["imgs"], file["gts"]

    return read


def _npz_isal(folder: Path, cases: Mapping[str, Case]) -> Read:
    paths = write_npz(folder, dict(cases))
    return lambda row: read_case(paths[row], paths[row].stem, "CT", SourceConfig())


def _hdf5(folder: Path, cases: Mapping[str, Case]) -> Read:
    h5py: Any = importlib.import_module("h5py")
    folder.mkdir()
    file = h5py.File(folder / "slices.h5", "w")
    shape = (len(cases), SIZE, SIZE)
    options = {"chunks": (1, SIZE, SIZE), "dtype": "uint8", "compression": "gzip", "compression_opts": 4}
    images, labels = (file.create_dataset(name, shape, **options) for name in ("imgs", "gts"))
    for row, case in enumerate(cases.values()):
        images[row], labels[row] = case.imgs, _labels(case)
    file.flush()
    return lambda row: (images[row], labels[row])


def _lmdb(folder: Path, cases: Mapping[str, Case]) -> Read:
    lmdb: Any = importlib.import_module("lmdb")
    environment = lmdb.open(str(folder), map_size=2**30)
    with environment.begin(write=True) as transaction:
        for row, case in enumerate(cases.values()):
            for name, array in (("i", case.imgs), ("g", _labels(case))):
                transaction.put(f"{name}{row}".encode(), zstd.compress(array.reshape(-1), 1))
    environment.sync(True)

    def read(row: int) -> object:
        with environment.begin(buffers=False) as transaction:
            found = [zstd.decompress(transaction.get(f"{name}{row}".encode())) for name in ("i", "g")]
        return [np.frombuffer(data, np.uint8).reshape(SIZE, SIZE) for data in found]

    return read


def _tensorstore(folder: Path, cases: Mapping[str, Case]) -> Read:
    tensorstore: Any = importlib.import_module("tensorstore")
    place = LocalBlobs(folder)
    build_in(place, cases, config=StoreConfig())
    table = build_index(place, ["CT"], manifest_of(cases))
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
    arrays = [
        tensorstore.open(
            {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / "CT" / name)}},
            read=True,
            context=context,
        ).result()
        for name in ("imgs", "gts_u8")
    ]
    starts = [table[name].to_numpy() for name in ("img_offset", "gt_offset")]
    pixels = SIZE * SIZE

    def read(row: int) -> object:
        begun = [
            array[int(start[row]) : int(start[row]) + pixels].read()
            for array, start in zip(arrays, starts, strict=True)
        ]
        return [future.result() for future in begun]

    return read


def _zarr_default(folder: Path, cases: Mapping[str, Case]) -> Read:
    group = zarr.create_group(folder)
    shape = (len(cases), SIZE, SIZE)
    stacks = (np.stack([case.imgs for case in cases.values()]), np.stack([_labels(case) for case in cases.values()]))
    arrays = [group.create_array(name, shape=shape, chunks=(1, SIZE, SIZE), dtype="uint8") for name in ("imgs", "gts")]
    for array, stack in zip(arrays, stacks, strict=True):
        array[:] = stack
    return lambda row: [array[row] for array in arrays]


def _webdataset(folder: Path, cases: Mapping[str, Case]) -> Read:
    """Read in the order of the tar file, for it has no other; the row asked for is not the one that comes."""
    webdataset: Any = importlib.import_module("webdataset")
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "slices.tar")) as writer:
        for case_id, case in cases.items():
            packed = {"imgs.npy": case.imgs, "gts.npy": _labels(case)}
            writer.write({"__key__": case_id, **packed})
    stream = iter(webdataset.WebDataset(str(folder / "slices.tar"), shardshuffle=False).repeat().decode())
    return lambda _row: next(stream)


RIVALS: dict[str, Callable[[Path, Mapping[str, Case]], Read]] = {
    "npz": _npz,
    "npz and isal, checked": _npz_isal,
    "h5py, gzip": _hdf5,
    "LMDB, zstd values": _lmdb,
    "WebDataset, in its own order": _webdataset,
    "TensorStore on our store": _tensorstore,
    "zarr-python, its defaults": _zarr_default,
}


def _all(read: Read, rows: Sequence[int]) -> Callable[[], None]:
    def work() -> None:
        for row in rows:
            read(row)

    return work


def _size(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Print two lines for each rival: CPU seconds and bytes."""
    cases = ct_like_cases(SLICES)
    rows = [int(row) for row in np.random.default_rng(0).permutation(SLICES)[:READS]]
    with tempfile.TemporaryDirectory() as scratch:
        place = LocalBlobs(Path(scratch) / "ours")
        build_in(place, cases, config=StoreConfig())
        reader = ReleaseReader(place, SliceColumns.of(build_index(place, ["CT"], manifest_of(cases))))
        own_bytes = _size(place.root)
        for number, (name, make) in enumerate(RIVALS.items()):
            folder = Path(scratch) / f"rival_{number}"
            try:
                read = make(folder, cases)
            except ModuleNotFoundError as error:
                sys.stderr.write(f"store_rivals: {name} is left out, {error.name} is not installed\n")
                continue
            seconds, ratio = interleaved(_all(reader.read, rows), _all(read, rows))
            report("store_rivals", "read", READS / seconds, "slices_per_cpu_s", rival=name, ratio=ratio)
            report(
                "store_rivals",
                "bytes",
                own_bytes / SLICES,
                "bytes_per_slice",
                rival=name,
                ratio=_size(folder) / own_bytes,
            )


if __name__ == "__main__":
    main()
