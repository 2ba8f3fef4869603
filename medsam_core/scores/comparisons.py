"""Predictors held against a reference, case by case. What belongs here: paired differences and their intervals.

Not here: one predictor's own means (`reporting`).
"""

import numpy as np
import pandas as pd

from medsam_core.scores import metric_table
from medsam_core.scores.bootstrap import Floats, draw_patients, drawn_means, interval
from medsam_core.scores.case_scores import Row
from medsam_core.scores.metric_table import Metric
from medsam_core.scores.reporting import ALL_MODALITIES

_SIDES = ("mean", "reference_mean", "difference")
_COMPARISON_COLUMNS = ["predictor", "modality", "n_pairs", "n_unpaired", *_SIDES, "low", "high", "better"]


def comparison_table(
    cases: pd.DataFrame, reference: str, metric: str = "dsc", *, resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Compare predictors with a reference on the cases that both scored, by modality.

    Args:
        cases: `case_columns` of the reference and any number of others.
        reference: The predictor to compare with.
        metric: Name of a row of `metric_table`.
        resamples: Bootstrap draws.
        seed: Of the draws.

    Returns:
        One row per other predictor and modality and, last of each predictor, `ALL_MODALITIES`: `n_pairs`, `n_unpaired`
        (cases that are missing or NaN on one side), the two means over the pairs, their `difference` with the bounds
        `low` and `high` of its 95 % interval, and `better`, the share of pairs in which it
        is better.

    Raises:
        ValueError: The reference or the metric is not in the table.
    """
    metrics = {row.name: row for row in metric_table.METRICS}
    names = sorted(cases["predictor"].unique())
    if reference not in names or metric not in metrics:
        raise ValueError(
            f"expected a reference of {names} and a metric of {list(metrics)}, found {reference!r}, {metric!r}"
        )
    rows = []
    for predictor in (name for name in names if name != reference):
        pairs = _pairs(cases, predictor, reference, metric)
        differences = []
        for modality, part in pairs.groupby("modality", sort=True):
            draws = draw_patients(part["group"], str(modality), resamples, seed)
            differences.append({side: drawn_means(part, side, draws) for side in _SIDES})
            rows.append(_comparison_row(predictor, str(modality), part, differences[-1], metrics[metric]))
        average = {side: np.mean([each[side] for each in differences], axis=0) for side in _SIDES}
        rows.append(_comparison_row(predictor, ALL_MODALITIES, pairs, average, metrics[metric]))
    return pd.DataFrame(rows, columns=_COMPARISON_COLUMNS)


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


def _comparison_row(
    predictor: str, modality: str, pairs: pd.DataFrame, means: dict[str, Floats], metric: Metric
) -> Row:
    paired = pairs["difference"].dropna()
    difference, low, high = interval(means["difference"])
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
        "better": float((metric.gain(1) * paired > 0).mean()),
    }
