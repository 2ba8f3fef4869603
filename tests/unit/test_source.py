"""Sources: a new format is one class, the rest of the ingest does not know which it reads."""

import ast
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import storage
from pipelines.base.profile import ProfileError, load_profile
from pipelines.base.settings import read_settings
from pipelines.base.workspace import Workspace
from pipelines.ingest.scanning import scan_source
from pipelines.ingest.tasks import plan_store, publish_store, write_store_parts
from storage.base.errors import StorageError
from storage.base.fingerprints import array_hash
from storage.sources import kinds
from storage.sources.case import Case
from storage.sources.kinds import open_source, register
from storage.sources.npz_folder import NpzFolder
from storage.sources.source import Listing, Reading, SourceConfig, Use

MASK = np.eye(6, dtype=np.uint8)


@dataclass(frozen=True)
class ToySource:
    """Text files: every character of a file is a grey value of one row; the label is the diagonal."""

    root: Path
    config: SourceConfig
    reading: Reading = field(default_factory=lambda: Reading("toy"))

    @property
    def place(self) -> str:
        return str(self.root)

    def list(self) -> Listing:
        paths = sorted(self.root.glob("*.txt"))
        clocks = {"n_bytes": [path.stat().st_size for path in paths], "mtime_ns": 0, "ctime_ns": 0}
        files = pd.DataFrame({"case_id": pd.Series([path.stem for path in paths], dtype="str"), **clocks})
        return Listing(files, pd.DataFrame(columns=["reason", "count", "examples"]))

    def modality(self, case_id: str) -> str:
        return "OCT"

    def memory(self, case_id: str, n_bytes: int, at_ease: int) -> int:
        return n_bytes

    def read(self, case_id: str, use: Use = Use.LABELS) -> Case:
        text = (self.root / f"{case_id}.txt").read_bytes().split()
        imgs = np.array([list(line) for line in text], np.uint8)
        return Case(imgs, False, MASK, None, None, array_hash({"imgs": imgs}))


def test_a_new_format_is_ingested_by_registering_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "_KINDS", dict(kinds._KINDS))
    register("toy", ToySource)
    (tmp_path / "data").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "data" / f"{name}.txt").write_text(f"{name * 6}\n" * 6)
    (tmp_path / "toy.yaml").write_text("extends: sample\nname: toy\nsource: {kind: toy}\n")
    variables = {"MEDSAM_HOME": "home", "MEDSAM_PROFILE": "toy.yaml", "MEDSAM_DATA": "data"}
    workspace = Workspace(read_settings({name: str(tmp_path / value) for name, value in variables.items()}))
    manifest = scan_source(workspace, print).value
    parts = plan_store(workspace, "OCT", manifest)
    made = [write_store_parts(workspace, "OCT", batch, print) for batch in parts]
    result = publish_store(workspace, "OCT", manifest, made, print)
    assert (result.notes["cases"], result.notes["slices"]) == (3, 3)


def test_an_unknown_kind_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("extends: sample\nsource: {kind: toy}\n")
    with pytest.raises(ProfileError, match=r"source\.kind: .*expected one of folder, synthetic"):
        load_profile(str(tmp_path / "p.yaml"))
    with pytest.raises(StorageError, match="expected one of folder, synthetic"):
        open_source("toy", tmp_path, SourceConfig())


def test_a_kind_is_never_replaced() -> None:
    with pytest.raises(StorageError, match="taken"):
        register("folder", ToySource)


def test_a_source_crosses_to_another_process(tmp_path: Path) -> None:
    source = NpzFolder(tmp_path, SourceConfig(spacing_order="xyz"))
    assert pickle.loads(pickle.dumps(source)) == source


@pytest.mark.parametrize(
    "modules",
    [
        "storage.slices.index, storage.slices.writer, storage.slices.reader, storage.releases.reader",
        "pipelines.base.settings, storage.sources.raw_manifest",
    ],
)
def test_who_only_reads_stores_or_settings_loads_no_zip_layer(modules: str) -> None:
    code = f"import {modules}, sys; print([name for name in sys.modules if name.startswith(('storage.sources.np'))])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_ending_of_files_is_known_to_the_npz_modules_alone() -> None:
    folder = Path(storage.__file__).parent
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text())
        constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        # A text that is the ending, or ends in it; sentences of docstrings do not.
        named = [text for text in constants if isinstance(text, str) and text.lower().endswith(".npz")]
        assert not named or path.name.startswith("npz_"), path
