"""Ingest of 2,000 files through Dagster against the same tasks called directly.

`python -m tests.benchmarks.orchestration`. Both run in one process, after start-up, each into a state folder of its
own; `ratio` is Dagster's CPU seconds over those of the tasks alone, `share` the part of a run that is orchestration.
One round of each: the work takes minutes.
"""

import os
import tempfile
from pathlib import Path

import numpy as np

from pipelines.base.settings import read_settings
from pipelines.base.workspace import Workspace
from pipelines.definitions import build_defs
from pipelines.ingest import releases
from pipelines.ingest import tasks as ingest
from pipelines.ingest.scanning import scan_source
from storage.base.modalities import MODALITIES
from storage.slices.layout import load_plan
from tests.benchmarks._ct_like import ct_like_cases
from tests.benchmarks._harness import cpu_seconds, report

FILES = 2000


def _write_source(folder: Path) -> None:
    """Write cases of all modalities in turn, a patient each."""
    for number, case in enumerate(ct_like_cases(FILES).values()):
        modality = MODALITIES[number % len(MODALITIES)]
        (folder / modality).mkdir(parents=True, exist_ok=True)
        name = folder / modality / f"2DBox_{modality}_{number:04d}.npz"
        labels = {} if case.gts is None else {"gts": case.gts}
        np.savez_compressed(name, imgs=case.imgs, **labels)


def _silent(_text: str) -> None:
    """Say nothing."""


def _directly(environment: dict[str, str]) -> None:
    space = Workspace(read_settings({**os.environ, **environment}))
    manifest = scan_source(space, _silent).value
    stores = []
    for modality in MODALITIES:
        written = [
            ingest.write_store_parts(space, modality, batch, _silent)
            for batch in ingest.plan_store(space, modality, manifest)
        ]
        stores.append(ingest.publish_store(space, modality, manifest, written, _silent).value)
        if not load_plan(space.stores, modality):
            raise AssertionError(f"{modality}: nothing was ingested, so there is nothing to compare")
    index = ingest.make_index(space, manifest, stores).value
    release = releases.freeze_release(space, index, _silent).value
    releases.measure_pixels(space, release)


def _by_dagster(environment: dict[str, str]) -> None:
    job = build_defs(environment).resolve_job_def("ingest")
    if not job.execute_in_process(raise_on_error=True).success:
        raise AssertionError("the job failed, so there is nothing to compare")


def main() -> None:
    """Print one line."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write_source(folder / "npz")
        common = {"MEDSAM_PROFILE": "real", "MEDSAM_DATA": str(folder / "npz"), "MEDSAM_WORKERS": "1"}
        common["MEDSAM_EXECUTOR"] = "in_process"
        tasks = cpu_seconds(lambda: _directly({**common, "MEDSAM_HOME": str(folder / "tasks")}))
        run = cpu_seconds(lambda: _by_dagster({**common, "MEDSAM_HOME": str(folder / "run")}))
        report("orchestration", "ingest_2000_files", run, "cpu_s", rival="the tasks alone", ratio=run / tasks)
        report("orchestration", "share", 1 - tasks / run, "of_a_run")


if __name__ == "__main__":
    main()
