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
        """Note who executes this run; the first process of a run also ends runs whose process is gone."""
        space = self.open()
        if context.run_id is None or context.instance is None:
            return
        folder = space.settings.state / "runs"
        if note_executor(folder, context.run_id, in_process=space.settings.executor == "in_process"):
            end_dead_runs(context.instance, folder, context.run_id)

    def open(self) -> Workspace:
        """Return the workspace."""
        if self._workspace is None:
            self._workspace = Workspace(read_settings({**os.environ, **self.overrides}))
        return self._workspace
