"""What vouches for an artefact's files: nothing damaged is used, and what is made again is what was lost."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storage.base import file_records, finished
from storage.base.artefacts import Artefact, Artefacts
from storage.base.errors import IntegrityError
from storage.base.fingerprints import file_hash, fingerprint
from storage.base.finished import DONE, FILES, MADE_FROM, SMALL_BYTES
from tests.unit.store_helpers import files_below

MADE_OF = {"plan": "p"}
LARGE = bytes(range(256)) * (SMALL_BYTES // 256 + 1)


class Maker:
    """Writes files of every kind, each unless it is there, and remembers which it wrote."""

    def __init__(self) -> None:
        self.wrote: list[str] = []

    def __call__(self, folder: Path) -> dict[str, int]:
        contents = {
            "table.csv": b"a,b\n1,2\n",
            "weights": LARGE,
            "empty": b"",
            "segs/one/a.npz": b"mask",
            "b.log": b"x",
        }
        self.wrote = [name for name in contents if not (folder / name).is_file()]
        for name in self.wrote:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(contents[name])
        return {"files": len(contents)}


def make(root: Path, maker: Maker, *inseparable: str) -> Artefact:
    return Artefacts(root).make("report", MADE_OF, maker, inseparable)


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "notes").write_text("somebody's")


def a_link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all")


def a_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def a_link_to_a_folder(path: Path) -> None:
    """The folder is somebody else's, and stays."""
    path.unlink()
    path.symlink_to(Path(__file__).parent)


def another_value(path: Path) -> None:
    path.write_text("[]")


HARMS = [
    Path.unlink,
    shortened,
    emptied,
    flipped,
    a_folder,
    a_link_to_nowhere,
    a_link_to_itself,
    a_link_to_a_folder,
    another_value,
]
NOT_FINISHED = [Path.unlink, a_folder, a_link_to_nowhere, a_link_to_itself, a_link_to_a_folder]
"""Of `done.json`: what looks as if it had not been written yet."""


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", ["table.csv", "weights", "segs/one/a.npz", DONE, FILES])
def test_what_is_damaged_is_never_used_and_is_made_again_alone(
    tmp_path: Path, name: str, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    maker = Maker()
    made = make(tmp_path, maker)
    good = files_below(made.path)
    assert set(good) == {*maker.wrote, DONE, FILES, MADE_FROM}
    harm(made.path / name)
    with pytest.raises(IntegrityError, match=r"; make it again$"):
        Artefacts(tmp_path).get(made.reference())
    with caplog.at_level(logging.WARNING):
        again = make(tmp_path, maker)
    assert (again.reused, again.info) == (False, made.info)
    assert files_below(made.path) == good
    if name == FILES:
        assert len(maker.wrote) == 5, "nothing vouched for the others any more"
    else:
        assert maker.wrote == [name] * (name != DONE), "what was whole stays"
    if name != DONE or harm not in NOT_FINISHED:
        assert Path(name).name in caplog.text
    assert make(tmp_path, maker).reused


@pytest.mark.parametrize("harm", HARMS)
def test_an_altered_origin_is_damage_like_any_other(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    maker = Maker()
    made = make(tmp_path, maker)
    good = files_below(made.path)
    harm(made.path / MADE_FROM)
    assert not make(tmp_path, maker).reused
    assert maker.wrote == []
    assert files_below(made.path) == good


@pytest.mark.parametrize("harm", [a_folder, a_link_to_nowhere, a_link_to_itself, a_link_to_a_folder])
def test_both_notes_may_be_damaged_at_once(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    maker = Maker()
    made = make(tmp_path, maker)
    good = files_below(made.path)
    harm(made.path / DONE)
    harm(made.path / FILES)
    assert not make(tmp_path, maker).reused
    assert files_below(made.path) == good


@pytest.mark.parametrize("harm", [emptied, a_link_to_nowhere, a_link_to_itself])
def test_what_lies_in_the_place_of_the_whole_folder_gives_way(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    maker = Maker()
    made = make(tmp_path, maker)
    good = files_below(made.path)
    shutil.rmtree(made.path)
    made.path.touch()
    harm(made.path)
    assert not make(tmp_path, maker).reused
    assert files_below(made.path) == good


def test_a_folder_that_became_a_link_is_not_followed_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    maker = Maker()
    made = make(tmp_path / "root", maker)
    good = files_below(made.path)
    shutil.move(made.path / "segs", tmp_path / "elsewhere")
    (made.path / "segs").symlink_to(tmp_path / "elsewhere")
    emptied(made.path / "table.csv")
    assert not make(tmp_path / "root", maker).reused
    assert (tmp_path / "elsewhere" / "one" / "a.npz").read_bytes() == b"mask"
    assert files_below(made.path) == good


def test_a_file_is_hashed_once_and_again_after_it_was_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def hash_of(path: Path) -> str:
        hashed.append(path.name)
        return file_hash(path)

    monkeypatch.setattr(file_records, "file_hash", hash_of)
    made = make(tmp_path, Maker())
    assert {"weights", "a.npz"} <= set(hashed)
    for touched in (None, "weights", "segs/one/a.npz", None):
        if touched:
            data = (made.path / touched).read_bytes()
            times = (made.path / touched).stat()
            (made.path / touched).write_bytes(data)
            os.utime(made.path / touched, ns=(times.st_atime_ns, times.st_mtime_ns))
        hashed.clear()
        assert make(tmp_path, Maker()).reused
        assert {"weights", "a.npz"} & set(hashed) == ({Path(touched).name} if touched else set())


@pytest.mark.parametrize("harm", [Path.unlink, emptied, flipped, another_value, a_folder, a_link_to_itself])
def test_without_its_memory_of_whole_files_a_result_is_reused_and_damage_found(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    made = make(tmp_path, Maker())
    memory = made.path.with_name(f"{made.path.name}.checked.json")
    assert make(tmp_path, Maker()).reused
    harm(memory)
    assert make(tmp_path, Maker()).reused
    flipped(made.path / "weights")
    assert not make(tmp_path, Maker()).reused


def test_whatever_else_is_damaged_goes_too_when_something_is_made_again(tmp_path: Path) -> None:
    maker = Maker()
    made = make(tmp_path, maker)
    good = files_below(made.path)
    flipped(made.path / "weights")
    (made.path / "table.csv").unlink()
    make(tmp_path, maker)
    assert maker.wrote == ["table.csv", "weights"]
    assert files_below(made.path) == good


@pytest.mark.parametrize(("name", "n_made"), [("weights", 5), ("table.csv", 1)])
def test_files_that_are_made_only_together_are_made_again_together(tmp_path: Path, name: str, n_made: int) -> None:
    maker = Maker()
    made = make(tmp_path, maker, "weigh*")
    emptied(made.path / name)
    make(tmp_path, maker, "weigh*")
    assert len(maker.wrote) == n_made


def test_200_flipped_bytes_in_small_files_are_each_found(tmp_path: Path) -> None:
    made = make(tmp_path, Maker())
    good = files_below(made.path)
    names = [name for name in good if 0 < len(good[name]) <= SMALL_BYTES and "/" not in name and name != MADE_FROM]
    assert len(names) == 4
    rng = np.random.default_rng(5)
    for number in range(200):
        name = names[number % len(names)]
        data = bytearray(good[name])
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        (made.path / name).write_bytes(data)
        with pytest.raises(IntegrityError, match="damaged"):
            Artefacts(tmp_path).get(made.reference())
        (made.path / name).write_bytes(good[name])
    assert Artefacts(tmp_path).get(made.reference()).reused


@pytest.mark.parametrize("text", [None, "{torn", ""])
def test_an_artefact_without_a_readable_origin_is_made_again(tmp_path: Path, text: str | None) -> None:
    maker = Maker()
    path = make(tmp_path, maker).path / MADE_FROM
    path.unlink() if text is None else path.write_text(text)
    assert not make(tmp_path, maker).reused
    assert maker.wrote == []
    assert json.loads(path.read_text()) == MADE_OF


def test_a_maker_killed_while_mending_leaves_unfinished_work(tmp_path: Path) -> None:
    maker = Maker()
    made = make(tmp_path, maker)
    good = files_below(made.path)
    emptied(made.path / "table.csv")

    def killed(folder: Path) -> dict[str, int]:
        assert not (folder / "table.csv").exists()
        assert not (folder / DONE).exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Artefacts(tmp_path).make("report", MADE_OF, killed)
    assert Artefacts(tmp_path).find("report", MADE_OF) is None
    make(tmp_path, maker)
    assert maker.wrote == ["table.csv"]
    assert files_below(made.path) == good


def test_files_that_come_and_go_are_not_vouched_for(tmp_path: Path) -> None:
    maker = Maker()

    def build(folder: Path) -> dict[str, int]:
        (folder / "trainer.lock").write_text("17")
        (folder / "x.1.partial").write_text("left")
        return maker(folder)

    artefacts = Artefacts(tmp_path)
    made = artefacts.make("model", MADE_OF, build)
    (made.path / "trainer.lock").write_text("another process")
    (made.path / "y.1.partial").write_text("a reader's")
    (made.path / "notes.txt").write_text("somebody's")
    assert artefacts.make("model", MADE_OF, build).reused


def test_what_killed_makers_left_half_written_is_gone_once_the_result_is_finished(tmp_path: Path) -> None:
    """Such as the checkpoint of a killed trainer, which may be as large as the result."""
    artefacts = Artefacts(tmp_path)
    (artefacts.folder("model", fingerprint(MADE_OF)) / "segs").mkdir(parents=True)
    for name in ("checkpoint.pt.1-a.partial", "segs/a.npz.1-b.partial"):
        (artefacts.folder("model", fingerprint(MADE_OF)) / name).write_bytes(b"half")
    made = artefacts.make("model", MADE_OF, Maker())
    assert not list(made.path.rglob("*.partial"))


@pytest.mark.parametrize("written", [0, 1])
def test_a_folder_is_finished_with_the_last_of_its_own_files(
    written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A maker killed on the way leaves no folder that says it is finished, whole or damaged."""
    publish, names = finished.write_bytes, []

    def killed(path: Path, data: bytes) -> None:
        if len(names) == written:
            raise KeyboardInterrupt
        names.append(path.name)
        publish(path, data)

    (tmp_path / "table.csv").write_bytes(b"a\n1\n")
    with monkeypatch.context() as during:
        during.setattr(finished, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            finished.write_finished(tmp_path, {"rows": 1})
    with pytest.raises(FileNotFoundError):
        finished.read_finished(tmp_path)
    finished.write_finished(tmp_path, {"rows": 1})
    assert finished.read_finished(tmp_path).info == {"rows": 1}


def test_an_artefact_of_an_earlier_version_is_reused_as_it_is(tmp_path: Path) -> None:
    """Its `done.json` is the maker's facts alone."""
    maker = Maker()
    made = make(tmp_path, maker)
    (made.path / FILES).unlink()
    for facts in ({"score": 0.5}, {}, {"info": {}, "files": 3}):
        (made.path / DONE).write_text(json.dumps(facts))
        found = make(tmp_path, maker)
        assert (found.reused, found.info) == (True, facts)
        assert Artefacts(tmp_path).get(made.reference()).info == facts
    assert not (made.path / FILES).exists(), "no hash is recorded for a file that was not compared"
