"""Which cases a model has seen. What belongs here: the record beside a model, by content. Not here: making splits."""

import json
from pathlib import Path

from storage.base.atomic import write_json
from storage.releases.release import Release

SEEN_FILE = "seen_cases.json"
"""Beside a model: content hash of every case of its release, and its split."""


def write_seen(folder: Path, release: Release) -> None:
    """Record the split of every case of a release by content hash, so that an evaluation elsewhere knows its cases."""
    cases = release.table[["content_hash", "split"]].astype(str).drop_duplicates()
    write_json(folder / SEEN_FILE, dict(zip(cases["content_hash"], cases["split"], strict=True)))


def read_seen(model: Path) -> dict[str, str]:
    """Return the split of every case of the release that a model was made on, by content hash; empty if unrecorded."""
    file = model.parent / SEEN_FILE
    return dict(json.loads(file.read_text())) if file.is_file() else {}
