"""The teacher's weights. What belongs here: where they come from, how they are verified, how a stand-in is made.

Not here: the teacher's cached answers (`pipelines.teacher.caches`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from medsam_core.learning.stages import FINETUNING
from medsam_core.models.config import TeacherConfig
from pipelines.base.results import TaskResult
from pipelines.base.settings import InputError
from pipelines.base.teacher_file import teacher_file
from pipelines.base.values import TeacherRef, TrainerJob
from pipelines.base.workspace import Workspace
from pipelines.ingest.unlabelled import has_labels
from pipelines.runs.launch import Launch
from pipelines.teacher.downloads import download, require_sha256
from pipelines.teacher.provenance import given_facts, teacher_facts
from pipelines.training import plans, students
from storage.base.fingerprints import file_hash, fingerprint
from storage.base.references import ArtefactRef

if TYPE_CHECKING:
    from medsam_core.models.segmenter import Segmenter

Log = Callable[[str], None]


def weights_file(workspace: Workspace, log: Log) -> Path:
    """Return the file of the teacher's weights (`pipelines.base.teacher_file`), downloaded if it is given by URL.

    Raises:
        InputError: If there is none, its SHA-256 is not the one that the settings state, or it cannot be downloaded.
    """
    settings = workspace.settings
    found = teacher_file(settings)
    if isinstance(found, str):
        return download(found, settings.home / "downloads", settings.teacher_sha256, log)
    if settings.teacher is not None:
        require_sha256(found, settings.teacher, settings.teacher_sha256)
    return found


def load_weights(source: Path, config: TeacherConfig) -> "Segmenter":
    """Load a published checkpoint or one of the project's own, brought to the profile's image size.

    The kind of file is recognised by its first bytes, not by its name.

    Raises:
        CheckpointError: If the file cannot be read, or does not fit its architecture.
        InputError: If its model has another geometry than the profile's teacher.
    """
    from medsam_core.models.checkpoints import load_model
    from medsam_core.models.file_kinds import file_kind
    from medsam_core.models.published import load_published

    if not file_kind(source).is_safetensors:
        return load_published(source, config)
    teacher = load_model(source)
    teacher = teacher if teacher.image_size == config.image_size else teacher.resized(config.image_size)
    if teacher.geometry != config.geometry:
        raise InputError(
            f"{source}: expected a teacher of {config.geometry}, found {teacher.geometry}; give the weights of "
            f"teacher.kind {config.kind}, or set teacher.kind and teacher.frame to those of this file"
        )
    return teacher


def make_teacher(workspace: Workspace, release: ArtefactRef, launch: Launch, log: Log) -> TaskResult[TeacherRef]:
    """Verify the teacher's weights and, for a stand-in whose profile says so, train it on the training patients."""
    source = weights_file(workspace, log)
    profile = workspace.profile
    architecture = profile.teacher.model_dump(mode="json")
    sha256 = file_hash(source)
    base = {"architecture": architecture, "sha256": sha256, "version": 1}

    def build(folder: Path) -> dict[str, object]:
        from medsam_core.models.checkpoints import save_model
        from medsam_core.models.weights import parameter_counts

        teacher, facts = load_weights(source, profile.teacher), given_facts(source, sha256)
        save_model(folder / "model.safetensors", teacher, {"role": "teacher", "sha256": sha256, **facts})
        return {"parameters": parameter_counts(teacher), "sha256": sha256, "source": source.name, "facts": facts}

    loaded = workspace.artefacts.make("model", base, build)
    log(f"teacher {profile.teacher.kind}: sha256 {sha256}")
    facts = teacher_facts(workspace, loaded.fingerprint)
    notes = {**facts, "kind": profile.teacher.kind, "sha256": sha256, "source": facts.get("source", source.name)}
    pretrains = profile.teacher_pretraining is not None
    if pretrains and not has_labels(release):
        log("teacher_pretraining is left out: no training case has labels; the teacher stays as given")
        pretrains = False
    if not pretrains:
        value = _teacher(loaded.reference(), profile.teacher.kind)
        return TaskResult(value, loaded.fingerprint, int(not loaded.reused), int(loaded.reused), notes)
    result = _train_stand_in(workspace, release, loaded.reference(), launch, log)
    value = _teacher(result.value, profile.teacher.kind)
    return TaskResult(value, result.fingerprint, result.made, result.reused, {**notes, **result.notes})


def _teacher(model: ArtefactRef, kind: str) -> TeacherRef:
    return TeacherRef(model.kind, model.fingerprint, model.info, model.reused, teacher=kind)


def _train_stand_in(
    workspace: Workspace, release: ArtefactRef, loaded: ArtefactRef, launch: Launch, log: Log
) -> TaskResult[ArtefactRef]:
    """Train the loaded stand-in on the training patients' ground truth, as a fine-tuning without a teacher."""
    pretraining = workspace.profile.teacher_pretraining
    if pretraining is None:
        raise ValueError("expected a profile with teacher_pretraining, found none")
    config = pretraining.model_copy(update={"mask_distillation": False})
    plan = plans.make_plan(workspace, release, config, FINETUNING)
    made_from = {
        "stage": FINETUNING.name,
        "version": students.STAGE_VERSION,
        "starts_from": loaded.fingerprint,
        "plan": plan.fingerprint,
        "learning": students.learning(config),
    }
    digest = fingerprint(made_from)
    job = TrainerJob(
        stage=FINETUNING.name,
        config=config,
        release=release,
        plan=plan.value,
        starts_from=loaded,
        teacher=None,
        cache=None,
        statistics=None,
        keep_epochs=(),
        settings=workspace.settings.as_environment(),
        fingerprint=digest,
        out=str(workspace.artefacts.folder("model", digest)),
    )
    return students.run_stage(workspace, "teacher/pretraining", made_from, job, launch, log)
