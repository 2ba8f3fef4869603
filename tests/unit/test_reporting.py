"""Tables: means by hand, NaN counted, intervals reproducible and by patient, comparisons paired, merging exact."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from medsam_core.scores import metric_table
from medsam_core.scores.case_scores import CaseIdentity, CaseScore, case_columns, label_columns
from medsam_core.scores.comparisons import comparison_table
from medsam_core.scores.reporting import (
    ALL_MODALITIES,
    merge_tables,
    modality_table,
    side_by_side,
)
from medsam_core.scores.scoring import score_case
from pipelines.evaluation.score_files import ScoreTable, score_table

NAN = float("nan")


def cases(predictor: str, values: dict[str, list[float]], per_patient: int = 1, **changed: Any) -> pd.DataFrame:
    """Return a case table with these DSCs by modality, `per_patient` cases a patient."""
    rows = []
    for modality, scores in values.items():
        for index, score in enumerate(scores):
            row = {
                "predictor": predictor,
                "case_id": f"{modality}/{index:03}",
                "modality": modality,
                "dataset": modality,
                "group": f"{modality}:{index // per_patient}",
                "is_3d": False,
                "n_labels": 2,
                "n_nan_dsc": int(np.isnan(score)),
                "n_nan_nsd": 0,
                "dsc": score,
                "nsd": score / 2,
                "dsc_official": score,
                "nsd_official": score,
            }
            rows.append({**row, **changed})
    return pd.DataFrame(rows, columns=list(case_columns()))


def row_of(table: pd.DataFrame, modality: str, predictor: str | None = None) -> pd.Series:
    found = table[table["modality"] == modality]
    if predictor is not None:
        found = found[found["predictor"] == predictor]
    (row,) = (row for _, row in found.iterrows())
    return row


def score(case_id: str, modality: str) -> CaseScore:
    gt = np.zeros((8, 8), dtype=np.uint8)
    gt[:4], gt[6:] = 5, 9
    segs = (gt == 5).astype(np.uint16)
    return score_case(CaseIdentity(case_id, modality, "set", "p"), gt, segs, [5, 9], None, is_3d=False)


def tables(scores: list[CaseScore]) -> ScoreTable:
    mark: dict[str, object] = {"predictor": "student", "split": "test"}
    return score_table(
        [{**mark, **one.case_row()} for one in scores], [{**mark, **row} for one in scores for row in one.label_rows()]
    )


def test_case_and_label_tables_from_scores() -> None:
    found = tables([score("b", "US"), score("a", "US"), score("c", "CT")])
    table, labels = merge_tables([found.cases]), merge_tables([found.labels])
    assert tuple(table.columns) == ("predictor", "split", *case_columns()[1:])
    assert table["case_id"].tolist() == ["c", "a", "b"]
    assert table["dsc"].tolist() == [0.5] * 3
    assert tuple(labels.columns) == ("predictor", "split", *label_columns()[1:])
    assert labels[["case_id", "label", "dsc"]].to_numpy().tolist()[:2] == [["c", 5, 1.0], ["c", 9, 0.0]]


def test_no_scores_make_an_empty_table_that_still_merges_and_summarises() -> None:
    empty = tables([]).cases
    assert tuple(empty.columns) == ("predictor", "split", *case_columns()[1:])
    assert modality_table(empty).empty
    assert len(merge_tables([empty, tables([score("a", "CT")]).cases])) == 1


def test_means_count_modalities_once_and_leave_nan_out() -> None:
    table = modality_table(cases("student", {"CT": [0.2, 0.4, NAN], "US": [1.0]}))
    assert table["modality"].tolist() == ["CT", "US", ALL_MODALITIES]
    ct = row_of(table, "CT")
    assert ct["dsc"] == pytest.approx(0.3)
    assert ct["nsd"] == pytest.approx(0.15)
    assert (ct["n_cases"], ct["n_labels"], ct["n_nan_dsc"], ct["dsc_nan_cases"]) == (3, 6, 1, 1)
    assert row_of(table, ALL_MODALITIES)["dsc"] == pytest.approx(0.65)
    assert row_of(table, ALL_MODALITIES)["n_cases"] == 4


def test_a_modality_without_a_score_is_not_passed_over_in_silence() -> None:
    table = modality_table(cases("student", {"CT": [0.5, 0.7], "US": [NAN, NAN]}))
    assert np.isnan(row_of(table, "US")["dsc"])
    assert np.isnan(row_of(table, ALL_MODALITIES)["dsc"])
    assert row_of(table, ALL_MODALITIES)["dsc_nan_cases"] == 2


def test_intervals_hold_the_mean_and_have_the_width_of_theory() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.1, 400)
    row = row_of(modality_table(cases("student", {"CT": values.tolist()}), resamples=4000), "CT")
    half = 1.96 * values.std() / 20
    assert row["dsc_low"] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert row["dsc_high"] == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_cases_of_a_patient_are_drawn_together() -> None:
    repeated = np.repeat([0.2, 0.9, 0.5, 0.6], 50).tolist()
    by_patient = row_of(modality_table(cases("s", {"CT": repeated}, per_patient=50)), "CT")
    by_case = row_of(modality_table(cases("s", {"CT": repeated})), "CT")
    assert by_patient["n_groups"] == 4
    assert by_patient["dsc_high"] - by_patient["dsc_low"] > 4 * (by_case["dsc_high"] - by_case["dsc_low"])


def test_one_patient_has_a_mean_and_no_interval() -> None:
    row = row_of(modality_table(cases("s", {"CT": [0.2, 0.4]}, per_patient=2)), "CT")
    assert row["dsc"] == pytest.approx(0.3)
    assert np.isnan(row["dsc_low"])
    assert np.isnan(row["dsc_high"])


def test_a_summary_depends_on_the_seed_and_not_on_order_or_company() -> None:
    rng = np.random.default_rng(1)
    student = cases("student", {"CT": rng.random(30).tolist(), "US": rng.random(20).tolist()})
    teacher = cases("teacher", {"CT": rng.random(30).tolist(), "US": rng.random(20).tolist()})
    alone = pd.concat([modality_table(student), modality_table(teacher)], ignore_index=True)
    together = modality_table(merge_tables([teacher, student]).sample(frac=1, random_state=3))
    pd.testing.assert_frame_equal(alone, together, check_exact=True)
    assert (modality_table(student, seed=1)["dsc_low"] != modality_table(student)["dsc_low"]).all()


def test_merging_parts_gives_the_whole_and_a_part_twice_is_refused() -> None:
    whole = cases("student", {"CT": [0.1, 0.2, 0.3], "US": [0.4]})
    pd.testing.assert_frame_equal(merge_tables([whole.iloc[2:], whole.iloc[:2]]), whole)
    with pytest.raises(ValueError, match="once, found 1 again"):
        merge_tables([whole, whole.iloc[:1]])
    with pytest.raises(ValueError, match="with the columns"):
        merge_tables([whole, tables([]).labels])
    with pytest.raises(ValueError, match="at least one table"):
        merge_tables([])


def test_comparisons_are_paired() -> None:
    rng = np.random.default_rng(2)
    base = rng.random(60) * 0.5
    table = merge_tables(
        [cases("ellipse", {"CT": base.tolist()}), cases("student", {"CT": (base + 0.1).tolist()})],
    )
    row = row_of(comparison_table(table, "ellipse"), "CT")
    assert (row["difference"], row["low"], row["high"]) == pytest.approx((0.1, 0.1, 0.1))
    assert row["mean"] - row["reference_mean"] == pytest.approx(0.1)
    assert (row["n_pairs"], row["n_unpaired"], row["better"]) == (60, 0, 1)


def test_a_case_that_one_side_lacks_is_left_out_of_both_means_and_counted() -> None:
    reference = cases("ellipse", {"CT": [0.5, 0.5, NAN, 0.1], "US": [0.3, 0.3]})
    student = cases("student", {"CT": [0.7, NAN, 0.9], "US": [0.5, 0.1]})
    table = comparison_table(merge_tables([reference, student]), "ellipse")
    ct = row_of(table, "CT")
    assert (ct["n_pairs"], ct["n_unpaired"]) == (1, 3)
    assert (ct["mean"], ct["reference_mean"]) == pytest.approx((0.7, 0.5))
    total = row_of(table, ALL_MODALITIES)
    assert total["difference"] == pytest.approx((0.2 + 0.0) / 2)
    assert (total["n_pairs"], total["better"]) == (3, pytest.approx(2 / 3))


def test_a_comparison_needs_its_reference_and_a_metric() -> None:
    table = cases("student", {"CT": [0.5]})
    with pytest.raises(ValueError, match="expected a reference"):
        comparison_table(table, "teacher")
    with pytest.raises(ValueError, match="expected a reference"):
        comparison_table(table, "student", "auc")
    assert comparison_table(table, "student").empty


def test_predictors_side_by_side() -> None:
    table = merge_tables(
        [cases("student", {"CT": [0.5], "US": [0.7]}), cases("teacher", {"CT": [0.6], "US": [NAN]})],
    )
    wide = side_by_side(modality_table(table))
    assert wide.index.tolist() == ["CT", "US", ALL_MODALITIES]
    assert wide["student"].tolist() == pytest.approx([0.5, 0.7, 0.6])
    assert wide["teacher"].iloc[0] == 0.6
    assert wide["teacher"].isna().tolist() == [False, True, True]


def test_every_metric_has_its_mean_bounds_and_nan_cases() -> None:
    columns = modality_table(cases("student", {"CT": [0.5]})).columns
    for metric in metric_table.names():
        assert {metric, f"{metric}_low", f"{metric}_high", f"{metric}_nan_cases"} <= set(columns)
