"""Tables of evaluation: from case scores to what a report shows.

What belongs here: means, intervals and comparisons over cases, as pandas frames. Not here: scoring itself (`scoring`),
files, pictures, or where a table is logged.

Tables of different predictors or parts of a release are merged by row (`merge_tables`), and every summary is computed
from the merged rows, never from other summaries. A summary does not depend on the order of rows.

Intervals are percentile bootstraps over groups (patients), not cases, as a patient's cases are not independent (Davison
and Hinkley 1997, section 3.8). Draws depend on the seed and the modality alone, so all predictors see the same ones and
their differences are paired.
"""

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsam_core.scoring import CaseScore

METRICS: tuple[str, ...] = ("dsc", "nsd", "dsc_official", "nsd_official")
"""Scores of a case: standard mode, then official mode (see `scoring`)."""

CASE_COLUMNS: tuple[str, ...] = (
    "predictor",
    "case_id",
    "modality",
    "dataset",
    "group",
    "is_3d",
    "n_labels",
    "n_nan_dsc",
    "n_nan_nsd",
    *METRICS,
)
LABEL_COLUMNS: tuple[str, ...] = (
    "predictor",
    "case_id",
    "modality",
    "dataset",
    "group",
    "is_3d",
    "label",
    "gt_px",
    "pred_px",
    "dsc",
    "nsd",
    "nsd_official",
)
ALL_MODALITIES = "mean of modalities"
"""The row that averages the modalities' means, each counting once, as the paper's tables do."""

CONFIDENCE = 0.95
"""Of the intervals."""

Floats = npt.NDArray[np.float64]

_SIDES = ("mean", "reference_mean", "difference")
_COMPARISON_COLUMNS = ["predictor", "modality", "n_pairs", "n_unpaired", *_SIDES, "low", "high", "better"]


def case_table(predictor: str, scores: Iterable[CaseScore]) -> pd.DataFrame:
    """Return one row per case, `CASE_COLUMNS`, sorted by modality and case."""
    rows = [{"predictor": predictor, **score.case_row()} for score in scores]
    return _sorted(pd.DataFrame(rows, columns=list(CASE_COLUMNS)), ["modality", "case_id"])


def label_table(predictor: str, scores: Iterable[CaseScore]) -> pd.DataFrame:
    """Return one row per case and label, `LABEL_COLUMNS`, sorted by modality, case and label."""
    rows = [{"predictor": predictor, **row} for score in scores for row in score.label_rows()]
    return _sorted(pd.DataFrame(rows, columns=list(LABEL_COLUMNS)), ["modality", "case_id", "label"])


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
        cases: `CASE_COLUMNS` of any number of predictors.
        resamples: Bootstrap draws.
        seed: Of the draws.

    Returns:
        One row per predictor and modality and, last of each predictor, `ALL_MODALITIES`. Columns: `n_cases`,
        `n_groups`, `n_labels`, the NaN labels `n_nan_dsc` and `n_nan_nsd`, and per metric the mean, the bounds of its
        95 % interval and the NaN cases: `dsc`, `dsc_low`, `dsc_high`, `dsc_nan_cases`. Fewer than two groups have no
        bounds.
    """
    rows = []
    for predictor, own in _sorted(cases, ["modality", "case_id"]).groupby("predictor", sort=True):
        means = []
        for modality, part in own.groupby("modality", sort=True):
            draws = _draws(part["group"], str(modality), resamples, seed)
            means.append({metric: _drawn_means(part, metric, draws) for metric in METRICS})
            rows.append(_summary_row(str(predictor), str(modality), part, means[-1]))
        average = {metric: np.mean([each[metric] for each in means], axis=0) for metric in METRICS}
        rows.append(_summary_row(str(predictor), ALL_MODALITIES, own, average))
    return pd.DataFrame(rows, columns=_summary_columns())


def comparison_table(
    cases: pd.DataFrame, reference: str, metric: str = "dsc", *, resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Compare predictors with a reference on the cases that both scored, by modality.

    Args:
        cases: `CASE_COLUMNS` of the reference and any number of others.
        reference: The predictor to compare with.
        metric: One of `METRICS`.
        resamples: Bootstrap draws.
        seed: Of the draws.

    Returns:
        One row per other predictor and modality and, last of each predictor, `ALL_MODALITIES`: `n_pairs`, `n_unpaired`
        (cases that are missing or NaN on one side), the two means over the pairs, their `difference` with the bounds
        `low` and `high` of its 95 % interval, and `better`, the share of pairs above the reference.

    Raises:
        ValueError: The reference or the metric is not in the table.
    """
    names = sorted(cases["predictor"].unique())
    if reference not in names or metric not in METRICS:
        raise ValueError(
            f"expected a reference of {names} and a metric of {list(METRICS)}, found {reference!r}, {metric!r}"
        )
    rows = []
    for predictor in (name for name in names if name != reference):
        pairs = _pairs(cases, predictor, reference, metric)
        differences = []
        for modality, part in pairs.groupby("modality", sort=True):
            draws = _draws(part["group"], str(modality), resamples, seed)
            differences.append({side: _drawn_means(part, side, draws) for side in _SIDES})
            rows.append(_comparison_row(predictor, str(modality), part, differences[-1]))
        average = {side: np.mean([each[side] for each in differences], axis=0) for side in _SIDES}
        rows.append(_comparison_row(predictor, ALL_MODALITIES, pairs, average))
    return pd.DataFrame(rows, columns=_COMPARISON_COLUMNS)


def side_by_side(summary: pd.DataFrame, metric: str = "dsc") -> pd.DataFrame:
    """Lay a modality table out as papers do: a row per modality, `ALL_MODALITIES` last, a column per predictor."""
    wide = summary.pivot_table(index="modality", columns="predictor", values=metric, sort=True, dropna=False)
    return wide.loc[sorted(wide.index, key=lambda name: (name == ALL_MODALITIES, name))]


def _sorted(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    return table.sort_values(list(by), kind="stable").reset_index(drop=True)


def _draws(groups: pd.Series, modality: str, resamples: int, seed: int) -> Floats:
    """Return how often each row counts, (1 + resamples, N): once each in the first draw, bootstrapped in the others.

    Below two groups there is nothing to draw from, and the other draws are NaN.
    """
    names, group_of_row = np.unique(groups.to_numpy(dtype=str), return_inverse=True)
    draws = np.full((1 + resamples, len(names)), np.nan)
    draws[0] = 1
    if len(names) > 1:
        rng = np.random.default_rng([seed, zlib.crc32(modality.encode())])
        draws[1:] = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    drawn: Floats = draws[:, group_of_row]
    return drawn


def _drawn_means(part: pd.DataFrame, column: str, draws: Floats) -> Floats:
    """Return a column's mean over the rows that are not NaN in each draw, (1 + resamples,); NaN without any."""
    values = part[column].to_numpy(dtype=np.float64)
    known = ~np.isnan(values)
    counts = draws[:, known].sum(axis=1)
    sums = draws[:, known] @ values[known]
    means: Floats = np.divide(sums, counts, out=np.full(len(draws), np.nan), where=counts > 0)
    return means


def _interval(drawn: Floats) -> tuple[float, float, float]:
    """Return the first draw's value, which is the estimate, and the percentile interval of the others."""
    usable = drawn[1:][~np.isnan(drawn[1:])]
    if not len(usable) or np.isnan(drawn[0]):
        return float(drawn[0]), float("nan"), float("nan")
    low, high = np.quantile(usable, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(drawn[0]), float(low), float(high)


def _summary_columns() -> list[str]:
    of_metrics = [f"{metric}{ending}" for metric in METRICS for ending in ("", "_low", "_high", "_nan_cases")]
    return ["predictor", "modality", "n_cases", "n_groups", "n_labels", "n_nan_dsc", "n_nan_nsd", *of_metrics]


def _summary_row(predictor: str, modality: str, part: pd.DataFrame, means: dict[str, Floats]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "predictor": predictor,
        "modality": modality,
        "n_cases": len(part),
        "n_groups": part["group"].nunique(),
        **{name: int(part[name].sum()) for name in ("n_labels", "n_nan_dsc", "n_nan_nsd")},
    }
    for metric, drawn in means.items():
        row[metric], row[f"{metric}_low"], row[f"{metric}_high"] = _interval(drawn)
        row[f"{metric}_nan_cases"] = int(part[metric].isna().sum())
    return row


def _pairs(cases: pd.DataFrame, predictor: str, reference: str, metric: str) -> pd.DataFrame:
    """Return the cases of either predictor with both scores and their difference; NaN where one side lacks it."""
    key = ["modality", "case_id"]
    columns = [*key, "group", metric]
    own = cases.loc[cases["predictor"] == predictor, columns].rename(columns={metric: "mean"})
    other = cases.loc[cases["predictor"] == reference, columns].rename(columns={metric: "reference_mean"})
    pairs = own.merge(other, on=[*key, "group"], how="outer", sort=True)
    pairs["difference"] = pairs["mean"] - pairs["reference_mean"]
    pairs.loc[pairs["difference"].isna(), ["mean", "reference_mean"]] = np.nan
    return pairs


def _comparison_row(predictor: str, modality: str, pairs: pd.DataFrame, means: dict[str, Floats]) -> dict[str, Any]:
    paired = pairs["difference"].dropna()
    difference, low, high = _interval(means["difference"])
    return {
        "predictor": predictor,
        "modality": modality,
        "n_pairs": len(paired),
        "n_unpaired": len(pairs) - len(paired),
        "mean": float(means["mean"][0]),
        "reference_mean": float(means["reference_mean"][0]),
        "difference": difference,
        "low": low,
        "high": high,
        "better": float((paired > 0).mean()),
    }
