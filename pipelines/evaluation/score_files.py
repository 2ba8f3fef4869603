"""Rows of scores on disk: `cases.parquet` and `labels.parquet`. Only this module writes and reads them.

What belongs here: the two tables of a folder. Not here: computing a row (`scoring`), the CSV files of a report
(`report_files`).
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medsam_core.scores.case_scores import Row, case_columns, label_columns
from storage.base.atomic import write_parquet

_CASES, _LABELS = "cases.parquet", "labels.parquet"


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of any number of predictors.

    Attributes:
        cases: A row per predictor and case: `predictor`, `split` and the other `case_columns`.
        labels: A row per predictor, case and label: `predictor`, `split` and the other `label_columns`.
    """

    cases: pd.DataFrame
    labels: pd.DataFrame


def _columns(names: tuple[str, ...]) -> list[str]:
    """Return the columns of a table: the predictor first, then the split, then all others."""
    return [names[0], "split", *names[1:]]


def score_table(cases: list[Row], labels: list[Row]) -> ScoreTable:
    """Return rows as tables, which have all columns even if there are no rows."""
    return ScoreTable(
        pd.DataFrame(cases, columns=_columns(case_columns())), pd.DataFrame(labels, columns=_columns(label_columns()))
    )


def write_scores(folder: Path, scores: ScoreTable) -> None:
    """Publish both tables, each atomically."""
    write_parquet(folder / _CASES, scores.cases)
    write_parquet(folder / _LABELS, scores.labels)


def read_scores(folder: Path) -> ScoreTable:
    """Read both tables."""
    return ScoreTable(pd.read_parquet(folder / _CASES), pd.read_parquet(folder / _LABELS))


def read_case_rows(folder: Path) -> pd.DataFrame:
    """Read only the rows of cases."""
    return pd.read_parquet(folder / _CASES)


def cases_file(folder: Path) -> Path:
    """Return the file with the rows of cases, for the page."""
    return folder / _CASES


def scores_beside_predictions(folder: Path) -> ScoreTable | None:
    """Return the tables in a folder of predictions, where earlier versions wrote them; None if there are none."""
    if not ((folder / _CASES).is_file() and (folder / _LABELS).is_file()):
        return None
    found = read_scores(folder)
    expected = (_columns(case_columns()), _columns(label_columns()))
    return found if (list(found.cases.columns), list(found.labels.columns)) == expected else None
