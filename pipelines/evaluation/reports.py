"""The tables of a report, and its metrics for MLflow. What belongs here: computing both from the rows of cases.

Not here: the predictors, the files of tables (`report_files`).
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pipelines.evaluation.report_files import ReportTables, write_tables
from pipelines.evaluation.versions import SPLITS

ORDER = ("student", "teacher", "teacher_as_given", "ellipse", "filled_box", "untrained_student", "student_no_image")
"""Order of predictors in tables; other predictors follow in the order of their names."""


def in_order(names: Iterable[str]) -> list[str]:
    """Return the names of predictors in the order of tables."""
    known = set(names)
    return [*(name for name in ORDER if name in known), *sorted(known - set(ORDER))]


def report_tables(rows: pd.DataFrame, headline: tuple[str, ...] = ("test",)) -> ReportTables:
    """Return a report's tables.

    Args:
        rows: Case rows with `predictor` and `split`.
        headline: Splits whose cases enter the comparison.
    """
    from medsam_core.scores.comparisons import comparison_table
    from medsam_core.scores.reporting import modality_table

    summaries = [modality_table(part).assign(split=split) for split, part in rows.groupby("split")]
    counted = rows[rows["split"].isin(headline)]
    differences = comparison_table(counted, "ellipse") if "ellipse" in set(counted["predictor"]) else None
    return ReportTables(rows, pd.concat(summaries, ignore_index=True), differences, compare(counted))


def write_report(rows: pd.DataFrame, folder: Path, headline: tuple[str, ...] = ("test",)) -> pd.DataFrame:
    """Write a report's tables as CSV.

    Args:
        rows: Case rows with `predictor` and `split`.
        folder: Receives the files of `report_files`.
        headline: Splits whose cases enter the comparison.

    Returns:
        The comparison: the standard metrics of each predictor, one row per modality and one for their mean.
    """
    tables = report_tables(rows, headline)
    write_tables(folder, tables)
    return tables.comparison


def compare(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the standard metrics with a column for each predictor: one row per modality, then their mean.

    Without any case it has no row.
    """
    from medsam_core.scores import metric_table
    from medsam_core.scores.reporting import modality_table, side_by_side

    if rows.empty:
        return pd.DataFrame(columns=["modality", "cases"])
    summary = modality_table(rows)
    columns = {"cases": side_by_side(summary, "n_cases").iloc[:, 0].astype(int)}
    for metric in metric_table.standard():
        wide = side_by_side(summary, metric.name)
        columns |= {f"{metric.title} {name}": wide[name] for name in in_order(rows["predictor"]) if name in wide}
    return pd.DataFrame(columns).rename_axis("modality").reset_index()


def report_metrics(summary: pd.DataFrame) -> dict[str, float]:
    """Return a report's means as MLflow metrics: `<split>.<metric>.<predictor>.<modality>`, NaN left out."""
    from medsam_core.scores import metric_table
    from medsam_core.scores.reporting import ALL_MODALITIES

    metrics = {}
    for row in summary.to_dict("records"):
        modality = "mean" if row["modality"] == ALL_MODALITIES else row["modality"]
        for metric in metric_table.names():
            if pd.notna(row[metric]):
                metrics[f"{row['split']}.{metric}.{row['predictor']}.{modality}"] = float(row[metric])
    return metrics


def choosing_means(rows: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the mean over modalities of the metric that chooses models: `<split>_<metric>` -> predictor -> mean."""
    from medsam_core.scores.metric_table import CHOOSING

    by_modality = rows.groupby(["split", "predictor", "modality"])[CHOOSING].mean()
    means = by_modality.groupby(level=["split", "predictor"]).mean()
    names = rows["predictor"].unique()
    return {
        f"{split}_{CHOOSING}": {str(name): float(means[split, name]) for name in names if (split, name) in means.index}
        for split in SPLITS
    }
