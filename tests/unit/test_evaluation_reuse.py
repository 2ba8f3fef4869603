"""What a bumped version or another metric makes stale: through the asset graph, by counting calls of predictors.

What belongs here: predictions, scores and reports of the real graph over cases, models and a tracker made up here. Not
here: how a case is scored.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from medsam_core.inference.baselines import filled_boxes
from medsam_core.models.publications import STAND_IN
from medsam_core.scores import metric_table
from medsam_core.scores.case_scores import CaseIdentity
from medsam_core.scores.metric_table import LabelMasks, Metric
from pipelines.base.json_io import JsonIOManager
from pipelines.base.profile import InferenceSettings
from pipelines.base.results import TaskResult
from pipelines.base.settings import read_settings
from pipelines.base.values import TeacherRef, from_json
from pipelines.base.workspace import Workspace
from pipelines.evaluation import (
    assets,
    cases,
    predictions,
    registered,
    report_assets,
    report_logging,
    variant_reports,
    versions,
)
from pipelines.evaluation.cases import EvaluationCase, Predict
from pipelines.evaluation.registered import report_registered
from pipelines.evaluation.report_files import TEACHER as TEACHER_FACTS
from pipelines.evaluation.report_files import read_comparison, read_facts
from pipelines.evaluation.score_files import ScoreTable, read_scores, write_scores
from pipelines.runs.resources import WorkspaceResource
from pipelines.summary import summary
from pipelines.tracking.tracker import TrackedRun
from storage.base.errors import FingerprintMismatchError
from storage.base.fingerprints import fingerprint
from storage.base.references import ArtefactRef

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

KEYS = {
    "baseline_predictions",
    "baseline_scores",
    "proposed/predictions",
    "proposed/scores",
    "proposed/evaluation_report",
}
SCORED = {"baseline_scores", "proposed/scores", "proposed/evaluation_report"}
RELEASE = ArtefactRef("release", "r", {"fingerprints": {"validation": "v", "test": "t"}}, reused=True)
STATISTICS = ArtefactRef("statistics", "s", {"mean": [0.5] * 3, "std": [0.5] * 3}, reused=True)
STUDENT_FROM = {"student": 1}
STUDENT = ArtefactRef("model", fingerprint(STUDENT_FROM), {}, reused=True)
TEACHER_FROM = {"stage": "tuning", "starts_from": fingerprint({"sha256": STAND_IN.sha256})}
TEACHER = TeacherRef("model", fingerprint(TEACHER_FROM), {}, reused=True, teacher="stand_in")


def missed_pixels(masks: LabelMasks) -> float:
    """A metric of which less is better."""
    return float(np.count_nonzero(masks.gt & ~masks.pred))


MISSED = Metric("missed", missed_pixels, "lower", "px")


def case(split: str, number: int) -> EvaluationCase:
    gts = np.zeros((24, 24), np.uint8)
    gts[4 : 12 + number, 6:15] = 3
    gts[4:6, 6:8] = 0
    identity = CaseIdentity(f"US/{split}{number}", "US", "set", f"{split}{number}")
    return EvaluationCase(identity, split, np.full((24, 24), 90, np.uint8), gts, None, is_3d=False)


@dataclass
class Tracking:
    """Stands where MLflow would, and keeps what is said to it."""

    metrics: list[dict[str, float]] = field(default_factory=list)
    offers: list[tuple[float, str]] = field(default_factory=list)
    tags: list[dict[str, str]] = field(default_factory=list)

    def open_run(self, name: str, _fingerprint: str, *, tags: dict[str, str], **_more: object) -> TrackedRun:
        self.tags.append(tags)
        return TrackedRun(name, "http://page", finished=False)

    def log_metrics(self, _run: TrackedRun, values: dict[str, float]) -> None:
        self.metrics.append(values)

    def register(
        self, _run: TrackedRun, _file: Path, score: float, *, metric: str, **_more: object
    ) -> tuple[str, bool]:
        self.offers.append((score, metric))
        return "1", True

    def champion(self) -> SimpleNamespace:
        return SimpleNamespace(run_id="run", version="7")

    def log_files(self, *_arguments: object) -> None:
        """Files are not looked at."""

    log_picture = close_run = log_files


@dataclass
class Deployed:
    """A graph of evaluation over made-up inputs.

    Attributes:
        workspace: Its state.
        calls: The predictor's name, once for every case that it was asked.
        tracking: What MLflow was told.
    """

    workspace: Workspace
    calls: list[str] = field(default_factory=list)
    tracking: Tracking = field(default_factory=Tracking)

    def counted(self, name: str) -> Predict:
        def predict(imgs: npt.NDArray[np.uint8], boxes: npt.NDArray[np.int64], _is_3d: bool) -> npt.NDArray[np.uint16]:
            self.calls.append(name)
            return filled_boxes(imgs.shape[:2], boxes)

        return predict

    def run(self) -> set[str]:
        """Materialise the graph; returns the assets of which anything was made."""
        self.calls.clear()
        state = self.workspace.settings.state
        shutil.rmtree(state / "runs", ignore_errors=True)
        nodes = [asset for asset in [*assets.ASSETS, *report_assets.ASSETS] if asset.key.to_user_string() in KEYS]
        resources = {
            "workspace": WorkspaceResource(overrides={"MEDSAM_HOME": str(self.workspace.settings.home)}),
            "io_manager": JsonIOManager(folder=str(state / "values")),
        }
        assert dg.materialize([*_inputs(), *nodes], resources=resources).success
        (ledger,) = (state / "runs").glob("*.jsonl")
        lines = [json.loads(line) for line in ledger.read_text().splitlines()]
        assert {line["asset"] for line in lines} == KEYS
        assert all(line["made"] + line["reused"] == 1 for line in lines)
        return {line["asset"] for line in lines if line["made"]}

    def folder(self, asset: str) -> Path:
        """Return the folder of an asset's artefact."""
        return self.workspace.artefacts.get(self.value(asset)).path

    def value(self, asset: str) -> ArtefactRef:
        """Return an asset's value."""
        file = self.workspace.settings.state / "values" / "assets" / f"{asset}.json"
        return from_json(ArtefactRef, json.loads(file.read_text()), asset)


def _inputs() -> list[dg.AssetsDefinition]:
    """Return assets that stand for what evaluation is given."""

    @dg.asset
    def dataset_release() -> ArtefactRef:
        return RELEASE

    @dg.asset
    def pixel_statistics() -> ArtefactRef:
        return STATISTICS

    @dg.asset
    def teacher_checkpoint() -> TeacherRef:
        return TEACHER

    @dg.asset
    def adapted_teacher() -> TeacherRef:
        return TEACHER

    @dg.asset(key=["proposed", "student_finetuned"])
    def student_finetuned() -> ArtefactRef:
        return STUDENT

    return [dataset_release, pixel_statistics, teacher_checkpoint, adapted_teacher, student_finetuned]


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployed:
    made = Deployed(Workspace(read_settings({"MEDSAM_HOME": str(tmp_path / "home")})))
    made.workspace.artefacts.make("model", STUDENT_FROM, lambda _folder: {})
    weights = {"sha256": STAND_IN.sha256, "source": STAND_IN.file, "facts": STAND_IN.facts()}
    made.workspace.artefacts.make("model", {"sha256": STAND_IN.sha256}, lambda _folder: weights)
    made.workspace.artefacts.make("model", TEACHER_FROM, lambda _folder: {})

    def of_release(_reader: object, split: str) -> Iterator[EvaluationCase]:
        yield from (case(split, number) for number in range(2))

    def baselines(_workspace: Workspace, _inputs: object) -> dict[str, Predict]:
        return {name: made.counted(name) for name in ("teacher", "ellipse")}

    monkeypatch.setattr(cases, "cases_of_release", of_release)
    monkeypatch.setattr(predictions, "release_reader", lambda *_arguments: None)
    monkeypatch.setattr(predictions, "load_segmenter", lambda *_arguments: None)
    monkeypatch.setattr(predictions, "_baselines", baselines)
    for module in (predictions, registered):
        monkeypatch.setattr(module, "predictor", lambda *_arguments, **_more: made.counted("student"))
        monkeypatch.setattr(module, "device_of", lambda _workspace: "cpu")
    monkeypatch.setattr(report_logging, "parent_run", lambda *_arguments: None)
    for module in (variant_reports, registered):
        monkeypatch.setattr(module, "Tracker", lambda _settings: made.tracking)
    return made


@pytest.fixture
def finished(deployed: Deployed) -> Deployed:
    """The graph after one run."""
    assert deployed.run() == KEYS
    assert sorted(deployed.calls) == ["ellipse"] * 4 + ["student"] * 4 + ["teacher"] * 4
    return deployed


def test_a_report_says_where_its_teachers_weights_come_from(finished: Deployed) -> None:
    expected = {**STAND_IN.facts(), "trained_here": "tuning on the training patients"}
    assert read_facts(finished.folder("proposed/evaluation_report"), TEACHER_FACTS) == expected
    (tags,) = finished.tracking.tags
    assert {f"medsam.teacher.{name}": value for name, value in expected.items()}.items() <= tags.items()
    (line,) = (line for line in summary(finished.workspace).splitlines() if line.startswith("Teacher: "))
    assert "trained on: synthetic cases of this project alone; trained here: tuning on the training patients" in line


def test_a_second_run_makes_and_predicts_nothing(finished: Deployed) -> None:
    assert finished.run() == set()
    assert finished.calls == []


def test_a_new_scoring_version_makes_scores_and_reports_stale_and_predicts_nothing(
    finished: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "SCORING_VERSION", 2)
    assert finished.run() == SCORED
    assert finished.calls == []
    assert finished.run() == set()


def test_a_new_prediction_version_makes_predictions_and_what_follows_stale(
    finished: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "PREDICTION_VERSION", 2)
    assert finished.run() == KEYS
    assert len(finished.calls) == 12


def test_a_new_version_of_one_metric_makes_scores_and_reports_stale(
    finished: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = metric_table.METRICS
    newer = Metric(first.name, first.function, first.better, version=2)
    monkeypatch.setattr(metric_table, "METRICS", (newer, *others))
    assert finished.run() == SCORED
    assert finished.calls == []


def test_another_metric_shows_everywhere_and_predicts_nothing(
    finished: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_table, "METRICS", (*metric_table.METRICS, MISSED))
    assert finished.run() == SCORED
    assert finished.calls == []
    scores = read_scores(finished.folder("proposed/scores"))
    assert scores.cases["missed"].notna().all()
    assert scores.labels["missed"].notna().all()
    folder = finished.folder("proposed/evaluation_report")
    assert "missed" in pd.read_csv(folder / "cases.csv")
    assert "missed_low" in pd.read_csv(folder / "summary.csv")
    comparison = read_comparison(folder)
    assert {"MISSED student", "MISSED teacher", "MISSED ellipse"} <= set(comparison.columns)
    assert {"test.missed.student.US", "validation.missed.teacher.mean"} <= set(finished.tracking.metrics[-1])
    assert not any(".missed." in name for name in finished.tracking.metrics[0])
    assert "MISSED on test patients, px, lower is better" in summary(finished.workspace)


def test_the_champion_is_chosen_by_the_metric_that_the_table_names(
    finished: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((score, metric),) = finished.tracking.offers
    assert metric == "dsc"
    assert 0 < score < 1
    monkeypatch.setattr(metric_table, "METRICS", (*metric_table.METRICS, MISSED))
    monkeypatch.setattr(metric_table, "CHOOSING", "missed")
    finished.run()
    score, metric = finished.tracking.offers[-1]
    assert metric == "missed"
    assert score == 0.0, "the filled box misses nothing; less is better"


@pytest.fixture
def earlier(finished: Deployed) -> Deployed:
    """State as it was while rows lay beside masks: no scores, and reports of the same fingerprint."""
    for masks, scores in (("proposed/predictions", "proposed/scores"), ("baseline_predictions", "baseline_scores")):
        write_scores(finished.folder(masks), read_scores(finished.folder(scores)))
    shutil.rmtree(finished.workspace.settings.state / "artefacts" / "scores")
    return finished


def test_rows_beside_earlier_predictions_are_taken_over(earlier: Deployed) -> None:
    before = earlier.folder("proposed/evaluation_report")
    assert earlier.run() == set(), "nothing is predicted, scored or reported again"
    assert earlier.calls == []
    assert earlier.folder("proposed/evaluation_report") == before
    assert len(read_scores(earlier.folder("proposed/scores")).cases) == 4
    assert earlier.run() == set()


def test_rows_beside_earlier_predictions_are_not_taken_for_those_of_a_new_version(
    earlier: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = earlier.folder("proposed/predictions")
    kept = read_scores(masks)
    write_scores(masks, ScoreTable(kept.cases.assign(dsc=-1.0), kept.labels))
    monkeypatch.setattr(versions, "SCORING_VERSION", 2)
    assert earlier.run() == SCORED
    assert (read_scores(earlier.folder("proposed/scores")).cases["dsc"] > 0).all()


def test_what_first_versions_are_made_from_keeps_its_fingerprint() -> None:
    first = {"splits": {"validation": "v", "test": "t"}, "version": 1}
    assert versions.predicted_from(RELEASE, InferenceSettings(volume_prompts="propagated")) == first
    for rules in (InferenceSettings(), InferenceSettings(volume_prompts="propagated", overlap="logit")):
        assert versions.predicted_from(RELEASE, rules) == {**first, "rules": rules.model_dump()}
    assert versions.scored_from() == {"version": 1}


def test_predictions_of_another_release_are_not_scored(finished: Deployed) -> None:
    from pipelines.evaluation.scores import make_scores

    other = replace(RELEASE, info={"fingerprints": {"validation": "v", "test": "moved"}})
    masks = finished.workspace.artefacts.get(finished.value("proposed/predictions"))
    with pytest.raises(FingerprintMismatchError, match=r"splits\.test: expected 'moved', found 't'"):
        make_scores(finished.workspace, other, masks, lambda _line: None)


@pytest.fixture
def registered_report(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> Callable[[], TaskResult[ArtefactRef]]:
    """Reports the registered model, whose file and download are made up."""
    from medsam_core.models import checkpoints
    from pipelines.tracking import tracker as tracking

    monkeypatch.setattr(checkpoints, "load_model", lambda _file: None)
    monkeypatch.setattr(tracking, "download_model", lambda *_arguments: Path("model.safetensors"))

    def report() -> TaskResult[ArtefactRef]:
        deployed.calls.clear()
        return report_registered(deployed.workspace, RELEASE, lambda _line: None)

    return report


def test_the_registered_models_report_follows_the_same_versions(
    deployed: Deployed, registered_report: Callable[[], TaskResult[ArtefactRef]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert registered_report().made == 1
    assert len(deployed.calls) == 4
    assert registered_report().made == 0
    monkeypatch.setattr(versions, "SCORING_VERSION", 2)
    assert registered_report().made == 1
    assert deployed.calls == []
    monkeypatch.setattr(versions, "PREDICTION_VERSION", 2)
    assert registered_report().made == 1
    assert len(deployed.calls) == 4


def test_masks_that_an_earlier_registered_report_kept_are_not_predicted_again(
    deployed: Deployed, registered_report: Callable[[], TaskResult[ArtefactRef]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = registered_report()
    artefacts = deployed.workspace.settings.state / "artefacts"
    (masks,) = (artefacts / "registered_predictions").glob("*/segs")
    shutil.copytree(masks, deployed.workspace.artefacts.get(first.value).path / "segs")
    for kind in ("registered_predictions", "scores"):
        shutil.rmtree(artefacts / kind)
    again = registered_report()
    assert (again.made, again.fingerprint) == (0, first.fingerprint)
    monkeypatch.setattr(versions, "SCORING_VERSION", 2)
    assert registered_report().made == 1
    assert deployed.calls == []
