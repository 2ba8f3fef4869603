"""Dagster resources. What belongs here: how steps reach the workspace. Not here: work."""

import os

import dagster as dg
from pydantic import PrivateAttr

from pipelines.liveness import end_dead_runs, note_executor
from pipelines.settings import read_settings
from pipelines.workspace import Workspace


class WorkspaceResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Opens the workspace that the environment describes; tests override single variables."""

    overrides: dict[str, str] = {}  # noqa: RUF012 - a pydantic field, copied for each instance
    _workspace: Workspace | None = PrivateAttr(default=None)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Note who executes this run; a run's first process also ends runs whose process is gone, in MLflow too."""
        space = self.open()
        if context.run is None or context.instance is None:
            return
        run_id = context.run.run_id
        folder = space.settings.state / "runs"
        first = note_executor(folder, run_id, in_process=space.settings.executor == "in_process")
        if first and end_dead_runs(context.instance, folder, run_id):
            from pipelines.tracking import Tracker

            Tracker(space.settings).close_stale()

    def open(self) -> Workspace:
        """Return the workspace."""
        if self._workspace is None:
            self._workspace = Workspace(read_settings({**os.environ, **self.overrides}))
        return self._workspace
