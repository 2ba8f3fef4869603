"""The scores of one case, and the rows of tables that they become. What belongs here: names of columns, single rows.

Not here: how scores are computed (`scoring`), or what is made of many rows (`reporting`). Columns of metrics follow the
rows of `metric_table`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from medsam_core.scores import metric_table

Row = dict[str, object]


@dataclass(frozen=True)
class CaseIdentity:
    """What a case is called in reports.

    Attributes:
        case_id: Unique over the release.
        modality: Canonical modality name.
        dataset: Data set it came from.
        group: The patient it belongs to.
    """

    case_id: str
    modality: str
    dataset: str = ""
    group: str = ""


@dataclass(frozen=True)
class LabelScore:
    """One label's scores.

    Attributes:
        label: Id in the ground truth.
        gt_px: Its voxels in the ground truth.
        pred_px: Its voxels in the prediction.
        values: By column of `metric_table.label_functions`; NaN where the label is in neither mask, or a metric cannot
            be measured.
    """

    label: int
    gt_px: int
    pred_px: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class CaseScore:
    """One case's scores in both modes; see `scoring`.

    Attributes:
        identity: Which case.
        is_3d: Whether it is a volume.
        labels: Scores of every label that was prompted or occurs, ascending by id.
        values: By name of the metric.
    """

    identity: CaseIdentity
    is_3d: bool
    labels: tuple[LabelScore, ...]
    values: Mapping[str, float]

    def case_row(self) -> Row:
        """Return the case as a row of the case table: `case_columns` but for the predictor."""
        nan_labels = {
            nan_column(metric): sum(
                bool(np.isnan(label.values[metric_table.label_column(metric)])) for label in self.labels
            )
            for metric in metric_table.standard()
        }
        counts = {"is_3d": self.is_3d, "n_labels": len(self.labels), **nan_labels}
        return {**asdict(self.identity), **counts, **self.values}

    def label_rows(self) -> list[Row]:
        """Return the labels as rows of the label table: `label_columns` but for the predictor."""
        marks = {**asdict(self.identity), "is_3d": self.is_3d}
        return [
            {**marks, "label": label.label, "gt_px": label.gt_px, "pred_px": label.pred_px, **label.values}
            for label in self.labels
        ]


_IDENTITY = ("predictor", "case_id", "modality", "dataset", "group", "is_3d")


def nan_column(metric: metric_table.Metric) -> str:
    """Return the column that counts a case's labels without a value of a metric."""
    return f"n_nan_{metric.name}"


def count_columns() -> tuple[str, ...]:
    """Return the columns that count labels: all of them, and those without a value of each standard metric."""
    return ("n_labels", *(nan_column(metric) for metric in metric_table.standard()))


def case_columns() -> tuple[str, ...]:
    """Return the columns of a case table."""
    return (*_IDENTITY, *count_columns(), *metric_table.names())


def label_columns() -> tuple[str, ...]:
    """Return the columns of a label table."""
    return (*_IDENTITY, "label", "gt_px", "pred_px", *metric_table.label_functions())
