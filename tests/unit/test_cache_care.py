"""`medsam verify` over teacher caches: told, withdrawn by its repair unless somebody reads, made again part by part."""

import errno
import os
import shutil
import time
from pathlib import Path

import pytest

from pipelines.base.progress import ByteProgress
from pipelines.base.settings import read_settings
from pipelines.base.workspace import Workspace
from pipelines.cli import main
from pipelines.teacher.cache_care import RECENT_S, delete_unused, list_caches, pin, pin_planned
from pipelines.teacher.cache_verification import verify_caches
from storage.answers.cache_locks import reading_access
from storage.answers.cache_writer import missing_parts
from storage.base.atomic import write_json
from storage.base.blobs import LocalBlobs
from storage.shards.fragments import MANIFEST
from tests.unit.store_helpers import files_below
from tests.unit.test_teacher_cache import SPEC, build, plan

DIGEST = "0123456789abcdef" * 4
SHARD = "narrow/c/3/0/0/0"
"""Of the second part."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A published cache that the value of an asset names."""
    monkeypatch.setenv("MEDSAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MEDSAM_PROFILE", "sample")
    workspace = Workspace(read_settings())
    workspace.artefacts.root.mkdir(parents=True)
    value = {"mode": "cached", "answers": "embeddings", "cache": DIGEST, "fingerprint": "f"}
    write_json(workspace.settings.state / "values" / "assets" / "teacher_embeddings.json", value)
    folder = workspace.cache_folder("embeddings") / DIGEST[:16]
    build(folder)
    return folder


def verify(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    status = main(["verify", *arguments])
    return status, capsys.readouterr().out


def test_damage_is_told_withdrawn_and_made_again_to_the_byte(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = files_below(cache)
    assert verify(capsys)[0] == 0
    (cache / SHARD).write_bytes(good[SHARD][:-1] + bytes([good[SHARD][-1] ^ 1]))
    status, told = verify(capsys)
    assert (status, f"  {SHARD}: expected sha256" in told) == (1, True)
    status, told = verify(capsys, "--repair")
    assert (status, "makes 1 parts again and publishes: part-00001" in told) == (0, True)
    status, told = verify(capsys)
    assert (status, "expected a published cache, found none" in told) == (1, True)
    assert [part.part_id for part in missing_parts(LocalBlobs(cache), SPEC, plan())] == ["part-00001"]
    build(cache)
    assert files_below(cache) == good
    assert verify(capsys)[0] == 0


def test_a_cache_that_is_gone_is_damage_to_the_check_that_names_it(cache: Path) -> None:
    shutil.rmtree(cache)
    (found,) = verify_caches(Workspace(read_settings()), list[str]().append, repair=False, names={cache.name})
    assert (found.what, found.problem) == (
        f"teacher cache {cache.name}",
        "expected a cache, found none; the next run makes it",
    )


def test_a_file_that_cannot_be_read_is_damage_and_stops_nothing(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = LocalBlobs.read

    def broken(blobs: LocalBlobs, key: str) -> bytes:
        if key == SHARD:
            raise OSError(errno.EIO, "Input/output error")
        return read(blobs, key)

    monkeypatch.setattr(LocalBlobs, "read", broken)
    status, told = verify(capsys)
    assert (status, "found that they cannot be read: Input/output error" in told) == (1, True)
    assert "1 damaged, 0 repaired or withdrawn, 1 left" in told


@pytest.mark.parametrize("content", [b"", b'{"cache": "0123', b"[]"], ids=["empty", "cut", "another type"])
def test_while_the_record_of_use_is_damaged_no_cache_of_its_kind_is_deleted(cache: Path, content: bytes) -> None:
    workspace, said = Workspace(read_settings()), list[str]()
    pin(workspace, "embeddings", "proposed", DIGEST)
    (record,) = cache.parents[1].joinpath("pins").glob("*.json")
    record.write_bytes(content)
    long_ago = time.time() - 2 * RECENT_S
    for path in (cache, *cache.rglob("*")):
        os.utime(path, (long_ago, long_ago))
    assert delete_unused(workspace, said.append, dry_run=False) == 0
    assert "used by proposed, perhaps: " in said[0]
    assert cache.is_dir()
    pin_planned(workspace, "embeddings", "proposed", DIGEST)
    assert list_caches(workspace)["pinned_by"].tolist() == ["proposed"]


def test_a_cache_that_is_read_is_left_as_it_is(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cache / SHARD).unlink()
    before = files_below(cache)
    with reading_access(LocalBlobs(cache)):
        status, told = verify(capsys, "--repair")
    assert (status, "left as it is: the teacher cache" in told) == (1, True)
    assert files_below(cache) == before


def test_a_lost_manifest_is_told_where_a_value_names_the_cache(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(cache.with_name("f" * 16))
    for folder in (cache, cache.with_name("f" * 16)):
        (folder / MANIFEST).unlink()
    status, told = verify(capsys)
    assert status == 1
    assert "1 damaged, 0 repaired or withdrawn, 1 left" in told, "the other one may never have been published"
    assert f"teacher_embeddings {'f' * 16}: not published" in told


def test_a_cache_of_another_format_costs_itself_alone(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = cache.with_name("f" * 16)
    build(other)
    (cache / MANIFEST).write_bytes(b"{}")
    (other / SHARD).unlink()
    status, told = verify(capsys)
    assert status == 1
    assert f"  {MANIFEST}: " in told
    assert f"  {SHARD}: expected" in told


def test_a_value_that_cannot_be_read_stops_no_verification(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cache.parents[2] / "values" / "assets" / "teacher_embeddings.json").write_text("{torn")
    status, told = verify(capsys)
    assert (status, "materialise teacher_embeddings again" in told) == (1, True)
    assert "1 damaged, 0 repaired or withdrawn, 1 left" in told, "the cache itself is whole"


def test_progress_is_said_in_bytes() -> None:
    said: list[str] = []
    progress = ByteProgress("CT", said.append, every_s=0.0)
    for done in (1, 3, 4):
        progress(done, 4)
    progress(0, 0)
    assert said == [f"CT: {done} of 4 bytes read, {25 * done} %" for done in (1, 3, 4)]
    quiet = ByteProgress("CT", said.append, every_s=3600.0)
    quiet(1, 2)
    assert len(said) == 3
