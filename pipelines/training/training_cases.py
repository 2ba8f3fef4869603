"""Which cases a model was trained and chosen on. What belongs here: the record beside a model, by content.

Not here: making splits (`storage.releases.splits`).
"""

from pathlib import Path

from storage.base.atomic import read_json, write_json
from storage.releases.release import Release

TRAINING_CASES = "training_cases.json"
"""Beside a model: content hash of every case of its release, and its split."""

_EARLIER_NAME = "seen_cases.json"
"""Name of that file in earlier versions."""


def write_training_cases(folder: Path, release: Release) -> None:
    """Record the split of every case of a release by content hash, so that an evaluation elsewhere knows its cases."""
    cases = release.table[["content_hash", "split"]].astype(str).drop_duplicates()
    splits = dict(zip(cases["content_hash"], cases["split"], strict=True))
    if release.unlabelled is not None:
        splits |= dict.fromkeys(release.unlabelled["content_hash"].astype(str), "train")
    write_json(folder / TRAINING_CASES, splits)


def training_cases_file(folder: Path) -> Path | None:
    """Return the record of a model's folder, under its present or its earlier name; None if there is none."""
    files = (folder / name for name in (TRAINING_CASES, _EARLIER_NAME))
    return next((file for file in files if file.is_file()), None)


def read_training_cases(model: Path) -> dict[str, str]:
    """Return the split of every case of the release that a model was made on, by content hash; empty if unrecorded."""
    file = training_cases_file(model.parent)
    return {} if file is None else dict(read_json(file))
