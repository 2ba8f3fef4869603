"""Predicting and scoring cases, whether they come from a release or from a folder.

What belongs here: predicting a case and computing its rows; `medsam evaluate` and the assets both use it, so that their
scores agree exactly. Not here: reading cases, files of predictions (`cases`), files of rows (`score_files`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from medsam_core.imaging.prompts import tight_boxes
from medsam_core.scores.case_scores import Row
from medsam_core.scores.scoring import score_case
from pipelines.evaluation.cases import EvaluationCase, Predict, load_segs, save_segs, segs_file
from pipelines.evaluation.score_files import ScoreTable, score_table, write_scores

Log = Callable[[str], None]
Guard = Callable[[str], AbstractContextManager[None]]


def _unguarded(_case_id: str) -> AbstractContextManager[None]:
    return nullcontext()


_SAY_EVERY = 20
"""Cases between two lines of progress."""


def predict_cases(cases: Iterable[EvaluationCase], predictors: Mapping[str, Predict], folder: Path, log: Log) -> int:
    """Predict cases with several predictors; predictions of an interrupted run are kept.

    Args:
        cases: The cases to predict.
        predictors: Name -> predictor.
        folder: Receives `segs/<predictor>/<case>.npz`.
        log: Receives progress.

    Returns:
        The number of cases.
    """
    number = 0
    for number, case in enumerate(cases, start=1):
        _predict(case, predictors, folder)
        _say(log, "predicted", number, predictors)
    return number


def score_cases(cases: Iterable[EvaluationCase], predictors: Sequence[str], folder: Path, log: Log) -> ScoreTable:
    """Score the predictions of cases.

    Args:
        cases: The predicted cases.
        predictors: Names of the predictors, in the order of the rows of a case.
        folder: Holds `segs/<predictor>/<case>.npz`.
        log: Receives progress.

    Raises:
        IntegrityError: If a prediction is missing.
    """
    case_rows: list[Row] = []
    label_rows: list[Row] = []
    for number, case in enumerate(cases, start=1):
        _score(case, predictors, folder, case_rows, label_rows)
        _say(log, "scored", number, predictors)
    return score_table(case_rows, label_rows)


def predict_and_score(
    cases: Iterable[EvaluationCase],
    predictors: Mapping[str, Predict],
    folder: Path,
    log: Log,
    *,
    guard: Guard = _unguarded,
) -> ScoreTable:
    """Predict and score cases, and read each case only once. Existing predictions are kept; scores are computed again.

    Args:
        cases: The cases to predict.
        predictors: Name -> predictor.
        folder: Receives predictions and rows.
        log: Receives progress.
        guard: Returns a context for the id of each case; if it suppresses an error, only this case is left out.

    Returns:
        The rows.
    """
    case_rows: list[Row] = []
    label_rows: list[Row] = []
    for number, case in enumerate(cases, start=1):
        with guard(case.identity.case_id):
            _predict(case, predictors, folder)
            # All rows of a case or none, so that predictors are compared on the same cases.
            of_case: list[Row] = []
            of_labels: list[Row] = []
            _score(case, list(predictors), folder, of_case, of_labels)
            case_rows += of_case
            label_rows += of_labels
        _say(log, "predicted", number, predictors)
    scores = score_table(case_rows, label_rows)
    write_scores(folder, scores)
    return scores


def _predict(case: EvaluationCase, predictors: Mapping[str, Predict], folder: Path) -> None:
    for name, predict in predictors.items():
        file = segs_file(folder, name, case.identity.case_id)
        if not file.is_file():
            _, boxes = tight_boxes(case.gts)
            save_segs(file, predict(case.imgs, boxes, case.is_3d))


def _score(
    case: EvaluationCase, predictors: Sequence[str], folder: Path, case_rows: list[Row], label_rows: list[Row]
) -> None:
    labels, _ = tight_boxes(case.gts)
    for name in predictors:
        segs = load_segs(segs_file(folder, name, case.identity.case_id))
        score = score_case(case.identity, case.gts, segs, labels.tolist(), case.spacing_zyx, is_3d=case.is_3d)
        mark: Row = {"predictor": name, "split": case.split}
        case_rows.append({**mark, **score.case_row()})
        label_rows += [{**mark, **row} for row in score.label_rows()]


def _say(log: Log, verb: str, number: int, predictors: Iterable[str]) -> None:
    if number % _SAY_EVERY == 0:
        log(f"{verb} {number} cases with {', '.join(predictors)}")
