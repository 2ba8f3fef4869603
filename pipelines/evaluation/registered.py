"""The report of the registered model. What belongs here: scoring the `champion` of the registry on the newest release.

Not here: moving the alias `champion` (`pipelines.tracking.tracker`).
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipelines.base.results import Link, Picture, TaskResult
from pipelines.base.workspace import Workspace
from pipelines.evaluation.predictions import PICTURES, predict_into
from pipelines.evaluation.predictors import device_of, predictor
from pipelines.evaluation.report_files import read_comparison
from pipelines.evaluation.report_logging import log_report
from pipelines.evaluation.reports import choosing_means, write_report
from pipelines.evaluation.scores import make_scores
from pipelines.evaluation.versions import predicted_from, scored_as_at_first, scored_from
from pipelines.tracking.tracker import Tracker
from storage.base.artefacts import Artefact
from storage.base.references import ArtefactRef

Log = Callable[[str], None]

REPORT = "registered_report"


def report_registered(workspace: Workspace, release: ArtefactRef, log: Log) -> TaskResult[ArtefactRef]:
    """Score the model behind the `champion` alias on the release.

    Raises:
        FileNotFoundError: If no model is registered yet.
    """
    tracker = Tracker(workspace.settings)
    champion = tracker.champion()
    if champion is None:
        raise FileNotFoundError("registered model: expected an alias `champion`, found none; run full_pipeline first")
    version = str(champion.version)
    predicted = {
        "run": champion.run_id,
        "registered_version": version,
        **predicted_from(release, workspace.profile.inference),
    }
    made_from = predicted if scored_as_at_first() else {**predicted, "scores": scored_from()}

    def build(folder: Path) -> dict[str, object]:
        predictions = _predict(workspace, release, predicted, log)
        scores = make_scores(workspace, release, predictions, log)
        write_report(scores.rows, folder)
        if scores.pictures.is_file():
            shutil.copyfile(scores.pictures, folder / PICTURES)
        return {"version": version, **choosing_means(scores.rows)}

    made = workspace.artefacts.make(REPORT, made_from, build)
    name = f"registered model, version {version}"
    run = log_report(tracker, workspace, name, release, made, made.path / PICTURES)
    notes = {
        "version": version,
        "test": read_comparison(made.path),
        "pictures": Picture(made.path / PICTURES),
        "MLflow run": Link(run.url),
    }
    return TaskResult(made.reference(), made.fingerprint, int(not made.reused), int(made.reused), notes)


def _predict(workspace: Workspace, release: ArtefactRef, made_from: dict[str, object], log: Log) -> Artefact:
    """Predict the release with the registered model; reuse masks that an earlier version stored with its report."""

    def build(folder: Path) -> dict[str, object]:
        from medsam_core.models.checkpoints import load_model
        from pipelines.tracking.tracker import champion_uri, download_model

        earlier = workspace.artefacts.find(REPORT, made_from)
        if earlier is not None and (earlier.path / "segs").is_dir():
            log(f"masks in {earlier.path} are taken over")
            shutil.copytree(earlier.path / "segs", folder / "segs", dirs_exist_ok=True)
        settings = workspace.settings
        with tempfile.TemporaryDirectory() as scratch:
            model = load_model(download_model(champion_uri(settings), settings.tracking_uri, Path(scratch)))
        predictors = {"student": predictor(model, workspace.profile.inference, device=device_of(workspace))}
        return predict_into(folder, workspace, release, predictors, log)

    return workspace.artefacts.make("registered_predictions", made_from, build)
