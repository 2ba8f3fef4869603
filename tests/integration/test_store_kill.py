"""Ingest killed at twenty moments, and two at once: the store ends in the same bytes, readers meet no torn slice."""

import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from storage.base.blobs import LocalBlobs
from storage.base.errors import StorageError
from storage.releases.columns import SliceColumns
from storage.releases.reader import ReleaseReader
from storage.slices.index import published_rows
from storage.slices.verification import verify
from tests.unit.store_helpers import files_below

pytestmark = pytest.mark.slow

INGEST = """
import sys
from pathlib import Path
from storage.base.blobs import LocalBlobs
from storage.sources.npz_folder import NpzFolder
from storage.sources.source import SourceConfig
from storage.sources.raw_manifest import scan
from storage.slices.config import StoreConfig
from storage.slices.publishing import publish
from storage.slices.writer import missing_parts, write_part
from storage.slices.store_plan import plan_parts
source, stores = Path(sys.argv[1]), LocalBlobs(Path(sys.argv[2]))
config = StoreConfig(chunk_bytes=4096, chunks_per_shard=8, part_shards=2)
print("begun", flush=True)
source = NpzFolder(source, SourceConfig())
plan = plan_parts(stores, "CT", scan(source).table, config)
for part in missing_parts(stores, "CT", plan):
    write_part(stores, part, source.read)
publish(stores, "CT", plan)
"""


def make_source(folder: Path, count: int, seed: int = 0) -> None:
    """Write CT images and volumes of noise, so that shards are as large as their elements."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        shape = (6, 60, 70) if number % 5 == 0 else (90, 110)
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        name = f"{'3D' if len(shape) == 3 else '2D'}Box_CT_{number:03d}.npz"
        np.savez_compressed(folder / name, imgs=image, gts=(image > 128).astype(np.uint8))


def start(source: Path, stores: Path) -> subprocess.Popen[str]:
    """Start an ingest and return once it has begun its work."""
    command = [sys.executable, "-c", INGEST, str(source), str(stores)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def finished(source: Path, stores: Path) -> float:
    """Run an ingest to its end and return the seconds after its beginning."""
    process = start(source, stores)
    begun = time.monotonic()
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return time.monotonic() - begun


class Reader(threading.Thread):
    """Reads a published store again and again while others write it; holds what it read against the source."""

    def __init__(self, source: Path, stores: Path) -> None:
        super().__init__()
        self._stores = LocalBlobs(stores)
        self._images = {path.stem: np.load(path)["imgs"] for path in source.glob("*.npz")}
        self.stop = threading.Event()
        self.read = 0
        self.refused = 0
        self.torn: list[str] = []

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                table = published_rows(self._stores, "CT")
                reader = ReleaseReader(self._stores, SliceColumns.of(table))
                for row, (case_id, z) in enumerate(zip(table["case_id"], table["z"], strict=True)):
                    image = self._images[case_id]
                    expected = image[z] if image.ndim == 3 else image
                    if not np.array_equal(reader.read(row)[0], expected):
                        self.torn.append(f"{case_id} {z}")
                    self.read += 1
            except StorageError:
                self.refused += 1
                time.sleep(0.01)


def test_twenty_kills_end_in_the_bytes_of_an_undisturbed_ingest(tmp_path: Path) -> None:
    """Half of the kills fall into first ingests, half into those of a source that has grown, beside a reader."""
    source, undisturbed, stores = tmp_path / "npz", tmp_path / "undisturbed", tmp_path / "stores"
    make_source(source, 60)
    seconds = finished(source, undisturbed)
    _kill_ten_times(source, stores, seconds, undisturbed, before=None)
    shutil.copytree(undisturbed, tmp_path / "before")
    make_source(source, 90)
    seconds = finished(source, undisturbed)
    reader = Reader(source, stores)
    reader.start()
    _kill_ten_times(source, stores, seconds, undisturbed, before=tmp_path / "before")
    reader.stop.set()
    reader.join()
    found = verify(LocalBlobs(stores), "CT")
    assert (found.damages, found.unnamed) == ((), ())
    assert reader.read > 1000
    assert not reader.torn


def _kill_ten_times(source: Path, stores: Path, seconds: float, undisturbed: Path, before: Path | None) -> None:
    """Kill ingests at ten moments of their work, going on from what each left; then let one end.

    An ingest that ends before its kill leaves the right bytes too; the next one begins anew, from `before`.
    """
    rng = random.Random(5)
    killed = 0
    for _ in range(200):
        if killed == 10:
            break
        process = start(source, stores)
        time.sleep(rng.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            killed += 1
        else:
            assert process.returncode == 0
            assert files_below(stores) == files_below(undisturbed)
            shutil.rmtree(stores)
            if before is not None:
                shutil.copytree(before, stores)
    assert killed == 10
    finished(source, stores)
    assert files_below(stores) == files_below(undisturbed)


def test_of_two_ingests_at_once_each_ends_well_or_says_why_not(tmp_path: Path) -> None:
    source = tmp_path / "npz"
    make_source(source, 60)
    finished(source, tmp_path / "undisturbed")
    both = [start(source, tmp_path / "stores") for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    for process, error in zip(both, errors, strict=True):
        assert process.returncode == 0 or "BusyError" in error, error
    finished(source, tmp_path / "stores")
    assert files_below(tmp_path / "stores") == files_below(tmp_path / "undisturbed")
