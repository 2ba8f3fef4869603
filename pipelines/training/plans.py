"""Training plans as artefacts. What belongs here: building, storing and reading plans, and showing what they draw."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsam_core.base.config import StageConfig
from medsam_core.base.data import SliceReader
from medsam_core.base.geometry import Geometry
from medsam_core.learning.stages import Stage
from medsam_core.planning.plan import Plan, plan_inputs
from pipelines.base.adapters import slice_table
from pipelines.base.results import Picture, TaskResult
from pipelines.base.settings import InputError
from pipelines.base.workspace import Workspace
from pipelines.ingest.releases import drawn_split, split_fingerprint, stage_reader
from pipelines.ingest.unlabelled import has_labels
from storage.base.atomic import atomic_file
from storage.base.references import ArtefactRef


def plan_description(
    workspace: Workspace, release: ArtefactRef, config: StageConfig, stage: Stage
) -> dict[str, object]:
    """Return everything that a plan is made from."""
    inputs = plan_inputs(config, stage, workspace.profile.student.image_size, workspace.profile.seeds.plan)
    return {"train": split_fingerprint(release, drawn_split(release, stage)), **inputs}


def _save_array(path: Path, array: npt.NDArray[np.generic]) -> None:
    with atomic_file(path) as file:
        np.save(file, array, allow_pickle=False)


def make_plan(workspace: Workspace, release: ArtefactRef, config: StageConfig, stage: Stage) -> TaskResult[ArtefactRef]:
    """Build a stage's plan over the training split, which distillation extends by images without labels.

    Raises:
        InputError: If the stage needs labels and the release has none to train on.
    """
    if not stage.draws_unlabelled and not has_labels(release):
        raise InputError(_no_labels(release, stage))

    def build(folder: Path) -> dict[str, object]:
        reader = stage_reader(workspace, release, stage)
        table = slice_table(reader.columns)
        size = workspace.profile.student.image_size
        plan = Plan.build(table, config, stage, size, workspace.profile.seeds.plan)
        for name, array in plan.as_arrays().items():
            _save_array(folder / f"{name}.npy", array)
        plan.coverage(table).to_csv(folder / "coverage.csv", index=False)
        _draw_batches(plan, reader, workspace.profile.student.geometry, folder)
        return {"slots": plan.n_plan_slots, "steps": plan.total_steps, "plan_epochs": config.plan_epochs}

    made = workspace.artefacts.make("plan", plan_description(workspace, release, config, stage), build)
    notes = {
        **made.info,
        "shown by modality": pd.read_csv(made.path / "coverage.csv"),
        **{path.stem.replace("_", " "): Picture(path) for path in sorted(made.path.glob("*.png"))},
    }
    return TaskResult(made.reference(), made.fingerprint, int(not made.reused), int(made.reused), notes)


def _no_labels(release: ArtefactRef, stage: Stage) -> str:
    return (
        f"{stage.section}: expected training cases with gts, found none: all {release.info['unlabelled_cases']} cases "
        "are without labels. The student is distilled on them, and kept (proposed/student_distilled); it can be "
        "fine-tuned, tested and registered once labelled cases of at least three patients are there: add them, and "
        "run again"
    )


def _draw_batches(plan: Plan, reader: SliceReader, geometry: Geometry, folder: Path) -> None:
    """Draw the first microbatch of each kind of mixing as training will see it."""
    from medsam_core.base.config import MIX_KINDS
    from medsam_core.imaging.rendering import render_microbatch
    from pipelines.base import pictures

    kinds = plan.microbatches[0]["mix"]
    for code in np.unique(kinds):
        microbatch = int(np.flatnonzero(kinds == code)[0])
        slots, record, _ = plan.microbatch_slots(0, microbatch)
        batch = render_microbatch(slots, record, reader, geometry)
        pictures.batch_sheet(batch, folder / f"batch_{plan.stage.name}_{MIX_KINDS[int(code)]}.png")


def load_plan(workspace: Workspace, reference: ArtefactRef, config: StageConfig, stage: Stage) -> Plan:
    """Read a plan for a configuration that trains on its first epochs.

    A variant that stops earlier reads the first epochs of the proposed model's plan.
    """
    folder = workspace.artefacts.get(reference).path
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("slots", "groups")}
    epochs = config.plan_epochs
    return Plan.from_arrays(config, stage, {name: array[:epochs] for name, array in arrays.items()})
