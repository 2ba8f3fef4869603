"""The run's ledger and what `medsam summary` prints of it and of the newest report."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from medsam_core.scores import metric_table
from pipelines.base.json_io import JsonIOManager
from pipelines.base.results import INLINE_PICTURE_BYTES, Link, Picture, TaskResult, ledger_file, materialised
from pipelines.base.settings import read_settings
from pipelines.base.values import PartsMade
from pipelines.base.workspace import Workspace
from pipelines.evaluation.reports import write_report
from pipelines.summary import run_ledger, summary
from storage.base.errors import IntegrityError

pytestmark = pytest.mark.filterwarnings("ignore:.*data_version.*:dagster.BetaWarning")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(read_settings({"MEDSAM_HOME": str(tmp_path / "home")}))


def finish(
    workspace: Workspace, run_id: str, name: str, made: int, reused: int, notes: Mapping[str, Any] | None = None
) -> dg.Output[PartsMade]:
    context = cast("dg.OpExecutionContext", SimpleNamespace(run_id=run_id))
    return materialised(
        context, workspace, name, TaskResult(PartsMade(("part",) * made), f"fp-{name}", made, reused, notes or {})
    )


def case_rows() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {
            "predictor": predictor,
            "split": split,
            "case_id": f"{modality}/{split}{number}",
            "modality": modality,
            "dataset": "d",
            "group": f"{modality}{split}{number}",
            "is_3d": False,
            "n_labels": 1,
            "n_nan_dsc": 0,
            "n_nan_nsd": 0,
            **{metric: score + rng.random() / 100 for metric in metric_table.names()},
        }
        for predictor, score in (("student", 0.8), ("ellipse", 0.6))
        for modality in ("CT", "US")
        for split in ("validation", "test")
        for number in range(2)
    ]
    return pd.DataFrame(rows)


def report(workspace: Workspace) -> Path:
    """Leave a report where the asset's value names it."""

    def build(folder: Path) -> dict[str, Any]:
        table = pd.DataFrame(
            {
                "modality": ["CT", "mean of modalities"],
                "cases": [7, 7],
                "DSC student": [0.81234, 0.5],
                "DSC ellipse": [0.7, 0.25],
                "NSD student": [0.91, 0.125],
                "NSD ellipse": [0.6, 0.0625],
            }
        )
        table.to_csv(folder / "comparison.csv", index=False)
        return {}

    made = workspace.artefacts.make("report", {"n": 1}, build)
    context = dg.build_output_context(asset_key=dg.AssetKey(["proposed", "evaluation_report"]), name="result")
    JsonIOManager(folder=str(workspace.settings.state / "values")).handle_output(context, made.reference())
    return made.path


def test_the_ledger_lists_what_each_asset_made_and_reused(workspace: Workspace) -> None:
    finish(workspace, "run1", "raw_manifest", 3, 0)
    finish(workspace, "run1", "slice_store/CT", 0, 5)
    finish(workspace, "run2", "raw_manifest", 1, 2)
    ledger = run_ledger(workspace, "run1")
    assert ledger.to_dict("records") == [
        {"asset": "raw_manifest", "fingerprint": "fp-raw_manifest", "made": 3, "reused": 0},
        {"asset": "slice_store/CT", "fingerprint": "fp-slice_store/CT", "made": 0, "reused": 5},
    ]


def test_the_last_run_is_meant_where_none_is_named(workspace: Workspace) -> None:
    finish(workspace, "zzz", "old", 1, 0)
    finish(workspace, "aaa", "new", 1, 0)
    os.utime(ledger_file(workspace, "zzz"), ns=(0, 0))
    assert run_ledger(workspace)["asset"].tolist() == ["new"]


def test_without_a_run_the_place_is_named_where_one_was_expected(workspace: Workspace) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected the ledger of a run in .*runs, found none"):
        summary(workspace)
    finish(workspace, "run1", "a", 1, 0)
    with pytest.raises(FileNotFoundError):
        summary(workspace, "another")


def test_a_summary_shows_the_report_and_what_was_made_and_reused(workspace: Workspace) -> None:
    finish(workspace, "run1", "raw_manifest", 0, 4)
    finish(workspace, "run1", "proposed/student_distilled", 1, 0)
    finish(workspace, "run1", "slice_store/CT", 2, 6)
    folder = report(workspace)
    lines = summary(workspace).splitlines()
    assert "Made by this run: proposed/student_distilled (1), slice_store/CT (2)" in lines
    assert "Reused: 10 parts" in lines
    assert f"Report: {folder}" in lines
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert ["modality", "cases", "student", "ellipse"] in cells
    assert ["CT", "7", "0.8123", "0.7000"] in cells
    assert ["mean of modalities", "7", "0.1250", "0.0625"] in cells
    titles = [line for line in lines if "on test patients" in line]
    assert [title.split()[0] for title in titles] == ["DSC", "NSD"]


def test_a_run_that_reused_everything_made_nothing(workspace: Workspace) -> None:
    finish(workspace, "run1", "raw_manifest", 0, 4)
    assert "Made by this run: nothing" in summary(workspace)


def test_before_the_first_report_the_summary_says_so(workspace: Workspace) -> None:
    finish(workspace, "run1", "raw_manifest", 1, 0)
    assert "No evaluation report yet: materialise proposed/evaluation_report." in summary(workspace)


@pytest.mark.parametrize("content", [b"", b'{"kind": "report"', b"[]"], ids=["empty", "cut", "another type"])
def test_a_damaged_value_is_answered_with_what_makes_it_again(workspace: Workspace, content: bytes) -> None:
    report(workspace)
    finish(workspace, "run1", "raw_manifest", 1, 0)
    (workspace.settings.state / "values" / "assets" / "proposed" / "evaluation_report.json").write_bytes(content)
    with pytest.raises(IntegrityError) as raised:
        summary(workspace)
    assert str(raised.value).endswith("materialise proposed/evaluation_report again")
    assert "remove" not in str(raised.value)


def test_a_written_report_compares_test_cases_only(tmp_path: Path) -> None:
    rows = case_rows()
    comparison = write_report(rows, tmp_path)
    test = rows[rows["split"] == "test"]
    ct = comparison[comparison["modality"] == "CT"].iloc[0]
    assert ct["cases"] == 2
    for name in ("student", "ellipse"):
        own = test[(test["modality"] == "CT") & (test["predictor"] == name)]
        assert ct[f"DSC {name}"] == pytest.approx(own["dsc"].mean())
    assert comparison.columns.tolist()[2:4] == ["DSC student", "DSC ellipse"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "comparison.csv"), comparison, check_dtype=False)
    assert set(pd.read_csv(tmp_path / "summary.csv")["split"]) == {"validation", "test"}


def test_an_output_carries_its_fingerprint_counts_and_notes(workspace: Workspace, tmp_path: Path) -> None:
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    small.write_bytes(b"png")
    large.write_bytes(bytes(INLINE_PICTURE_BYTES + 1))
    notes = {
        "score": 0.5,
        "nothing": None,
        "table": pd.DataFrame({"a": [1.23456]}),
        "link": Link("http://page"),
        "small": Picture(small),
        "large": Picture(large),
        "folder": tmp_path,
    }
    output = finish(workspace, "run1", "a", 2, 3, notes)
    assert output.value == PartsMade(("part", "part"))
    assert output.data_version == dg.DataVersion("fp-a")
    found = {name: value.value for name, value in output.metadata.items()}
    assert found["made"] == 2
    assert found["reused"] == 3
    assert found["fingerprint"] == "fp-a"
    assert "nothing" not in found
    assert "1.2346" in found["table"]
    assert found["link"] == "http://page"
    assert found["small"] == "![small](data:image/png;base64,cG5n)"
    assert found["large"] == str(large)
    assert found["folder"] == str(tmp_path)


@pytest.mark.parametrize("text", ["{", "null\n", "[1]\n", "{}\n", '{"asset": "a", "finge', "\xff\n"])
def test_a_damaged_ledger_is_named_with_what_helps(workspace: Workspace, text: str) -> None:
    finish(workspace, "run", "index", made=1, reused=2)
    file = ledger_file(workspace, "run")
    file.write_text(file.read_text() + text, "latin-1")
    with pytest.raises(IntegrityError, match=r"run\.jsonl: expected .* remove it: only this summary"):
        summary(workspace)


def test_an_empty_ledger_is_of_a_run_that_made_nothing(workspace: Workspace) -> None:
    finish(workspace, "run", "index", made=1, reused=2)
    ledger_file(workspace, "run").write_text("")
    assert "Made by this run: nothing" in summary(workspace)
