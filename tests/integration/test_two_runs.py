"""Two runs of one state folder started together: they take turns, and both end well.

What belongs here: real commands side by side. Not here: what one run makes.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from storage.base.locks import exclusive_lock
from tests.integration.conftest import Finished
from tests.integration.deployment import DAGSTER, FULL_PIPELINE, LEFT_OUT, Deployment, deploy, read_ledger


def _together(deployment: Deployment, *commands: tuple[str, ...]) -> list[str]:
    """Start commands at once, wait for all, and return their outputs; a failure shows its own output."""
    files = [deployment.home / f"output{number}.txt" for number in range(len(commands))]
    processes = []
    for command, file in zip(commands, files, strict=True):
        with file.open("w") as output:
            environment = deployment.environment
            processes.append(
                subprocess.Popen(command, cwd=deployment.home, env=environment, stdout=output, stderr=output)
            )
    try:
        statuses = [process.wait(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    outputs = [file.read_text() for file in files]
    for status, output in zip(statuses, outputs, strict=True):
        assert status == 0, output[-6000:]
    return outputs


def _both_ended_well(deployment: Deployment) -> None:
    runs = deployment.instance.get_runs()
    assert [run.status for run in runs] == [dg.DagsterRunStatus.SUCCESS] * 2
    first, second = (read_ledger(path) for path in deployment.ledgers())
    assert (first.drop(index=list(LEFT_OUT), errors="ignore")["made"] > 0).all()
    assert not second["made"].any(), "the second run finds everything made"
    assert set(second.index) == set(first.index)


def _one_run_waited(outputs: list[str], deployment: Deployment) -> None:
    ids = {run.run_id for run in deployment.instance.get_runs()}
    lines = [line for output in outputs for line in output.splitlines() if "this run waits until it has ended" in line]
    assert len(lines) == 1, outputs
    assert any(f"{deployment.state}: run {run_id} (process " in lines[0] for run_id in ids)


STEPS_OF_THEIR_OWN = (DAGSTER, "asset", "materialize", "--select", 'key:"raw_manifest" or key:"slice_store/Fundus"')
"""A few steps, each in a process, which takes seconds to start."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("executor", "command"), [("in_process", FULL_PIPELINE), ("multiprocess", STEPS_OF_THEIR_OWN)], ids=["one", "many"]
)
def test_two_runs_of_a_fresh_home_take_turns(tmp_path: Path, executor: str, command: tuple[str, ...]) -> None:
    deployment = deploy(tmp_path / "home", MEDSAM_EXECUTOR=executor)
    outputs = _together(deployment, command, command)
    _both_ended_well(deployment)
    _one_run_waited(outputs, deployment)


def test_two_commands_that_meet_a_home_without_any_tables_both_make_them(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "home")
    deployment.home.mkdir()
    command = (sys.executable, "-m", "pipelines.cli", "init")
    _together(deployment, command, command, command)
    assert deployment.instance.get_runs() == []
    assert (deployment.home / "dagster" / "tables_made").is_file()


def test_a_run_waits_for_the_one_at_work_and_can_be_interrupted(finished: Finished, tmp_path: Path) -> None:
    """A lock held here stands for another run: the second has touched nothing when it is told to stop."""
    deployment = finished.deployment.moved_to(tmp_path / "home")
    with exclusive_lock(deployment.state / "run.lock", what="state"):
        process = deployment.start(DAGSTER, "job", "execute", "-j", "ingest")
        output = deployment.home / "output.txt"
        while "this run waits until it has ended" not in output.read_text():
            assert process.poll() is None, output.read_text()[-4000:]
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=120) != 0
    (run,) = deployment.instance.get_runs()
    assert run.status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
    assert "is at work here" in output.read_text()
    deployment.run(DAGSTER, "job", "execute", "-j", "ingest")
