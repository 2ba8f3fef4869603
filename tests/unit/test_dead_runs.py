"""Runs whose process has died are ended and free what they hold; all others are left alone."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import dagster as dg
import pytest

from pipelines.runs import dead_runs
from pipelines.runs.dead_runs import alive, end_dead_runs, note_executor
from storage.base import processes
from storage.base.atomic import read_json, write_json
from storage.base.processes import birth, here

POOL = "trainer"


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path_factory.mktemp("dagster"))) as made:
        made.event_log_storage.set_concurrency_slots(POOL, 64)
        yield made


def started(instance: dg.DagsterInstance, status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED) -> str:
    """Add a run that holds a slot of the pool."""
    run_id = instance.add_run(dg.DagsterRun(job_name="job", status=status)).run_id
    assert instance.event_log_storage.claim_concurrency_slot(POOL, run_id, "train").is_claimed
    return run_id


def holders(instance: dg.DagsterInstance) -> set[str]:
    return {slot.run_id for slot in instance.event_log_storage.get_concurrency_info(POOL).claimed_slots}


def status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def note(folder: Path, run_id: str, process: int, born: str | None, **place: str) -> None:
    """Write a note; without a place, as the version before did."""
    write_json(folder / f"{run_id}.process.json", {"process": process, "born": born, **place})


def dead_process() -> tuple[int, str]:
    """Return the id and birth of a process that has died."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        born = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
        child.kill()
    return child.pid, born


def noted_by_a_process_that_dies(folder: Path, run_id: str) -> int:
    script = f"from pathlib import Path; import os; from pipelines.runs.dead_runs import note_executor\n\
print(os.getpid() if note_executor(Path({str(folder)!r}), {run_id!r}, in_process=True) else 'no')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_run_left_started_by_a_dead_process_is_ended_and_its_slots_freed(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    run_id = started(instance)
    process = noted_by_a_process_that_dies(tmp_path, run_id)
    assert run_id in holders(instance)
    assert end_dead_runs(instance, tmp_path, "this") == [run_id]
    assert status(instance, run_id) is dg.DagsterRunStatus.FAILURE
    assert run_id not in holders(instance)
    records = instance.get_records_for_run(run_id).records
    messages = [record.event_log_entry.get_dagster_event().message or "" for record in records]
    assert any(f"process {process}" in message for message in messages)
    assert end_dead_runs(instance, tmp_path, "this") == [], "an ended run is ended once"


def test_living_runs_runs_without_a_note_and_this_run_are_left_alone(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    living, elsewhere, this = (started(instance) for _ in range(3))
    assert note_executor(tmp_path, living, in_process=True)
    note(tmp_path, this, *dead_process())
    assert end_dead_runs(instance, tmp_path, this) == []
    for run_id in (living, elsewhere, this):
        assert status(instance, run_id) is dg.DagsterRunStatus.STARTED
        assert run_id in holders(instance)


HERE = asdict(here())

ELSEWHERE = [
    {**HERE, "host": "another-machine"},
    {**HERE, "host": "another-machine", "boot": "another boot"},
    {**HERE, "namespace": "pid:[1]"},
    {**HERE, "host": "another-container", "namespace": "pid:[1]"},
]


@pytest.mark.parametrize("place", ELSEWHERE)
@pytest.mark.parametrize("born", ["dead", None])
def test_what_another_machine_or_container_executes_is_left_alone(
    instance: dg.DagsterInstance, tmp_path: Path, place: dict[str, str], born: str | None
) -> None:
    run_id = started(instance)
    note(tmp_path, run_id, dead_process()[0], born, **place)
    assert end_dead_runs(instance, tmp_path, "this") == []
    assert status(instance, run_id) is dg.DagsterRunStatus.STARTED
    assert run_id in holders(instance)


def test_a_run_of_this_host_before_its_last_start_is_ended(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run_id = started(instance)
    note(tmp_path, run_id, os.getpid(), birth(os.getpid()), **{**HERE, "boot": "an earlier one", "namespace": "old"})
    assert end_dead_runs(instance, tmp_path, "this") == [run_id]


def test_a_run_of_another_machine_of_this_name_that_was_heard_of_since_this_one_started_is_left_alone(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines may share a name (localhost, clones); what ran before a restart has said nothing since."""
    run_id = started(instance)
    note(tmp_path, run_id, dead_process()[0], None, **{**HERE, "boot": "of another machine", "namespace": "theirs"})
    run = instance.get_run_by_id(run_id)
    assert run is not None
    instance.report_engine_event("step 12 of 100", run)
    assert end_dead_runs(instance, tmp_path, "this") == []
    assert status(instance, run_id) is dg.DagsterRunStatus.STARTED
    monkeypatch.setattr(processes, "started_s", lambda: time.time() + 60)
    assert end_dead_runs(instance, tmp_path, "this") == [run_id]


@pytest.mark.parametrize(
    "text", ["", "{", '{"process": 17, "bor', "[]", "null", "17", "{}", '{"process": "x"}', '{"process": null}', "\xff"]
)
def test_a_note_that_cannot_be_read_costs_nothing_but_itself(
    instance: dg.DagsterInstance, tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    unknown, dead = started(instance), started(instance)
    (tmp_path / f"{unknown}.process.json").write_text(text, "latin-1")
    note(tmp_path, dead, *dead_process())
    assert end_dead_runs(instance, tmp_path, "this") == [dead]
    assert status(instance, unknown) is dg.DagsterRunStatus.STARTED
    assert unknown in caplog.text
    assert "Dagster's page" in caplog.text


def _unshared(*options: str) -> list[str]:
    command = ["unshare", "--user", "--map-root-user", *options]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives no namespaces to its users")
    return command


@pytest.mark.parametrize("options", [("--pid", "--fork", "--mount-proc"), ("--uts",)])
def test_a_container_on_the_same_state_does_not_end_a_healthy_run(
    instance: dg.DagsterInstance, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """The living run is this process's; a container looks, and then the other way round."""
    command = _unshared(*options)
    ours, theirs = started(instance), started(instance)
    assert note_executor(tmp_path, ours, in_process=True)
    rename = "import socket; socket.sethostname('container')\n" if "--uts" in options else ""
    script = f"{rename}from pathlib import Path; from pipelines.runs.dead_runs import note_executor\n\
from storage.base.processes import read_process; from storage.base.atomic import read_json\n\
folder = Path({str(tmp_path)!r}); note_executor(folder, {theirs!r}, in_process=True)\n\
print(read_process(read_json(folder / '{ours}.process.json')).gone())"
    done = subprocess.run([*command, sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
    assert end_dead_runs(instance, tmp_path, "this") == []
    assert {status(instance, run_id) for run_id in (ours, theirs)} == {dg.DagsterRunStatus.STARTED}


def test_a_note_without_a_machine_counts_once_its_run_has_gone_quiet(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notes of the version before: another machine's healthy run goes on saying things."""
    run_id = started(instance)
    note(tmp_path, run_id, *dead_process())
    run = instance.get_run_by_id(run_id)
    assert run is not None
    instance.report_engine_event("step 12 of 100", run)
    assert end_dead_runs(instance, tmp_path, "this") == []
    monkeypatch.setattr(dead_runs, "QUIET_S", 0.0)
    assert end_dead_runs(instance, tmp_path, "this") == [run_id]


def test_a_finished_run_is_left_as_it_ended(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run_id = started(instance, dg.DagsterRunStatus.SUCCESS)
    note(tmp_path, run_id, *dead_process())
    assert end_dead_runs(instance, tmp_path, "this") == []
    assert status(instance, run_id) is dg.DagsterRunStatus.SUCCESS


def test_a_later_process_of_the_same_id_does_not_count_as_the_runs(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    run_id = started(instance)
    note(tmp_path, run_id, os.getpid(), "1")
    assert end_dead_runs(instance, tmp_path, "this") == [run_id]


def test_a_process_that_was_gone_before_it_was_noted_is_dead(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run_id = started(instance)
    note(tmp_path, run_id, dead_process()[0], None)
    assert end_dead_runs(instance, tmp_path, "this") == [run_id]


def test_the_first_note_stays(tmp_path: Path) -> None:
    assert note_executor(tmp_path, "run", in_process=True)
    assert not note_executor(tmp_path, "run", in_process=False)
    assert read_json(tmp_path / "run.process.json")["process"] == os.getpid()


def test_a_step_process_notes_the_process_that_started_it(tmp_path: Path) -> None:
    assert note_executor(tmp_path, "run", in_process=False)
    assert read_json(tmp_path / "run.process.json")["process"] == os.getppid()


def test_a_process_lives_until_it_ends_even_if_nobody_waited_for_it() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        assert alive(child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{child.pid}").exists(), "a zombie until it is waited for"
        assert not alive(child.pid)
    assert not alive(child.pid)
