"""Results of tasks. What belongs here: the value that a task returns, and turning it into Dagster's output.

Not here: the tasks. A task returns a `TaskResult`. `materialised` turns it into Dagster's output and appends a line to
the ledger of the run; `medsam summary` reads the ledger and prints what the run made and reused.
"""

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import dagster as dg
import pandas as pd

from pipelines.base.workspace import Workspace

V = TypeVar("V", covariant=True)
"""One of the types of `pipelines.base.values`."""

INLINE_PICTURE_BYTES = 600_000
"""Bytes. A picture up to this size is shown on the page; for a larger one the page shows its path."""


@dataclass(frozen=True)
class Picture:
    """A PNG file to show."""

    path: Path


@dataclass(frozen=True)
class Link:
    """An address to open."""

    url: str


@dataclass(frozen=True)
class TaskResult(Generic[V]):
    """The result of a task.

    Attributes:
        value: The value for downstream assets.
        fingerprint: Fingerprint of the result; becomes the data version.
        made: Number of parts that this run made.
        reused: Number of parts that existed before.
        notes: Metadata for the page: numbers, text, `Picture`, `Link`, `Path`, or a table as a DataFrame.
    """

    value: V
    fingerprint: str
    made: int
    reused: int
    notes: Mapping[str, object] = field(default_factory=dict)


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table as Markdown, numbers with four significant decimals."""
    return str(table.to_markdown(index=False, floatfmt=".4f"))


def _metadata(note: object) -> Any:  # noqa: ANN401 - MetadataValue, or what Dagster makes one of
    if isinstance(note, pd.DataFrame):
        return dg.MetadataValue.md(markdown_table(note))
    if isinstance(note, Link):
        return dg.MetadataValue.url(note.url)
    if isinstance(note, Picture):
        data = note.path.read_bytes()
        if len(data) > INLINE_PICTURE_BYTES:
            return dg.MetadataValue.path(str(note.path))
        return dg.MetadataValue.md(f"![{note.path.stem}](data:image/png;base64,{base64.b64encode(data).decode()})")
    if isinstance(note, Path):
        return dg.MetadataValue.path(str(note))
    return note


def ledger_file(workspace: Workspace, run_id: str) -> Path:
    """Return the file that lists what one run made and reused, one JSON object a line."""
    return workspace.settings.state / "runs" / f"{run_id}.jsonl"


def _write_ledger(workspace: Workspace, run_id: str, name: str, result: TaskResult[object]) -> None:
    path = ledger_file(workspace, run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {"asset": name, "fingerprint": result.fingerprint, "made": result.made, "reused": result.reused}
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        # One short write in append mode is not interleaved with writes of other step processes.
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)


def materialised(
    context: dg.OpExecutionContext, workspace: Workspace, name: str, result: TaskResult[V]
) -> dg.Output[V]:
    """Turn a task's result into an asset's output with metadata and data version, and note it in the run's ledger."""
    _write_ledger(workspace, context.run_id, name, result)
    metadata = {key: _metadata(note) for key, note in result.notes.items() if note is not None}
    metadata |= {"made": result.made, "reused": result.reused, "fingerprint": result.fingerprint}
    return dg.Output(result.value, metadata=metadata, data_version=dg.DataVersion(result.fingerprint))
