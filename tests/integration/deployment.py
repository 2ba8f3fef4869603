"""A deployment of its own: a state folder, its environment, and the commands that a user gives.

What belongs here: starting commands in processes of their own and reading what they left. Not here: assertions about
results.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import pandas as pd

from pipelines.base.settings import read_settings
from pipelines.base.values import TeacherRef, from_json
from pipelines.base.workspace import Workspace
from pipelines.evaluation.score_files import read_case_rows
from storage.base.atomic import read_json
from storage.base.references import ArtefactRef
from storage.releases.release import load_release

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).with_name("tiny.yaml")

DAGSTER = str(Path(sys.executable).with_name("dagster"))
LEFT_OUT = {"adaptation_plan", "adaptation_embeddings", "adapted_teacher"}
"""Assets of a stage that the profile does not have."""

FULL_PIPELINE = (DAGSTER, "job", "execute", "-j", "full_pipeline")

_OTHERS = ("MEDSAM_", "DAGSTER_", "MLFLOW_")
"""Prefixes of variables of the surrounding shell that a deployment under test must not see."""


@dataclass(frozen=True)
class Deployment:
    """One MEDSAM_HOME and what is run in it.

    Attributes:
        home: Folder of all state.
        profile: Name or path of the profile.
        changes: Further environment variables.
    """

    home: Path
    profile: str = str(TINY)
    changes: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every command."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)}
        # Found before an installed copy, and needed where there is none.
        path = os.pathsep.join([str(ROOT), *filter(None, [inherited.get("PYTHONPATH")])])
        return {
            **inherited,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "MEDSAM_HOME": str(self.home),
            "MEDSAM_PROFILE": self.profile,
            "MEDSAM_EXECUTOR": "in_process",
            "DAGSTER_HOME": str(self.home / "dagster"),
            "DAGSTER_MODULE_NAME": "pipelines.definitions",
            "DAGSTER_DISABLE_TELEMETRY": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **self.changes,
        }

    @property
    def workspace(self) -> Workspace:
        """The workspace as the deployment's own processes see it."""
        return Workspace(read_settings(self.environment))

    @property
    def state(self) -> Path:
        """Folder of the profile's state."""
        return self.workspace.settings.state

    @property
    def instance(self) -> dg.DagsterInstance:
        """Dagster's record of runs."""
        return dg.DagsterInstance.from_config(str(self.home / "dagster"))

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """Start a command; its output goes to `<home>/output.txt`."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "output.txt").open("w") as output:
            return subprocess.Popen(
                command, cwd=self.home, env=self.environment, text=True, stdout=output, stderr=subprocess.STDOUT
            )

    def run(self, *command: str) -> str:
        """Run a command to its end and return its output; a failure shows the output's end."""
        status = self.start(*command).wait()
        output = (self.home / "output.txt").read_text()
        assert status == 0, f"{' '.join(command)} ended with {status}:\n{output[-6000:]}"
        return output

    def python(self, code: str) -> Any:
        """Run Python code and return the value that it prints last, as JSON."""
        return json.loads(self.run(sys.executable, "-c", code).splitlines()[-1])

    def medsam(self, *arguments: str) -> str:
        """Run the console script."""
        return self.run(sys.executable, "-m", "pipelines.cli", *arguments)

    def run_pipeline(self) -> pd.DataFrame:
        """Run the literal job command and return the run's ledger, indexed by asset."""
        before = set(self.ledgers())
        self.run(*FULL_PIPELINE)
        (path,) = set(self.ledgers()) - before
        return read_ledger(path)

    def ledger(self) -> pd.DataFrame:
        """Return the last run's ledger, indexed by asset."""
        return read_ledger(self.ledgers()[-1])

    def ledgers(self) -> list[Path]:
        """Return the ledger files of all runs, the oldest first."""
        return sorted((self.state / "runs").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)

    def value(self, asset: str, kind: type[T] = ArtefactRef) -> T:  # type: ignore[assignment]  # of most assets
        """Return an asset's value."""
        return from_json(kind, read_json((self.state / "values" / "assets" / asset).with_suffix(".json")), asset)

    def folder(self, asset: str) -> Path:
        """Return the folder of an asset's artefact."""
        kind = TeacherRef if asset in ("teacher_checkpoint", "adapted_teacher") else ArtefactRef
        return self.workspace.artefacts.get(self.value(asset, kind)).path

    def rows(self, asset: str) -> pd.DataFrame:
        """Return the case rows of an asset of scores."""
        return read_case_rows(self.folder(asset))

    def release(self) -> pd.DataFrame:
        """Return the table of the newest release."""
        return load_release(self.folder("dataset_release")).table

    def moved_to(self, home: Path) -> "Deployment":
        """Copy the profile's state to a new home, without the records of Dagster and MLflow, which name paths."""
        copy = Deployment(home, self.profile, self.changes)
        shutil.copytree(self.state, copy.state)
        copy.medsam("init")
        return copy


def read_ledger(path: Path) -> pd.DataFrame:
    """Return what a run made and reused, indexed by asset."""
    return pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()]).set_index("asset")


def deploy(home: Path, profile: str = str(TINY), **changes: str) -> Deployment:
    """Make an empty deployment."""
    made = Deployment(home, profile, changes)
    made.medsam("init")
    return made
