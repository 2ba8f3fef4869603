"""The training stages. What belongs here: what a stage is made from, its job, its MLflow run.

Not here: training (`medsam_core.training`), which runs in a process of its own (`pipelines.training.trainer`).
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from medsam_core.base.config import StageConfig
from medsam_core.learning.stages import ADAPTATION, DISTILLATION, FINETUNING, Stage
from medsam_core.models.config import StudentConfig
from pipelines.base import pictures
from pipelines.base.results import Link, Picture, TaskResult
from pipelines.base.values import BELIEVED, CacheRef, TeacherRef, TrainerJob, to_json
from pipelines.base.variants import Variant
from pipelines.base.workspace import Workspace
from pipelines.runs.launch import Launch
from pipelines.tracking.store import TrackingError
from pipelines.tracking.tracker import Point, TrackedRun, Tracker
from pipelines.training.training_cases import write_training_cases
from storage.base.artefacts import Artefact
from storage.base.atomic import read_json, write_json
from storage.base.fingerprints import fingerprint, require_same
from storage.base.references import ArtefactRef
from storage.releases.release import load_release

Log = Callable[[str], None]

STAGE_VERSION = 1
"""Raised by hand whenever the same inputs train to another model."""

WHOLE_TRAINING = ("metrics.jsonl", "epoch_*.safetensors")
"""Files that only a whole training can make again; the final weights can also come from the last checkpoint."""

FOLLOW_SECONDS = 15.0


@dataclass(frozen=True)
class StageInputs:
    """Values of the assets that a stage reads.

    `statistics` is None where no student is built, `cache` where the teacher's masks are not used.
    """

    release: ArtefactRef
    statistics: ArtefactRef | None
    plan: ArtefactRef
    teacher: TeacherRef
    cache: CacheRef | None


def learning(config: StageConfig) -> dict[str, object]:
    """Return, as a plain value, what a stage's result depends on besides its plan and its answers."""
    names = {"epochs", "mask_distillation", "optimiser", "dice", "bce_weight"}
    return config.model_dump(mode="json", include=names)


def distil(
    workspace: Workspace, variant: Variant, inputs: StageInputs, launch: Launch, log: Log
) -> TaskResult[ArtefactRef]:
    """Train a variant's encoder on the teacher's embeddings (stage 1); errors as in `finetune`."""
    _require_own_answers(inputs)
    profile = workspace.profile
    config, student = variant.distillation(profile), variant.student(profile)
    made_from = {
        "stage": DISTILLATION.name,
        "version": STAGE_VERSION,
        "student": student.model_dump(mode="json"),
        "init_seed": profile.seeds.init,
        "statistics": None if inputs.statistics is None else inputs.statistics.fingerprint,
        "plan": inputs.plan.fingerprint,
        "teacher": inputs.teacher.fingerprint,
        "answers": _answers(inputs),
        "learning": learning(config),
        **_precision(workspace),
        **({"last_norm": "teacher"} if student.starts_from_last_norm else {}),
    }
    job = _job(workspace, DISTILLATION, config, inputs, made_from=made_from, student=student)
    return run_stage(workspace, f"{variant.name}/distillation", made_from, job, launch, log)


def finetune(
    workspace: Workspace, variant: Variant, inputs: StageInputs, distilled: ArtefactRef, launch: Launch, log: Log
) -> TaskResult[ArtefactRef]:
    """Train a variant's whole student on ground truth and the teacher's masks (stage 2).

    Raises:
        FingerprintMismatchError: If the teacher's answers are to another plan, or another teacher's.
    """
    _require_own_answers(inputs)
    profile = workspace.profile
    config = variant.finetuning(profile)
    if not FINETUNING.asks(config):
        inputs = replace(inputs, cache=None)
    keep = [profile.ablation_epochs]
    made_from = {
        "stage": FINETUNING.name,
        "version": STAGE_VERSION,
        "distilled": distilled.fingerprint,
        "decoder": inputs.teacher.fingerprint,
        "plan": inputs.plan.fingerprint,
        "answers": _answers(inputs),
        "learning": learning(config),
        "keep_epochs": keep,
        **_believed(config, inputs),
        **_precision(workspace),
    }
    job = _job(workspace, FINETUNING, config, inputs, made_from=made_from, starts_from=distilled, keep_epochs=keep)
    return run_stage(workspace, f"{variant.name}/finetuning", made_from, job, launch, log)


def adapt(
    workspace: Workspace, config: StageConfig, inputs: StageInputs, launch: Launch, log: Log
) -> TaskResult[ArtefactRef]:
    """Train a teacher's prompt encoder and mask decoder on ground truth, from its own embeddings; errors as `finetune`.

    Args:
        workspace: Where everything lies.
        config: Of the stage.
        inputs: The teacher as given, and its embeddings for the plan.
        launch: Starts the trainer and waits for it.
        log: Where progress is said.
    """
    _require_own_answers(inputs)
    config = config.model_copy(update={"mask_distillation": False})
    made_from = {
        "stage": ADAPTATION.name,
        "version": STAGE_VERSION,
        "starts_from": inputs.teacher.fingerprint,
        "plan": inputs.plan.fingerprint,
        "answers": _answers(inputs),
        "learning": learning(config),
    }
    job = _job(workspace, ADAPTATION, config, inputs, made_from=made_from, starts_from=inputs.teacher)
    # A teacher's own training stays float32, whatever its students are trained in: every later result stands on it.
    job = replace(job, precision="float32")
    return run_stage(workspace, "teacher/adaptation", made_from, job, launch, log)


def _believed(config: StageConfig, inputs: StageInputs) -> dict[str, object]:
    """Return the modalities in which the teacher's masks are learnt, where a rule chooses them."""
    if inputs.cache is None or config.mask_distillation_rule == "always":
        return {}
    return {"believed": sorted(inputs.teacher.info[BELIEVED])}


def _precision(workspace: Workspace) -> dict[str, str]:
    """Return what is stated of the number format; nothing for float32, in which earlier versions trained."""
    stated = workspace.profile.training.precision
    return {} if stated == "float32" else {"precision": stated}


def _require_own_answers(inputs: StageInputs) -> None:
    if inputs.cache is None:
        return
    expected = {"plan": inputs.plan.fingerprint, "teacher": inputs.teacher.fingerprint}
    found = {"plan": inputs.cache.plan, "teacher": inputs.cache.teacher}
    what = f"teacher_{inputs.cache.answers}"
    require_same(f"what {what} gave last", expected, found, f"materialise {what} again, then this asset")


def _answers(inputs: StageInputs) -> str | None:
    """Return what the cached answers were made from; None where the stage uses no masks of the teacher."""
    return None if inputs.cache is None else inputs.cache.fingerprint


def _job(
    workspace: Workspace,
    stage: Stage,
    config: StageConfig,
    inputs: StageInputs,
    *,
    made_from: Mapping[str, object],
    starts_from: ArtefactRef | None = None,
    student: StudentConfig | None = None,
    keep_epochs: Sequence[int] = (),
) -> TrainerJob:
    """Return the job of the trainer process."""
    digest = fingerprint(made_from)
    return TrainerJob(
        stage=stage.name,
        config=config,
        release=inputs.release,
        statistics=inputs.statistics,
        plan=inputs.plan,
        teacher=inputs.teacher,
        cache=inputs.cache,
        starts_from=starts_from,
        student=student,
        keep_epochs=tuple(keep_epochs),
        settings=workspace.settings.as_environment(),
        fingerprint=digest,
        out=str(workspace.artefacts.folder("model", digest)),
        precision=workspace.profile.training.precision,
    )


def run_stage(
    workspace: Workspace, name: str, made_from: Mapping[str, object], job: TrainerJob, launch: Launch, log: Log
) -> TaskResult[ArtefactRef]:
    """Train, or find the result of the same training, and make sure that MLflow has its run.

    Args:
        workspace: Where everything lies.
        name: Of the MLflow run, `<variant>/<stage>`.
        made_from: All that the result depends on.
        job: For the trainer process; its fingerprint and folder are those of an artefact made from `made_from`.
        launch: Starts the trainer and waits for it.
        log: Where progress is said.
    """
    tracker = Tracker(workspace.settings)
    run = tracker.open_run(
        name,
        job.fingerprint,
        parent=lambda: parent_run(tracker, workspace, job.release),
        tags={f"medsam.{key}": str(value) for key, value in made_from.items() if isinstance(value, str)},
        params=_flat(made_from),
    )

    def build(folder: Path) -> dict[str, object]:
        job_file = folder / "job.json"
        write_json(job_file, to_json(job))
        with _following(tracker, run, folder / "metrics.jsonl", log):
            launch(job_file, workspace.profile.training.processes)
        points = list(read_points(folder / "metrics.jsonl"))
        pictures.curves(points, _loss_names(points), folder / "curves.png")
        write_training_cases(folder, load_release(workspace.artefacts.get(job.release).path))
        return {"steps": len(points), "final": dict(points[-1][1]), **settled_precision(folder)}

    try:
        made = workspace.artefacts.make("model", made_from, build, inseparable=WHOLE_TRAINING)
    except Exception:
        try:
            tracker.close_run(run, failed=True)
        except TrackingError as second:
            # The first error is what a user must know of; the next run opens this MLflow run again.
            log(f"{name}: its MLflow run could not be ended: {second}")
        raise
    if not run.finished:
        _complete(tracker, run, made)
    log(f"{name}: {'reused' if made.reused else 'trained'} {made.fingerprint[:16]}, {made.info['steps']} steps")
    return TaskResult(made.reference(), made.fingerprint, int(not made.reused), int(made.reused), _notes(made, run))


def settled_precision(folder: Path) -> dict[str, object]:
    """Return what a training's folder says of its number format; nothing where it is float32 as asked for."""
    record = folder / "precision.json"
    return {"precision": read_json(record)} if record.is_file() else {}


def _notes(made: Artefact, run: TrackedRun) -> dict[str, object]:
    """Return what the page shows of a trained stage."""
    return {
        "steps": made.info["steps"],
        **{f"final {key}": value for key, value in made.info["final"].items()},
        "loss": Picture(made.path / "curves.png"),
        "MLflow run": Link(run.url),
        "weights": made.path / "model.safetensors",
        "precision": made.info.get("precision"),
    }


def _complete(tracker: Tracker, run: TrackedRun, made: Artefact) -> None:
    """Log what is still missing in a run, and end it."""
    tracker.log_curve(run, read_points(made.path / "metrics.jsonl"))
    tracker.log_picture(run, made.path / "curves.png", "pictures")
    tracker.close_run(run)


def parent_run(tracker: Tracker, workspace: Workspace, release: ArtefactRef) -> TrackedRun:
    """Find or start the run under which all stages and variants of one release, profile and seed stand."""
    profile = workspace.profile
    identity = {
        "profile": profile.model_dump(mode="json", exclude={"training", "cache", "store"}),
        "release": release.fingerprint,
    }
    run = tracker.open_run(
        f"{profile.name}, release {release.fingerprint[:8]}, seed {profile.seeds.init}",
        fingerprint(identity),
        tags={"medsam.release": release.fingerprint},
        params={
            "profile": profile.name,
            "release": release.fingerprint,
            **_flat(profile.seeds.model_dump(mode="json")),
        },
    )
    if not run.finished:
        tracker.close_run(run)
    return run


def _flat(value: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def read_points(file: Path) -> Iterator[Point]:
    """Read the trainer's metrics, one JSON object a line; a last line still being written is left for later."""
    if not file.is_file():
        return
    with file.open() as lines:
        for line in lines:
            if not line.endswith("\n"):
                return
            values = json.loads(line)
            yield int(values["step"]), {key: float(value) for key, value in values.items() if key != "step"}


def _loss_names(points: list[Point]) -> list[str]:
    return [name for name in points[-1][1] if "loss" in name or "mse" in name or "bce" in name or "dice" in name]


@contextmanager
def _following(tracker: Tracker, run: TrackedRun, file: Path, log: Log) -> Iterator[None]:
    """Bring the trainer's points to MLflow while it trains, so that the curves are live.

    A store that stops answering does not stop a training: that is logged once, and all points are logged at its end.
    """
    stop = threading.Event()

    def follow() -> None:
        told = False
        while not stop.wait(FOLLOW_SECONDS):
            try:
                tracker.log_curve(run, read_points(file))
            except TrackingError as error:
                if not told:
                    log(f"training goes on without live curves: {error}")
                told = True

    thread = threading.Thread(target=follow, name="follow-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
