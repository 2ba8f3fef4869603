"""Scores of predictions: rows of cases and labels, computed from stored masks.

What belongs here: the artefact of scores and its inputs. Not here: scoring a case (`scoring`), reports of the rows
(`variant_reports`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipelines.base.results import TaskResult
from pipelines.base.workspace import Workspace
from pipelines.evaluation.predictions import PICTURES, evaluated_cases
from pipelines.evaluation.reports import choosing_means, in_order
from pipelines.evaluation.versions import SPLITS, scored_as_at_first, scored_from, splits_of
from storage.base.artefacts import Artefact
from storage.base.atomic import read_json
from storage.base.fingerprints import require_same
from storage.base.finished import MADE_FROM
from storage.base.references import ArtefactRef

Log = Callable[[str], None]


@dataclass(frozen=True)
class Scores:
    """Finished scores.

    Attributes:
        artefact: The artefact with the rows.
        predictions: The artefact with the scored masks.
    """

    artefact: Artefact
    predictions: Artefact

    @property
    def rows(self) -> pd.DataFrame:
        """The rows of cases."""
        from pipelines.evaluation.score_files import read_case_rows

        return read_case_rows(self.artefact.path)

    @property
    def pictures(self) -> Path:
        """The picture of predictions over ground truth; the file may be missing."""
        return self.predictions.path / PICTURES


def open_scores(workspace: Workspace, value: ArtefactRef) -> Scores:
    """Return the scores of a reference."""
    artefact = workspace.artefacts.get(value)
    of = artefact.info["predictions"]
    reference = ArtefactRef(of["kind"], of["fingerprint"], {}, reused=True)
    return Scores(artefact, workspace.artefacts.get(reference))


def make_scores(workspace: Workspace, release: ArtefactRef, predictions: Artefact, log: Log) -> Scores:
    """Score stored predictions, unless their scores exist.

    Earlier versions stored the rows beside the masks; these rows are copied if scoring would give the same today.

    Args:
        workspace: The workspace.
        release: The release that was predicted.
        predictions: Masks of its validation and test cases.
        log: Receives progress.

    Raises:
        FingerprintMismatchError: If the predictions are of another release.
    """
    expected = splits_of(release)
    found = read_json(predictions.path / MADE_FROM)["splits"]
    what = f"{predictions.kind} in {predictions.path}"
    require_same(what, {"splits": expected}, {"splits": found}, "materialise the predictions of this release first")
    made_from = {"predictions": predictions.fingerprint, **scored_from()}

    def build(folder: Path) -> dict[str, object]:
        from pipelines.evaluation.cases import predictors_of
        from pipelines.evaluation.score_files import scores_beside_predictions, write_scores
        from pipelines.evaluation.scoring import score_cases

        kept = scores_beside_predictions(predictions.path) if scored_as_at_first() else None
        if kept is None:
            predictors = in_order(predictors_of(predictions.path))
            table = score_cases(evaluated_cases(workspace, release), predictors, predictions.path, log)
        else:
            log(f"rows that lie beside {what} are taken over; nothing is scored again")
            table = kept
        write_scores(folder, table)
        of = {"kind": predictions.kind, "fingerprint": predictions.fingerprint}
        return {"predictions": of, "taken_over": kept is not None, **choosing_means(table.cases)}

    return Scores(workspace.artefacts.make("scores", made_from, build), predictions)


def score_predictions(
    workspace: Workspace, release: ArtefactRef, predictions: ArtefactRef, log: Log
) -> TaskResult[ArtefactRef]:
    """Score the predictions of an asset."""
    from medsam_core.scores.metric_table import CHOOSING, choosing
    from pipelines.evaluation.score_files import cases_file

    made = make_scores(workspace, release, workspace.artefacts.get(predictions), log).artefact
    notes: dict[str, object] = {
        f"{split} {choosing().title}, mean of modalities, {name}": value
        for split in SPLITS
        for name, value in made.info[f"{split}_{CHOOSING}"].items()
    }
    notes["rows"] = cases_file(made.path)
    parts = newly_made(made)
    return TaskResult(made.reference(), made.fingerprint, parts, 1 - parts, notes)


def newly_made(scores: Artefact) -> int:
    """Return the number of parts of scores that this run made; 0 if the scores existed or were copied."""
    return int(not scores.reused and not scores.info["taken_over"])


def better_than_ellipse(scores: ArtefactRef) -> tuple[bool, dict[str, float]]:
    """Return whether the teacher's mean over test cases is better than the ellipse's, and the means by predictor."""
    from medsam_core.scores.metric_table import CHOOSING, choosing

    means: dict[str, float] = scores.info[f"test_{CHOOSING}"]
    return choosing().gain(means["teacher"]) > choosing().gain(means["ellipse"]), means
