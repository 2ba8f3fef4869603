"""Dagster resources. What belongs here: how steps reach the workspace and MLflow. Not here: work."""

import os

import dagster as dg

from pipelines.settings import read_settings
from pipelines.workspace import Workspace


class WorkspaceResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Opens the workspace that the environment describes; tests override single variables."""

    overrides: dict[str, str] = {}  # noqa: RUF012

    def open(self) -> Workspace:
        """Return the workspace."""
        return Workspace(read_settings({**os.environ, **self.overrides}))
