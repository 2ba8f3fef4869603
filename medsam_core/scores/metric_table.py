"""The metrics that are reported: a table with a row each, from which columns, tables and names follow.

What belongs here: the rows, and how a row answers for one label. Not here: the formulas of a pair of masks
(`metrics`), which labels of a case are counted (`scoring`), or means over cases (`reporting`).

To add a metric, add its row to `METRICS`. Everything else reads the table when it is called: columns of cases and
labels, means by modality, printed tables, names in MLflow, and what scores are made from, so that kept predictions are
scored again and not predicted again. Where a function gives other values than before, raise the `version` of its rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from medsam_core.scores.metrics import AnyMask, dsc, official_nsd, surface_dice

Spacing = tuple[float, float, float]

_NAN = float("nan")


@dataclass(frozen=True, eq=False)
class LabelMasks:
    """One label's masks, cut to the smallest box around both; never both empty.

    Attributes:
        gt: (H, W) or (D, H, W).
        pred: Of the same shape.
        spacing_zyx: Voxel spacing of a volume in mm, or None where it is not known; not looked at for images.
    """

    gt: AnyMask
    pred: AnyMask
    spacing_zyx: Spacing | None

    @cached_property
    def volume_nsd(self) -> float:
        """NSD of a volume, the same in both modes; NaN without a spacing to measure by."""
        return _NAN if self.spacing_zyx is None else official_nsd(self.gt, self.pred, self.spacing_zyx)


@dataclass(frozen=True)
class Metric:
    """One row.

    Attributes:
        name: Column in tables and part of names in MLflow.
        function: Value of one label, or NaN. It is not called for a label that is in neither mask, whose value is NaN.
        better: Which values are better.
        unit: Of the values; empty for a share.
        mode: How label values become the case's: `scoring` has the rules. Reports print the standard ones.
        zero_unless: Another metric of the same mode. Where a case's value of it is not above
            `scoring.OFFICIAL_DSC_FLOOR`, this metric is 0.
        remark: Added to the title of a printed table.
        version: Raised by hand whenever the function gives other values.
    """

    name: str
    function: Callable[[LabelMasks], float]
    better: Literal["higher", "lower"]
    unit: str = ""
    mode: Literal["standard", "official"] = "standard"
    zero_unless: "Metric | None" = None
    remark: str = ""
    version: int = 1

    @property
    def title(self) -> str:
        """What printed tables call it."""
        return self.name.upper()

    def gain(self, value: float) -> float:
        """Return a value such that more is better."""
        return value if self.better == "higher" else -value


def _dsc(masks: LabelMasks) -> float:
    return dsc(masks.gt, masks.pred)


def _nsd(masks: LabelMasks) -> float:
    """NSD within 2 mm of surfaces (volume) or 2 px of contours (image)."""
    return surface_dice(masks.gt, masks.pred, (1.0, 1.0)) if masks.gt.ndim == 2 else masks.volume_nsd


def _nsd_official(masks: LabelMasks) -> float:
    """NSD as the challenge computes it; for volumes it is that of the standard mode."""
    return official_nsd(masks.gt, masks.pred, None) if masks.gt.ndim == 2 else masks.volume_nsd


_DSC_OFFICIAL = Metric("dsc_official", _dsc, "higher", mode="official")

METRICS: tuple[Metric, ...] = (
    Metric("dsc", _dsc, "higher"),
    Metric("nsd", _nsd, "higher", remark="tolerance 2 px or 2 mm"),
    _DSC_OFFICIAL,
    Metric("nsd_official", _nsd_official, "higher", mode="official", zero_unless=_DSC_OFFICIAL),
)

CHOOSING = "dsc"
"""Models are chosen by the mean of this metric over validation patients; a teacher must beat the ellipse in it."""


def names() -> tuple[str, ...]:
    """Return the names of all metrics, in the order of the table."""
    return tuple(metric.name for metric in METRICS)


def standard() -> tuple[Metric, ...]:
    """Return the metrics of the standard mode: those that reports print and whose NaN labels are counted."""
    return tuple(metric for metric in METRICS if metric.mode == "standard")


def choosing() -> Metric:
    """Return the metric that models are chosen by."""
    (metric,) = (metric for metric in METRICS if metric.name == CHOOSING)
    return metric


def label_functions() -> dict[str, Callable[[LabelMasks], float]]:
    """Return what is computed of every label: its column and the function, each function once."""
    return {label_column(metric): metric.function for metric in METRICS}


def label_column(metric: Metric) -> str:
    """Return the column of a metric's label values: the name of the first metric with its function."""
    return next((other.name for other in METRICS if other.function == metric.function), metric.name)


def versions() -> dict[str, int]:
    """Return the version of every metric by name: what scores depend on besides predictions and ground truth."""
    return {metric.name: metric.version for metric in METRICS}
