"""Tables of evaluation: from case scores to what a report shows.

What belongs here: tables of cases, their means and intervals, as pandas frames. Not here: scoring itself (`scoring`),
paired differences (`comparisons`), files, pictures, or where a table is logged.

Tables of different predictors or parts of a release are merged by row (`merge_tables`), and every summary is computed
from the merged rows, never from other summaries. A summary does not depend on the order of rows.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from medsam_core.scores import metric_table
from medsam_core.scores.bootstrap import Floats, draw_patients, drawn_means, interval
from medsam_core.scores.case_scores import Row, count_columns

ALL_MODALITIES = "mean of modalities"
"""The row that averages the modalities' means, each counting once, as the paper's tables do."""


def merge_tables(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of several case tables, or of several label tables, as one.

    Raises:
        ValueError: There is no table, their columns differ, or a predictor has a case (or a case's label) twice.
    """
    if not tables:
        raise ValueError("expected at least one table to merge, found none")
    columns = list(tables[0].columns)
    for table in tables[1:]:
        if list(table.columns) != columns:
            raise ValueError(f"expected tables with the columns {columns}, found {list(table.columns)}")
    merged = pd.concat([table for table in tables if len(table)] or [tables[0]], ignore_index=True)
    key: list[str] = [name for name in ("predictor", "modality", "case_id", "label") if name in columns]
    twice = merged[merged.duplicated(key)]
    if len(twice):
        raise ValueError(
            f"expected every row of {key} once, found {len(twice)} again, the first {twice.iloc[0][key].tolist()}; "
            "merge every part once"
        )
    return _sorted(merged, key)


def modality_table(cases: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Summarise a case table by predictor and modality.

    A case that is NaN in a metric is left out of that metric's mean and counted. A modality without any other case is
    NaN, and so is the mean of modalities with it.

    Args:
        cases: `case_columns` of any number of predictors.
        resamples: Bootstrap draws.
        seed: Of the draws.

    Returns:
        One row per predictor and modality and, last of each predictor, `ALL_MODALITIES`. Columns: `n_cases`,
        `n_groups` (patients), `n_labels`, the labels without a value of each standard metric (`n_nan_dsc`,
        `n_nan_nsd`), and per metric the mean, the bounds of its 95 % interval and the NaN cases: `dsc`, `dsc_low`,
        `dsc_high`, `dsc_nan_cases`. Fewer than two patients have no bounds.
    """
    rows = []
    for predictor, own in _sorted(cases, ["modality", "case_id"]).groupby("predictor", sort=True):
        means = []
        for modality, part in own.groupby("modality", sort=True):
            draws = draw_patients(part["group"], str(modality), resamples, seed)
            means.append({metric: drawn_means(part, metric, draws) for metric in metric_table.names()})
            rows.append(_summary_row(str(predictor), str(modality), part, means[-1]))
        average = {metric: np.mean([each[metric] for each in means], axis=0) for metric in metric_table.names()}
        rows.append(_summary_row(str(predictor), ALL_MODALITIES, own, average))
    return pd.DataFrame(rows, columns=_summary_columns())


def side_by_side(summary: pd.DataFrame, metric: str = "dsc") -> pd.DataFrame:
    """Lay a modality table out as papers do: a row per modality, `ALL_MODALITIES` last, a column per predictor."""
    wide = summary.pivot_table(index="modality", columns="predictor", values=metric, sort=True, dropna=False)
    return wide.loc[sorted(wide.index, key=lambda name: (name == ALL_MODALITIES, name))]


def _sorted(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    return table.sort_values(list(by), kind="stable").reset_index(drop=True)


def _summary_columns() -> list[str]:
    of_metrics = [
        f"{metric}{ending}" for metric in metric_table.names() for ending in ("", "_low", "_high", "_nan_cases")
    ]
    return ["predictor", "modality", "n_cases", "n_groups", *count_columns(), *of_metrics]


def _summary_row(predictor: str, modality: str, part: pd.DataFrame, means: Mapping[str, Floats]) -> Row:
    row: Row = {
        "predictor": predictor,
        "modality": modality,
        "n_cases": len(part),
        "n_groups": part["group"].nunique(),
        **{name: int(part[name].sum()) for name in count_columns()},
    }
    for metric, drawn in means.items():
        row[metric], row[f"{metric}_low"], row[f"{metric}_high"] = interval(drawn)
        row[f"{metric}_nan_cases"] = int(part[metric].isna().sum())
    return row
