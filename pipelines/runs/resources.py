"""Dagster resources. What belongs here: how runs and steps open the workspace. Not here: tasks."""

import logging
import multiprocessing
import os

import dagster as dg
from pydantic import PrivateAttr

from medsam_core.training.parent_watch import require_parent
from pipelines.base.settings import read_settings
from pipelines.base.terminal import said_of
from pipelines.base.workspace import Workspace
from pipelines.runs.dead_runs import note_executor
from pipelines.runs.executors import end_what_died

logger = logging.getLogger(__name__)


class WorkspaceResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Opens the workspace that the environment describes; tests override single variables."""

    overrides: dict[str, str] = {}  # noqa: RUF012 - a pydantic field, copied for each instance
    _workspace: Workspace | None = PrivateAttr(default=None)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Record the process of this run, make a step end with its run, and end dead runs in a run's first process."""
        space = self.open()
        if context.run is None or context.instance is None:
            return
        run_id = context.run.run_id
        in_process = space.settings.executor == "in_process"
        executor = multiprocessing.parent_process()
        if executor is not None and not in_process:
            # A step that outlives its run would keep its locks, its pool slot and its trainer.
            require_parent(executor.pid)
        try:
            first = note_executor(space.settings.state / "runs", run_id, in_process=in_process)
        except OSError as error:
            # Dagster opens the resources once more after a run, even one that was refused for this very reason.
            logger.warning("run %s is not noted: %s", run_id, said_of(error))
            return
        if first:
            end_what_died(context.instance, space.settings, run_id)

    def open(self) -> Workspace:
        """Return the workspace."""
        if self._workspace is None:
            self._workspace = Workspace(read_settings({**os.environ, **self.overrides}))
        return self._workspace
