"""Inputs of predictions and scores. What belongs here: version numbers that are raised by hand, and their dependants.

Not here: predicting and scoring. `PREDICTION_VERSION` makes predictions stale, and with them all that follows;
`SCORING_VERSION`, or a row of `medsam_core.scores.metric_table`, makes scores and reports stale, and leaves predictions
as they are (`docs/adr/0016-predictions-and-scores.md`).
"""

from pipelines.base.profile import InferenceSettings
from pipelines.ingest.releases import split_fingerprint
from storage.base.references import ArtefactRef

SPLITS = ("validation", "test")
"""The validation split chooses models, the test split is reported; training cases are not predicted."""

PREDICTION_VERSION = 1
"""Raised by hand whenever the same model gives other masks for the same cases."""

SCORING_VERSION = 1
"""Raised by hand whenever the same masks give other rows or reports; a metric that changes has its own version."""

FIRST_RULES = InferenceSettings(volume_prompts="propagated", overlap="last")
"""The rules of earlier versions, which named none."""

_FIRST_METRICS = {"dsc": 1, "nsd": 1, "dsc_official": 1, "nsd_official": 1}
"""Left out of fingerprints: earlier versions had only these metrics and named none, and their reports stay valid."""

_FIRST = {"version": 1}
"""Inputs of scores, besides predictions, in the earlier versions that had only these metrics."""


def rules_of(inference: InferenceSettings) -> dict[str, object]:
    """Return the rules of prediction as inputs; none where they are those of earlier versions, which named none."""
    return {} if inference == FIRST_RULES else {"rules": inference.model_dump(mode="json")}


def splits_of(release: ArtefactRef) -> dict[str, str]:
    """Return the fingerprints of the splits that are predicted."""
    return {split: split_fingerprint(release, split) for split in SPLITS}


def predicted_from(release: ArtefactRef, inference: InferenceSettings) -> dict[str, object]:
    """Return the inputs of predictions other than the predictor."""
    return {"splits": splits_of(release), "version": PREDICTION_VERSION, **rules_of(inference)}


def scored_from() -> dict[str, object]:
    """Return the inputs of scores other than predictions and ground truth."""
    from medsam_core.scores import metric_table

    metrics = metric_table.versions()
    return {"version": SCORING_VERSION, **({} if metrics == _FIRST_METRICS else {"metrics": metrics})}


def scored_as_at_first() -> bool:
    """Return whether scoring is unchanged since the earlier versions, which stored predictions and scores together."""
    return scored_from() == _FIRST
