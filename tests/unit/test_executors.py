"""A run that cannot begin says why in one message, without a traceback of this project."""

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from dagster._core.errors import DagsterUserCodeProcessError

from pipelines.base.settings import Settings, read_settings
from pipelines.runs.executors import OneRunAtATime
from pipelines.runs.resources import WorkspaceResource


class Inner(dg.Executor):
    """An executor whose steps meet a full disk, or nothing at all."""

    def __init__(self, error: OSError | None = None) -> None:
        self._error = error

    @property
    def retries(self) -> Any:
        raise NotImplementedError

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        if self._error is not None:
            raise self._error
        yield from ()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return read_settings({"MEDSAM_HOME": str(tmp_path), "MEDSAM_EXECUTOR": "in_process"})


def execute(inner: Inner, settings: Settings) -> None:
    plan = SimpleNamespace(get_all_steps_in_topo_order=list)
    with dg.DagsterInstance.ephemeral() as instance:
        context: Any = SimpleNamespace(run_id="this", instance=instance, log=logging.getLogger("run"))
        list(OneRunAtATime(inner, settings).execute(context, plan))  # type: ignore[arg-type]


def no_room_for_notes(settings: Settings) -> None:
    """A file lies where the folder of notes belongs, so none can be written, not even by root."""
    settings.state.mkdir(parents=True)
    (settings.state / "runs").touch()


def test_a_state_folder_that_cannot_be_written_is_named(settings: Settings) -> None:
    no_room_for_notes(settings)
    with pytest.raises(DagsterUserCodeProcessError) as refused:
        execute(Inner(), settings)
    (said,) = refused.value.user_code_process_error_infos
    assert said.stack == [], "no traceback"
    assert said.message.startswith(f"{settings.state}: the run cannot go on: ")
    assert "File exists; a file lies where a folder is wanted" in said.message


def test_a_disk_that_fills_up_between_steps_is_told_with_a_remedy(settings: Settings) -> None:
    with pytest.raises(DagsterUserCodeProcessError, match=r"No space left on device; free some space"):
        execute(Inner(OSError(28, "No space left on device", "/state/file")), settings)
    execute(Inner(), settings)


def test_opening_the_workspace_after_a_refused_run_is_no_second_error(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    no_room_for_notes(settings)
    with dg.DagsterInstance.ephemeral() as instance:
        context: Any = SimpleNamespace(run=SimpleNamespace(run_id="this"), instance=instance)
        overrides = {"MEDSAM_HOME": str(settings.home), "MEDSAM_EXECUTOR": "in_process"}
        WorkspaceResource(overrides=overrides).setup_for_execution(context)
    assert "run this is not noted" in caplog.text
