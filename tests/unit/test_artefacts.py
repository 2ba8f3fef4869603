"""Fingerprinted results: made once, found again, resumed after a crash, never mixed up."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from storage.base.artefacts import Artefacts
from storage.base.errors import BusyError, FingerprintMismatchError, IntegrityError
from storage.base.fingerprints import fingerprint
from storage.base.finished import DONE, MADE_FROM, write_finished
from storage.base.locks import exclusive_lock

MADE_OF = {"release": "abc", "settings": {"epochs": 2, "sizes": [1, 2]}}


class Builder:
    """Writes one file and counts its calls."""

    def __init__(self, **info: Any) -> None:
        self.calls: list[Path] = []
        self.info = info

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.calls.append(folder)
        (folder / "weights").write_text("heavy")
        return self.info


def test_made_once_then_reused(tmp_path: Path) -> None:
    build = Builder(score=0.5)
    first = Artefacts(tmp_path).make("model", MADE_OF, build)
    second = Artefacts(tmp_path).make("model", dict(reversed(MADE_OF.items())), build)
    assert len(build.calls) == 1
    assert (first.reused, second.reused) == (False, True)
    assert second.fingerprint == first.fingerprint == fingerprint(MADE_OF)
    assert second.info == first.info == {"score": 0.5}
    assert second.path == tmp_path / "model" / first.fingerprint[:16]
    assert (second.path / "weights").read_text() == "heavy"


def test_another_origin_or_kind_is_another_artefact(tmp_path: Path) -> None:
    artefacts, build = Artefacts(tmp_path), Builder()
    one = artefacts.make("model", MADE_OF, build)
    other = artefacts.make("model", {**MADE_OF, "release": "abd"}, build)
    kind = artefacts.make("plan", MADE_OF, build)
    assert len({one.path, other.path, kind.path}) == len(build.calls) == 3


def test_nothing_is_found_before_it_is_made(tmp_path: Path) -> None:
    assert Artefacts(tmp_path).find("model", MADE_OF) is None
    assert not any(tmp_path.iterdir())


def test_a_crash_leaves_no_done_and_the_next_maker_goes_on_from_what_is_there(tmp_path: Path) -> None:
    artefacts = Artefacts(tmp_path)

    def crash(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("first half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        artefacts.make("model", MADE_OF, crash)
    folder = artefacts.folder("model", fingerprint(MADE_OF))
    assert not (folder / DONE).exists()
    assert json.loads((folder / MADE_FROM).read_text()) == MADE_OF
    assert artefacts.find("model", MADE_OF) is None

    def go_on(folder: Path) -> dict[str, Any]:
        return {"found": (folder / "half").read_text()}

    made = artefacts.make("model", MADE_OF, go_on)
    assert not made.reused
    assert made.info == {"found": "first half"}


def test_facts_that_are_no_json_leave_no_done(tmp_path: Path) -> None:
    artefacts = Artefacts(tmp_path)
    with pytest.raises(TypeError):
        artefacts.make("model", MADE_OF, Builder(path=tmp_path))
    assert artefacts.find("model", MADE_OF) is None


def test_a_folder_made_from_something_else_is_refused_with_the_difference(tmp_path: Path) -> None:
    artefacts = Artefacts(tmp_path)
    made = artefacts.make("model", MADE_OF, Builder())
    (made.path / MADE_FROM).write_text(json.dumps({**MADE_OF, "settings": {"epochs": 3, "sizes": [1, 2]}}))
    write_finished(made.path, {})
    with pytest.raises(FingerprintMismatchError, match=r"settings\.epochs: expected 2, found 3") as caught:
        artefacts.make("model", MADE_OF, Builder())
    assert str(made.path) in str(caught.value)
    assert "sizes" not in str(caught.value)


def test_a_second_builder_in_another_process_is_refused_and_named(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from storage.base.artefacts import Artefacts\n"
        "def build(folder):\n"
        "    print('building', flush=True); sys.stdin.readline(); return {'by': 'other'}\n"
        f"Artefacts(pathlib.Path(sys.argv[1])).make('model', {MADE_OF!r}, build)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "building\n"
        build = Builder()
        with pytest.raises(BusyError, match=f"process {other.pid}"):
            Artefacts(tmp_path).make("model", MADE_OF, build)
        assert not build.calls
        other.stdin.write("\n")
        other.stdin.close()
        assert other.wait() == 0
    found = Artefacts(tmp_path).make("model", MADE_OF, build)
    assert (found.reused, found.info, build.calls) == (True, {"by": "other"}, [])


def test_a_builder_that_fails_frees_its_lock(tmp_path: Path) -> None:
    artefacts = Artefacts(tmp_path)
    with pytest.raises(ZeroDivisionError):
        artefacts.make("model", MADE_OF, lambda _: {"score": 1 / 0})
    folder = artefacts.folder("model", fingerprint(MADE_OF))
    with exclusive_lock(folder.with_name(f"{folder.name}.lock"), what="test"):
        pass


def test_a_reference_finds_its_artefact_under_another_root(tmp_path: Path) -> None:
    made = Artefacts(tmp_path / "here").make("model", MADE_OF, Builder(score=1))
    reference = made.reference()
    assert str(tmp_path) not in str(reference)
    (tmp_path / "here").rename(tmp_path / "there")
    found = Artefacts(tmp_path / "there").get(reference)
    assert (found.fingerprint, found.info, found.reused) == (made.fingerprint, made.info, True)
    assert (found.path / "weights").is_file()


def test_a_reference_to_something_gone_or_unfinished_says_what_to_do(tmp_path: Path) -> None:
    for artefacts in (Artefacts(tmp_path), Artefacts(tmp_path, "materialise its asset")):
        made = artefacts.make("model", MADE_OF, Builder())
        (made.path / DONE).unlink()
        with pytest.raises(IntegrityError, match=f"expected a finished model.*; {artefacts.remedy}$"):
            artefacts.get(made.reference())
