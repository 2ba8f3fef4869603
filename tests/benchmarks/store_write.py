"""From npz files to a slice store: bytes, CPU seconds, memory. `python -m tests.benchmarks.store_write`.

`convert` and `bytes` use CT-like slices, `*_real` all cases of MEDSAM_GOLDEN_DATA at the levels of the default profile.
`peak_memory` ingests volumes of 600 x 1024 x 1024 with labels in a process of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import zarr

from pipelines.base.profile import StoreSettings
from storage.base.blobs import LocalBlobs
from storage.shards.codec import COMPRESSIONS
from storage.slices.config import StoreConfig
from storage.slices.publishing import publish
from storage.slices.store_plan import plan_parts
from storage.slices.writer import missing_parts, write_part
from storage.sources.case import Case
from storage.sources.npz_source import read_case
from storage.sources.source import SourceConfig
from tests.benchmarks._ct_like import ct_like_cases, ct_like_slice, write_npz
from tests.benchmarks._harness import interleaved, report
from tests.unit.store_helpers import manifest_of

ALL_SLICES = 1_516_396
"""Image-mask pairs of the challenge's training set (paper, section 4.1)."""
SLICES = 1024
SHARD = 256
VOLUME = (600, 1024, 1024)
LEVELS = StoreSettings()


def _ours(folder: Path, paths: Sequence[Path], config: StoreConfig, modality: str = "CT") -> Callable[[], LocalBlobs]:
    """Return the conversion as ingest does it: read, check, hash, describe, encode, publish."""
    rows = manifest_of({path.stem: read_case(path, path.stem, modality, SourceConfig()) for path in paths})
    by_case = {path.stem: path for path in paths}

    def load(case_id: str) -> Case:
        return read_case(by_case[case_id], case_id, modality, SourceConfig())

    def work() -> LocalBlobs:
        place = LocalBlobs(Path(tempfile.mkdtemp(dir=folder)))
        plan = plan_parts(place, "CT", rows, config)
        for part in missing_parts(place, "CT", plan):
            write_part(place, part, load)
        publish(place, "CT", plan)
        return place

    return work


def _plain(folder: Path, paths: Sequence[Path]) -> Callable[[], None]:
    """Return what a user would write: numpy's reading of npz, sharded zarr arrays with zarr's default codec."""
    shape = (len(paths), 512, 512)

    def work() -> None:
        group = zarr.create_group(tempfile.mkdtemp(dir=folder), overwrite=True)
        arrays = [
            group.create_array(
                name,
                shape=shape,
                chunks=(1, 512, 512),
                shards=(SHARD, 512, 512),
                dtype="uint8",
            )
            for name in ("imgs", "gts")
        ]
        stacks = [np.empty(shape, np.uint8) for _ in arrays]
        for row, path in enumerate(paths):
            with np.load(path, allow_pickle=False) as file:
                for stack, name in zip(stacks, ("imgs", "gts"), strict=True):
                    stack[row] = file[name]
        for array, stack in zip(arrays, stacks, strict=True):
            array[:] = stack

    return work


def _bytes(place: LocalBlobs) -> int:
    return sum(place.sizes().values())


def _ct_like(folder: Path) -> None:
    paths = write_npz(folder / "npz", ct_like_cases(SLICES))
    npz_bytes = sum(path.stat().st_size for path in paths)
    for codec in COMPRESSIONS:
        ours = _ours(folder, paths, StoreConfig(codec=codec))
        report("store_write", f"bytes_{codec}", _bytes(ours()) / SLICES, "bytes_per_slice", rival="npz files",
               ratio=_bytes(ours()) / npz_bytes)  # fmt: skip
        seconds, ratio = interleaved(ours, _plain(folder, paths))
        case = "convert" if codec == "zstd" else f"convert_{codec}"
        report("store_write", case, SLICES / seconds, "slices_per_cpu_s", rival="zipfile and zarr-python", ratio=ratio)
        report("store_write", f"{case}_all", ALL_SLICES / (SLICES / seconds) / 3600, "cpu_hours_extrapolated")


def _real(folder: Path, data: Path) -> None:
    paths = sorted(data.rglob("*.npz"))
    for codec in COMPRESSIONS:
        total = 0
        for modality in sorted({path.parent.name for path in paths}):
            some = [path for path in paths if path.parent.name == modality]
            config = StoreConfig(codec=codec, level=LEVELS.levels.get(modality, LEVELS.level))
            total += _bytes(_ours(folder, some, config, modality)())
        npz_bytes = sum(path.stat().st_size for path in paths)
        report("store_write", f"bytes_{codec}_real", total, "bytes", rival="npz files", ratio=total / npz_bytes)


def _write_volume(path: Path) -> None:
    """Write a volume of `VOLUME`, one slice in memory at a time."""
    image, labels = (np.tile(array, (2, 2)) for array in ct_like_slice(0))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, plane in (("imgs", image), ("gts", labels)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": VOLUME}
                np.lib.format.write_array_header_1_0(member, header)
                for _ in range(VOLUME[0]):
                    member.write(plane.tobytes())


_INGEST = """
import json, sys
from pathlib import Path
from pipelines.base.profile import StoreSettings
from storage.base.blobs import LocalBlobs
from storage.sources.npz_folder import NpzFolder
from storage.sources.source import SourceConfig
from storage.sources.raw_manifest import scan
from storage.slices.config import StoreConfig
from storage.slices.store_plan import plan_parts
from storage.slices.publishing import publish
from storage.slices.writer import write_part
def peak():
    # The largest resident set of this program; ru_maxrss would count its parent's.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])
source, stores = Path(sys.argv[1]), LocalBlobs(Path(sys.argv[2]))
before = peak()
source = NpzFolder(source, SourceConfig())
rows = scan(source).table
scanned = peak()
plan = plan_parts(stores, "CT", rows[rows.status == "accepted"], StoreConfig())
for part in plan:
    write_part(stores, part, source.read)
publish(stores, "CT", plan)
print(json.dumps({"before": before, "scan": scanned, "peak": peak(), "cases": len(rows), "parts": len(plan)}))
"""


def _peak_memory(folder: Path, count: int) -> None:
    source = folder / f"volumes_{count}"
    source.mkdir()
    _write_volume(source / "3DBox_CT_0.npz")
    for number in range(1, count):
        os.link(source / "3DBox_CT_0.npz", source / f"3DBox_CT_{number}.npz")
    command = [sys.executable, "-c", _INGEST, str(source), str(folder / f"stores_{count}")]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    case_bytes = 2 * int(np.prod(VOLUME))
    value = (found["peak"] - found["before"]) * 1024 / case_bytes
    report("store_write", f"peak_memory_{count}_volumes", value, "times_the_arrays_of_a_volume")


def main() -> None:
    """Print one line per case; `volumes` as an argument adds the slow one of 20 volumes."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _ct_like(folder)
        data = os.environ.get("MEDSAM_GOLDEN_DATA")
        if data:
            _real(folder, Path(data))
        else:
            sys.stderr.write("store_write: MEDSAM_GOLDEN_DATA is not set, so the real cases are left out\n")
        _peak_memory(folder, 1)
        if "volumes" in sys.argv[1:]:
            _peak_memory(folder, 20)


if __name__ == "__main__":
    main()
