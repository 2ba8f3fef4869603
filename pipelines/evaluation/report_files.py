"""The tables of a report as CSV files, and what its model comes from. Only this module writes and reads them.

What belongs here: the files of a report. Not here: the layout of a table (`reports`), the rows of scores
(`score_files`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from storage.base.atomic import read_json, write_json

TEACHER = "teacher"
"""Name of the facts of the teacher that a variant learnt from."""
MODEL = "model"
"""Name of the facts of a model that was given to be scored."""


@dataclass(frozen=True, eq=False)
class ReportTables:
    """The tables of a report.

    Attributes:
        cases: One row per predictor and case.
        summary: Means, intervals and counts by split, predictor and modality.
        differences: Paired differences from the ellipse; None if the ellipse is not among the predictors.
        comparison: The standard metrics of each predictor, one row per modality and one for their mean.
    """

    cases: pd.DataFrame
    summary: pd.DataFrame
    differences: pd.DataFrame | None
    comparison: pd.DataFrame


def write_tables(folder: Path, tables: ReportTables) -> None:
    """Write `cases.csv`, `summary.csv`, `comparison.csv` and, if there are differences, `differences.csv`."""
    tables.cases.to_csv(folder / "cases.csv", index=False)
    tables.summary.to_csv(folder / "summary.csv", index=False)
    if tables.differences is not None:
        tables.differences.to_csv(folder / "differences.csv", index=False)
    tables.comparison.to_csv(folder / "comparison.csv", index=False)


def write_not_scored(folder: Path, files: pd.DataFrame) -> None:
    """Write `not_scored.csv`: the files that a folder's report leaves out, with reasons."""
    files.to_csv(folder / "not_scored.csv", index=False)


def read_comparison(folder: Path) -> pd.DataFrame:
    """Read a report's comparison."""
    return pd.read_csv(folder / "comparison.csv")


def read_summary(folder: Path) -> pd.DataFrame:
    """Read a report's means, intervals and counts."""
    return pd.read_csv(folder / "summary.csv")


def write_facts(folder: Path, name: str, facts: Mapping[str, str]) -> None:
    """Write where weights come from to `<name>.json`; nothing if that is not known."""
    if facts:
        write_json(folder / f"{name}.json", dict(facts))


def read_facts(folder: Path, name: str) -> dict[str, str]:
    """Read where weights come from; empty in a report that does not say, such as one of an earlier version."""
    path = folder / f"{name}.json"
    return {str(key): str(value) for key, value in read_json(path).items()} if path.is_file() else {}
