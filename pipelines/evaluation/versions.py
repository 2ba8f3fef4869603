"""What predictions and scores are made from. What belongs here: the numbers raised by hand, and who depends on which.

Not here: predicting and scoring. `PREDICTION_VERSION` makes predictions stale, and with them all that follows;
`SCORING_VERSION`, or a row of `medsam_core.scores.metric_table`, makes scores and reports stale, and leaves predictions
as they are (`docs/adr/0016-predictions-and-scores.md`).
"""

from pipelines.ingest.releases import split_fingerprint
from storage.base.references import ArtefactRef

SPLITS = ("validation", "test")
"""Validation chooses, test is reported; training cases are not predicted."""

PREDICTION_VERSION = 1
"""Raised by hand whenever the same model gives other masks of the same cases."""

SCORING_VERSION = 1
"""Raised by hand whenever the same masks give other rows or reports, beyond what a metric's own version says."""

_FIRST_METRICS = {"dsc": 1, "nsd": 1, "dsc_official": 1, "nsd_official": 1}
"""Left out of fingerprints, which named no metrics while there were these alone: reports of that time stay valid."""

_FIRST = {"version": 1}
"""What scores were made from beside predictions, while there was one version and these metrics."""


def predicted_from(release: ArtefactRef) -> dict[str, object]:
    """Return what predictions depend on besides the predictor."""
    splits = {split: split_fingerprint(release, split) for split in SPLITS}
    return {"splits": splits, "version": PREDICTION_VERSION}


def scored_from() -> dict[str, object]:
    """Return what scores depend on besides predictions and ground truth."""
    from medsam_core.scores import metric_table

    metrics = metric_table.versions()
    return {"version": SCORING_VERSION, **({} if metrics == _FIRST_METRICS else {"metrics": metrics})}


def scored_as_at_first() -> bool:
    """Return whether cases are scored as they were before predictions and scores were kept apart."""
    return scored_from() == _FIRST
