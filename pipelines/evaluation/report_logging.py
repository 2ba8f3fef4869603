"""Reports in MLflow. What belongs here: one run for each report. Not here: the layout of a report (`reports`)."""

from collections.abc import Mapping
from pathlib import Path

from pipelines.base.workspace import Workspace
from pipelines.evaluation.report_files import read_summary
from pipelines.evaluation.reports import report_metrics
from pipelines.evaluation.versions import SPLITS
from pipelines.ingest.releases import split_fingerprint
from pipelines.tracking.tracker import TrackedRun, Tracker
from pipelines.training.students import parent_run
from storage.base.artefacts import Artefact
from storage.base.references import ArtefactRef


def log_report(
    tracker: Tracker,
    workspace: Workspace,
    name: str,
    release: ArtefactRef,
    made: Artefact,
    picture: Path,
    *,
    teacher: Mapping[str, str] | None = None,
) -> TrackedRun:
    """Log a report to MLflow as a run of its own, once; its tags say which data it is of, and the teacher's facts."""
    tags = {f"medsam.{split}": split_fingerprint(release, split) for split in SPLITS}
    tags |= {f"medsam.teacher.{fact}": value for fact, value in (teacher or {}).items()}
    run = tracker.open_run(name, made.fingerprint, parent=lambda: parent_run(tracker, workspace, release), tags=tags)
    if not run.finished:
        tracker.log_metrics(run, report_metrics(read_summary(made.path)))
        tracker.log_files(run, made.path, "report")
        if picture.is_file():
            tracker.log_picture(run, picture, "pictures")
        tracker.close_run(run)
    return run
