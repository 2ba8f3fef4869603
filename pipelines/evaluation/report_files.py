"""A report's tables on disk, as CSV. The only module that writes or reads them.

What belongs here: the files of a report. Not here: how a table is laid out (`reports`), or the rows that it is
made of (`score_files`).
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd


@dataclass(frozen=True, eq=False)
class ReportTables:
    """What a report shows.

    Attributes:
        cases: Every row.
        summary: Means, intervals and counts by split, predictor and modality.
        differences: Paired against the ellipse, or None where it is not among the predictors.
        comparison: A row per modality and their mean, the standard metrics of each predictor.
    """

    cases: pd.DataFrame
    summary: pd.DataFrame
    differences: pd.DataFrame | None
    comparison: pd.DataFrame


def write_tables(folder: Path, tables: ReportTables) -> None:
    """Write `cases.csv`, `summary.csv`, `comparison.csv` and, where there are any, `differences.csv`."""
    tables.cases.to_csv(folder / "cases.csv", index=False)
    tables.summary.to_csv(folder / "summary.csv", index=False)
    if tables.differences is not None:
        tables.differences.to_csv(folder / "differences.csv", index=False)
    tables.comparison.to_csv(folder / "comparison.csv", index=False)


def write_not_scored(folder: Path, files: pd.DataFrame) -> None:
    """Write `not_scored.csv`: the files of a folder that are not in its report, and why (`tally.Tally.table`)."""
    files.to_csv(folder / "not_scored.csv", index=False)


def read_comparison(folder: Path) -> pd.DataFrame:
    """Read a report's comparison."""
    return pd.read_csv(folder / "comparison.csv")


def read_summary(folder: Path) -> pd.DataFrame:
    """Read a report's means, intervals and counts."""
    return pd.read_csv(folder / "summary.csv")
