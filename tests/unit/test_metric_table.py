"""A metric is a row of the table: one more row shows in every table; columns of the first four stay as they were."""

import numpy as np
import pandas as pd
import pytest

from medsam_core.scores import metric_table
from medsam_core.scores.case_scores import CaseIdentity, CaseScore, case_columns, label_columns
from medsam_core.scores.comparisons import comparison_table
from medsam_core.scores.metric_table import LabelMasks, Metric
from medsam_core.scores.reporting import ALL_MODALITIES, merge_tables, modality_table
from medsam_core.scores.scoring import score_case
from pipelines.evaluation.score_files import score_table


def missed_pixels(masks: LabelMasks) -> float:
    """A metric of which less is better."""
    return float(np.count_nonzero(masks.gt & ~masks.pred))


MISSED = Metric("missed", missed_pixels, "lower", "px")


@pytest.fixture
def with_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_table, "METRICS", (*metric_table.METRICS, MISSED))


def scored(case_id: str, shift: int) -> CaseScore:
    """Score a square of 8 pixels a side (label 5) that is answered `shift` pixels off, and a label that is nowhere."""
    gt = np.zeros((32, 32), dtype=np.uint8)
    gt[4:12, 4:12] = 5
    segs = np.roll(gt == 5, shift, axis=1).astype(np.uint16)
    return score_case(CaseIdentity(case_id, "US", "set", case_id), gt, segs, [5, 9], None, is_3d=False)


def tables(predictor: str, shift: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    scores = [scored(case_id, shift) for case_id in "abc"]
    mark: dict[str, object] = {"predictor": predictor, "split": "test"}
    table = score_table(
        [{**mark, **one.case_row()} for one in scores], [{**mark, **row} for one in scores for row in one.label_rows()]
    )
    return table.cases, table.labels


def test_columns_of_the_first_four_metrics_are_those_of_kept_tables() -> None:
    identity = ("predictor", "case_id", "modality", "dataset", "group", "is_3d")
    counts = ("n_labels", "n_nan_dsc", "n_nan_nsd")
    assert case_columns() == (*identity, *counts, "dsc", "nsd", "dsc_official", "nsd_official")
    assert label_columns() == (*identity, "label", "gt_px", "pred_px", "dsc", "nsd", "nsd_official")


@pytest.mark.usefixtures("with_missed")
def test_another_row_shows_in_cases_labels_means_and_comparisons() -> None:
    cases, labels = tables("student", 3)
    assert cases["missed"].tolist() == [24.0] * 3
    assert cases["n_nan_missed"].tolist() == [1] * 3
    assert labels["missed"].tolist()[0] == 24.0
    assert labels["missed"].isna().sum() == 3
    means = modality_table(cases).set_index("modality").loc[ALL_MODALITIES]
    assert means[["missed", "missed_low", "missed_high", "missed_nan_cases"]].tolist() == [24.0, 24.0, 24.0, 0]
    assert means["n_nan_missed"] == 3
    both = merge_tables([cases, tables("ellipse", 5)[0]])
    row = comparison_table(both, "ellipse", "missed").set_index("modality").loc["US"]
    assert (row["difference"], row["better"]) == (-16.0, 1.0), "fewer missed pixels are better"


def test_another_row_changes_no_value_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    cases, labels = tables("student", 3)
    monkeypatch.setattr(metric_table, "METRICS", (*metric_table.METRICS, MISSED))
    more_cases, more_labels = tables("student", 3)
    pd.testing.assert_frame_equal(more_cases[cases.columns], cases, check_exact=True)
    pd.testing.assert_frame_equal(more_labels[labels.columns], labels, check_exact=True)


def test_a_function_that_two_rows_share_is_asked_once_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(masks: LabelMasks) -> float:
        asked.append(masks.gt.ndim)
        return missed_pixels(masks)

    rows = (
        Metric("missed", counted, "lower", "px"),
        Metric("missed_official", counted, "lower", "px", mode="official"),
    )
    monkeypatch.setattr(metric_table, "METRICS", rows)
    score = scored("a", 3)
    assert asked == [2]
    assert score.values["missed"] == 24.0
    assert np.isnan(score.values["missed_official"]), "labels 1 to 4 are in neither mask"
    assert label_columns()[-1] == "missed"


def test_gain_turns_a_metric_of_which_less_is_better() -> None:
    assert MISSED.gain(3.0) == -3.0
    assert metric_table.choosing().gain(0.5) == 0.5
    assert metric_table.choosing().name == "dsc"
