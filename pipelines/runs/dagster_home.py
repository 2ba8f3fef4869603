"""Dagster's own folder. What belongs here: its configuration and the tables of its databases, before any run.

Not here: runs. If two processes create the tables of one new folder at the same time, one of them fails.
"""

import logging
import re
from pathlib import Path

from pipelines.base.settings import InputError
from storage.base.locks import waiting_lock

DAGSTER_YAML = """\
telemetry:
  enabled: false
nux:
  enabled: false
concurrency:
  pools:
    granularity: op
    default_limit: 1
run_monitoring:
  enabled: true
  free_slots_after_run_end_seconds: 60
python_logs:
  managed_python_loggers: [storage, medsam_core, pipelines]
"""
"""The last setting shows the packages' warnings on the run's page, such as what is damaged and made again."""

_WITHOUT_WARNINGS = DAGSTER_YAML.partition("python_logs:")[0]
"""What earlier versions wrote; a file that was changed by hand stays as it is."""

_DATABASES = ("history/runs.db", "history/runs/index.db", "schedules/schedules.db")

_MISREAD = re.compile(r"%[0-9A-Fa-f]{2}|\?")
"""Characters in a folder's name that Dagster misreads in the URL of a database below this folder."""


def prepare_dagster(folder: Path) -> None:
    """Make Dagster's folder, its configuration unless there is one, and the tables of its databases.

    Args:
        folder: An absolute path, the value of DAGSTER_HOME.

    Raises:
        InputError: If Dagster cannot keep databases below a folder of this name.
    """
    if found := _MISREAD.search(str(folder)):
        raise InputError(
            f"{folder}: expected a path that Dagster can keep databases in, found {found[0]!r} in it; set DAGSTER_HOME "
            "to another folder"
        )
    with waiting_lock(folder / "init.lock"):
        file = folder / "dagster.yaml"
        if not file.is_file() or file.read_text() == _WITHOUT_WARNINGS:
            file.write_text(DAGSTER_YAML)
        # Made last, so that a process killed while it creates the tables leaves no such file.
        made = folder / "tables_made"
        if made.is_file() and all((folder / name).is_file() for name in _DATABASES):
            return
        import dagster as dg

        # It tells of every table, which is news to nobody.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        with dg.DagsterInstance.from_config(str(folder)) as instance:
            instance.get_runs(limit=1)
            instance.all_instigator_state()
            instance.get_asset_keys(limit=1)
        made.touch()
