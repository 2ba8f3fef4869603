"""`medsam verify` over artefacts: told file by file, withdrawn by its repair, made again by the next maker."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.base.settings import read_settings
from pipelines.base.workspace import Workspace
from pipelines.cli import main
from storage.base.artefacts import Artefact, artefact_lock
from storage.base.atomic import write_json
from storage.base.finished import DONE, FILES, MADE_FROM
from tests.unit.store_helpers import files_below
from tests.unit.test_artefact_files import MADE_OF, Maker, emptied, flipped, shortened


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("MEDSAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MEDSAM_PROFILE", "sample")
    return Workspace(read_settings())


def make(workspace: Workspace, maker: Maker) -> Artefact:
    return workspace.artefacts.make("report", MADE_OF, maker)


def verify(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    status = main(["verify", *arguments])
    return status, capsys.readouterr().out


@pytest.mark.parametrize("harm", [Path.unlink, shortened, emptied, flipped])
@pytest.mark.parametrize("name", ["table.csv", "weights", "segs/one/a.npz", DONE, FILES, MADE_FROM])
def test_every_harm_is_told_withdrawn_and_made_again_to_the_byte(
    workspace: Workspace, name: str, harm: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The reuse of a run does not read large files; the command does, so a bit of theirs is found too."""
    maker = Maker()
    made = make(workspace, maker)
    good = files_below(made.path)
    assert verify(capsys)[0] == 0
    harm(made.path / name)
    status, told = verify(capsys)
    assert status == 1
    assert f"  {name}: " in told
    assert f"report {made.path.name}" in told
    assert files_below(made.path) != good, "looking changes nothing"
    status, told = verify(capsys, "--repair")
    assert status == 0
    assert "withdrawn" in told
    assert not make(workspace, maker).reused
    assert maker.wrote == {DONE: [], MADE_FROM: [], FILES: maker.wrote}.get(name, [name])
    assert files_below(made.path) == good
    assert verify(capsys)[0] == 0


def test_an_artefact_of_an_earlier_version_is_vouched_for_when_repair_records_it(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    maker = Maker()
    made = make(workspace, maker)
    good = files_below(made.path)
    (made.path / FILES).unlink()
    (made.path / DONE).write_text(json.dumps(made.info))
    for _ in range(2):
        status, told = verify(capsys)
        assert (status, "made before file hashes were recorded" in told) == (0, True)
    assert verify(capsys, "--repair")[0] == 0
    assert files_below(made.path) == good
    assert make(workspace, maker).reused
    assert "before file hashes" not in verify(capsys)[1]


def test_a_result_that_is_gone_is_told_where_an_assets_value_names_it(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make(workspace, Maker())
    values = workspace.settings.state / "values" / "assets"
    write_json(values / "proposed" / "evaluation_report.json", vars(made.reference()))
    write_json(values / "raw_manifest.json", {"mode": "of another kind"})
    assert verify(capsys)[0] == 0
    shutil.rmtree(made.path)
    status, told = verify(capsys)
    assert status == 1
    assert f"proposed/evaluation_report: report {made.path.name}: expected a finished result, found none" in told
    make(workspace, Maker())
    assert verify(capsys)[0] == 0


def test_unfinished_work_and_leftovers_are_no_damage(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    made = make(workspace, Maker())
    (made.path / "notes.txt").write_text("somebody's")
    folder = workspace.artefacts.folder("model", "a" * 64)
    folder.mkdir(parents=True)
    write_json(folder / MADE_FROM, {})
    status, told = verify(capsys)
    assert (status, f"model {'a' * 16}: unfinished" in told) == (0, True)


@pytest.mark.parametrize("content", [b"", b'{"mode": ', b"3"], ids=["empty", "cut", "another type"])
def test_a_damaged_value_of_an_asset_is_told_and_removed_by_the_repair(
    workspace: Workspace, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    make(workspace, Maker())
    value = workspace.settings.state / "values" / "assets" / "proposed" / "scores.json"
    write_json(value, {})
    assert verify(capsys)[0] == 0
    value.write_bytes(content)
    status, told = verify(capsys)
    assert (status, "  proposed/scores: " in told, "again" in told) == (1, True, True)
    assert verify(capsys, "--repair")[0] == 0
    assert verify(capsys)[0] == 0


def test_damaged_decisions_are_told_and_restored_from_their_copy_alone(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    make(workspace, Maker())
    workspace.splits.write({"patient 1": "train"})
    for harm in (Path.unlink, emptied):
        harm(workspace.splits.path)
        status, told = verify(capsys)
        assert (status, "splits.copy.json is whole: the next run restores it" in told) == (1, True)
        assert verify(capsys, "--repair")[0] == 0
        assert verify(capsys)[0] == 0
    emptied(workspace.splits.path)
    emptied(workspace.splits.copy)
    assert verify(capsys, "--repair")[0] == 1
    status, told = verify(capsys)
    assert (status, told.count("restore it from a backup") >= 2) == (1, True)
    workspace.splits.copy.unlink()
    write_json(workspace.splits.path, {"patient 1": "train"})
    assert verify(capsys)[0] == 0, "earlier versions kept no copy"


def test_what_is_being_made_is_left_as_it_is(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    made = make(workspace, Maker())
    emptied(made.path / "table.csv")
    before = files_below(made.path)
    with artefact_lock(made.path, made.kind):
        status, told = verify(capsys, "--repair")
    assert (status, "left as it is" in told) == (1, True)
    assert files_below(made.path) == before


def test_nothing_to_verify_is_one_line(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 2
    assert "expected state in" in capsys.readouterr().err
