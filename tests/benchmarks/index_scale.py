"""A release of 1,500,000 slices: opening it, planning an epoch over it, sharing it between processes.

`open`: seconds to check and open the columns of the training split; rival: the same table through pandas.
`plan_distillation`, `plan_finetuning`: seconds of an epoch of as many slots as there are drawable slices, and by how
much peak memory exceeds the memory before. `shared`: four processes read every column; bytes of the file's pages that
any of them holds alone.
"""

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from medsam_core.learning.stages import STAGES, StageName
from medsam_core.planning.plan import Plan
from pipelines.base.adapters import slice_table
from storage.base.atomic import write_json
from storage.base.fingerprints import file_hash
from storage.base.modalities import MODALITIES
from storage.releases.columns import GT_ARRAY_NAMES, SliceColumns
from storage.releases.release import FORMAT_VERSION, open_split
from tests.benchmarks._harness import interleaved, report
from tests.paper_stages import PAPER_DISTILLATION, PAPER_FINETUNING

ROWS = 1_500_000
PROCESSES = 4
SHARES = {"CT": 0.78, "MR": 0.12}
"""Of the challenge's slices; the other modalities share the rest."""
CASE_SLICES = 120
LABELS_PER_SLICE = 1.6
IMAGE_SIZE = 1024


def _lists(starts: np.ndarray, values: np.ndarray) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array(starts), pa.array(values))


def synthetic_columns(rows: int) -> pa.Table:
    """Return the columns of that many slices, in release order: cases of 120 slices, 1.6 labels a slice."""
    rng = np.random.default_rng(0)
    rest = (1 - sum(SHARES.values())) / (len(MODALITIES) - len(SHARES))
    shares = np.array([SHARES.get(name, rest) for name in MODALITIES])
    modality = np.sort(rng.choice(len(MODALITIES), rows, p=shares / shares.sum())).astype(np.int8)
    case = (np.arange(rows) // CASE_SLICES).astype(np.int32)
    case_ids = pa.array([f"{number:064x}" for number in range(int(case[-1]) + 1)])
    counts = rng.poisson(LABELS_PER_SLICE, rows)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    low = rng.integers(0, 250, (int(starts[-1]), 2), dtype=np.int32)
    boxes = np.concatenate([low, low + rng.integers(1, 250, low.shape, dtype=np.int32)], axis=1)
    side = np.full(rows, 512, np.int32)
    columns = {
        "case_id": pa.DictionaryArray.from_arrays(pa.array(case), case_ids),
        "z": pa.array((np.arange(rows) % CASE_SLICES).astype(np.int32)),
        "modality": pa.DictionaryArray.from_arrays(pa.array(modality), pa.array(MODALITIES)),
        "content_hash": pa.DictionaryArray.from_arrays(pa.array(case), case_ids),
        "height": pa.array(side),
        "width": pa.array(side),
        "channels": pa.array(np.ones(rows, np.int32)),
        "img_offset": pa.array(np.arange(rows, dtype=np.int64) * 512 * 512),
        "gt_array": pa.DictionaryArray.from_arrays(pa.array(np.ones(rows, np.int8)), pa.array(GT_ARRAY_NAMES)),
        "gt_offset": pa.array(np.arange(rows, dtype=np.int64) * 512 * 512),
        "labels": _lists(starts, np.arange(1, 1 + len(low), dtype=np.int32)),
        "areas": _lists(starts, np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.int64)),
        "boxes": _lists(starts * 4, boxes.reshape(-1)),
    }
    return pa.table(columns)


def _write_release(folder: Path) -> None:
    table = synthetic_columns(ROWS)
    SliceColumns(table, None).save(folder / "train.arrow")
    pq.write_table(table, folder / "train.parquet")
    write_json(
        folder / "release.json",
        {"format": FORMAT_VERSION, "sha256": {"train.arrow": file_hash(folder / "train.arrow")}},
    )


def _plan(folder: Path, stage: StageName) -> tuple[float, int, int]:
    """Return CPU seconds, peak memory above that before in bytes, and slots of an epoch's plan."""
    table = slice_table(open_split(folder, "train"))
    config = PAPER_DISTILLATION if stage == "distillation" else PAPER_FINETUNING
    before = _status("VmRSS:")
    start = time.process_time()
    plan = Plan.build(table, config.model_copy(update={"epochs": 1}), STAGES[stage], IMAGE_SIZE, 0)
    seconds = time.process_time() - start
    return seconds, _status("VmHWM:") - before, plan.n_plan_slots


def _status(name: str) -> int:
    """Return a figure of this process in bytes; unlike getrusage, it leaves out what the parent had before exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _private_bytes(folder: Path) -> int:
    """Read every column and return how many bytes of the mapped file belong to this process alone."""
    table = slice_table(open_split(folder, "train"))
    views = [value for value in vars(table).values() if isinstance(value, np.ndarray)]
    if not sum(int(view.sum()) for view in views):
        raise ValueError("columns: expected numbers, found only zeros")
    time.sleep(2)  # Until all processes have mapped it, pages that one has read alone count as its own.
    private, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *words = line.split()
        if not name.endswith(":"):
            inside = line.endswith("train.arrow")
        elif inside and name == "Private_Dirty:":
            private += int(words[0]) * 1024
    return private


def main() -> None:
    """Print one line for each case."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_release(folder)
        ours = lambda: slice_table(open_split(folder, "train"))  # noqa: E731
        seconds, ratio = interleaved(ours, lambda: pd.read_parquet(folder / "train.parquet"))
        report("index_scale", "open", seconds, "CPU seconds", rival="pandas.read_parquet", ratio=ratio)
        context = get_context("spawn")
        for stage in STAGES:
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                seconds, memory, slots = pool.submit(_plan, folder, stage).result()
            report("index_scale", f"plan_{stage}", seconds, f"CPU seconds for {slots} slots")
            report("index_scale", f"plan_{stage}_memory", memory / 2**30, "GiB of peak memory")
        with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
            private = max(pool.map(_private_bytes, [folder] * PROCESSES))
        size = (folder / "train.arrow").stat().st_size
        report("index_scale", "shared", private / size, f"of {size} bytes copied by any of {PROCESSES} processes")


if __name__ == "__main__":
    main()
