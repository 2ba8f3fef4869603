"""The code location. What belongs here: assembly. Not here: any implementation."""

import os
import warnings
from collections.abc import Mapping

import dagster as dg

# The data version of an output is how a fingerprint reaches Dagster; the parameter is marked beta in 1.13.
warnings.filterwarnings("ignore", category=dg.BetaWarning, message=".*data_version.*")

from pipelines import jobs  # noqa: E402
from pipelines.base.json_io import JsonIOManager  # noqa: E402
from pipelines.base.settings import read_settings  # noqa: E402
from pipelines.runs.executors import executor_of  # noqa: E402
from pipelines.runs.resources import WorkspaceResource  # noqa: E402


def build_defs(overrides: Mapping[str, str] | None = None) -> dg.Definitions:
    """Assemble the code location.

    Args:
        overrides: Environment variables that replace the process's own; tests give another MEDSAM_HOME.
    """
    changes = dict(overrides or {})
    settings = read_settings({**os.environ, **changes})
    return dg.Definitions(
        assets=jobs.ASSETS,
        asset_checks=jobs.CHECKS,
        jobs=jobs.JOBS,
        schedules=jobs.SCHEDULES,
        executor=executor_of(settings),
        resources={
            "workspace": WorkspaceResource(overrides=changes),
            "io_manager": JsonIOManager(folder=str(settings.state / "values")),
        },
    )


defs = build_defs()
