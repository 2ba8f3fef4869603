"""The summary at the end of `make pipeline`. What belongs here: reading the newest report and the ledger of a run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pipelines.base.results import ledger_file, markdown_table
from pipelines.base.values import read_value
from pipelines.base.workspace import Workspace
from pipelines.evaluation.report_files import TEACHER, read_comparison, read_facts
from pipelines.teacher.provenance import told
from storage.base.errors import IntegrityError
from storage.base.references import ArtefactRef

if TYPE_CHECKING:
    from medsam_core.scores.metric_table import Metric


_LEDGER = ("asset", "fingerprint", "made", "reused")


def _last_ledger(workspace: Workspace) -> Path | None:
    ledgers = sorted((workspace.settings.state / "runs").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    return ledgers[-1] if ledgers else None


def run_ledger(workspace: Workspace, run_id: str | None = None) -> pd.DataFrame:
    """Return the ledger of a run, by default the last one: columns asset, fingerprint, made, reused."""
    path = ledger_file(workspace, run_id) if run_id else _last_ledger(workspace)
    if path is None or not path.is_file():
        raise FileNotFoundError(f"expected the ledger of a run in {workspace.settings.state / 'runs'}, found none")
    try:
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        table = pd.DataFrame([[line[name] for name in _LEDGER] for line in lines], columns=[*_LEDGER])
        return table.astype({"made": int, "reused": int})
    except (ValueError, TypeError, KeyError) as error:
        raise IntegrityError(
            f"{path}: expected a JSON object with {', '.join(_LEDGER)} in each line, found damage; remove it: "
            "only this summary reads the file"
        ) from error


def summary(workspace: Workspace, run_id: str | None = None) -> str:
    """Return text: the newest report by modality, the parts that the run made, and the addresses of the pages."""
    ledger = run_ledger(workspace, run_id)
    made = ledger[ledger["made"] > 0]
    listing = ", ".join(f"{row.asset} ({row.made})" for row in made.itertuples()) or "nothing"
    lines = [_report(workspace), f"Made by this run: {listing}", f"Reused: {int(ledger['reused'].sum())} parts"]
    lines += [
        f"State: {workspace.settings.state}",
        "Dagster page: make dev, then http://127.0.0.1:3000",
        "MLflow page: make mlflow, then http://127.0.0.1:5000",
    ]
    return "\n".join(lines)


def _report(workspace: Workspace) -> str:
    from medsam_core.scores import metric_table

    value = workspace.settings.state / "values" / "assets" / "proposed" / "evaluation_report.json"
    if not value.is_file():
        return "No evaluation report yet: materialise proposed/evaluation_report."
    report = workspace.artefacts.get(read_value(ArtefactRef, value, "proposed/evaluation_report"))
    comparison = read_comparison(report.path)
    tables = [_metric_table(comparison, metric) for metric in metric_table.standard()]
    facts = read_facts(report.path, TEACHER)
    teacher = f"Teacher: {told(facts)}" if facts else ""
    return "\n".join([*filter(None, [*tables, teacher]), f"Report: {report.path}"])


def _metric_table(comparison: pd.DataFrame, metric: "Metric") -> str:
    """Return one metric's columns as text; empty if the report lacks this metric."""
    title = f"{metric.title} "
    own = {name: name.removeprefix(title) for name in map(str, comparison.columns) if name.startswith(title)}
    if not own:
        return ""
    table = comparison[["modality", "cases", *own]].rename(columns=own)
    remarks = [metric.unit, metric.remark, "" if metric.better == "higher" else "lower is better"]
    return f"{', '.join([f'{metric.title} on test patients', *filter(None, remarks)])}\n{markdown_table(table)}\n"
