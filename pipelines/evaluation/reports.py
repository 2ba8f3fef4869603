"""A report's tables as files and metrics. What belongs here: laying out case rows. Not here: who was predicted."""

from pathlib import Path

import pandas as pd

ORDER = ("student", "teacher", "ellipse", "filled_box", "untrained_student", "student_no_image")
"""Columns of the printed table, as far as a report has them."""


def write_report(rows: pd.DataFrame, folder: Path, headline: tuple[str, ...] = ("test",)) -> pd.DataFrame:
    """Write a report's tables as CSV.

    Args:
        rows: Case rows with `predictor` and `split`.
        folder: Receives `cases.csv` (every row), `summary.csv` (means, intervals and counts by split, predictor and
            modality), `differences.csv` (paired against the ellipse, where it is there) and `comparison.csv`.
        headline: Splits whose cases the comparison is made of.

    Returns:
        The comparison: a row per modality and their mean, the standard metrics of each predictor.
    """
    from medsam_core.comparisons import comparison_table
    from medsam_core.reporting import modality_table

    rows.to_csv(folder / "cases.csv", index=False)
    summaries = [modality_table(part).assign(split=split) for split, part in rows.groupby("split")]
    pd.concat(summaries, ignore_index=True).to_csv(folder / "summary.csv", index=False)
    counted = rows[rows["split"].isin(headline)]
    if "ellipse" in set(counted["predictor"]):
        comparison_table(counted, "ellipse").to_csv(folder / "differences.csv", index=False)
    comparison = compare(counted)
    comparison.to_csv(folder / "comparison.csv", index=False)
    return comparison


def compare(rows: pd.DataFrame) -> pd.DataFrame:
    """Lay out the standard metrics of predictors side by side: a row per modality, their mean last."""
    from medsam_core import metric_table
    from medsam_core.reporting import modality_table, side_by_side

    summary = modality_table(rows)
    names = list(dict.fromkeys([*ORDER, *sorted(rows["predictor"].unique())]))
    columns = {"cases": side_by_side(summary, "n_cases").iloc[:, 0].astype(int)}
    for metric in metric_table.standard():
        wide = side_by_side(summary, metric.name)
        columns |= {f"{metric.title} {name}": wide[name] for name in names if name in wide}
    return pd.DataFrame(columns).rename_axis("modality").reset_index()


def report_metrics(folder: Path) -> dict[str, float]:
    """Return a report's means as MLflow metrics: `<split>.<metric>.<predictor>.<modality>`, NaN left out."""
    from medsam_core import metric_table
    from medsam_core.reporting import ALL_MODALITIES

    metrics = {}
    for row in pd.read_csv(folder / "summary.csv").to_dict("records"):
        modality = "mean" if row["modality"] == ALL_MODALITIES else row["modality"]
        for metric in metric_table.names():
            if pd.notna(row[metric]):
                metrics[f"{row['split']}.{metric}.{row['predictor']}.{modality}"] = float(row[metric])
    return metrics
