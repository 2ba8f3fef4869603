"""Records of decisions survive whatever happens to one of their two files, and are never made anew in silence."""

import logging
from pathlib import Path

import pytest

from storage.base import decisions
from storage.base.decisions import Decisions, text_list, text_map
from storage.base.errors import IntegrityError

SPLITS = {"patient 1": "train", "patient 2": "test"}


@pytest.fixture
def record(tmp_path: Path) -> Decisions[dict[str, str]]:
    made = Decisions(tmp_path / "state" / "splits.json", text_map)
    made.write(SPLITS)
    return made


def test_nothing_recorded_is_none(tmp_path: Path) -> None:
    assert Decisions(tmp_path / "splits.json", text_map).read() is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("which", ["path", "copy"])
def test_a_record_cut_at_any_length_is_read_from_the_other_and_mended(
    record: Decisions[dict[str, str]], which: str, caplog: pytest.LogCaptureFixture
) -> None:
    path: Path = getattr(record, which)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert record.read() == SPLITS, length
        assert path.read_bytes() in (whole, whole[:-1]), "a cut line end takes nothing away"
    if which == "path":
        assert "splits.copy.json is used" in caplog.text


@pytest.mark.parametrize("content", [b"\0" * 40, b"null", b"[]", b"3", b'{"patient 1": 1}', b"\xff\xfe", b"<html>"])
def test_other_content_is_no_record(record: Decisions[dict[str, str]], content: bytes) -> None:
    record.path.write_bytes(content)
    assert record.read() == SPLITS
    record.path.write_bytes(content)
    record.copy.write_bytes(content)
    for _ in range(2):
        with pytest.raises(IntegrityError, match=r"restore one of them from a backup\. Do not remove them"):
            record.read()
    assert record.path.read_bytes() == content


def test_a_removed_record_comes_back(record: Decisions[dict[str, str]], caplog: pytest.LogCaptureFixture) -> None:
    """So that who removes a damaged one takes nobody back in who was erased."""
    record.path.unlink()
    with caplog.at_level(logging.WARNING):
        assert record.read() == SPLITS
    assert "damaged or missing" in caplog.text
    assert record.path.is_file()


def test_a_record_of_before_copies_were_kept_gets_one(tmp_path: Path) -> None:
    (tmp_path / "withdrawn.json").write_text('["a", "b"]')
    record = Decisions(tmp_path / "withdrawn.json", text_list)
    assert record.read() == ["a", "b"]
    record.path.write_bytes(b"")
    assert record.read() == ["a", "b"]


def test_one_of_the_two_is_whole_at_every_moment_of_writing(
    record: Decisions[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies between the two files, or within the first, leaves the record before or after."""
    write, states = decisions.write_json, []

    def dying(path: Path, value: object) -> None:
        states.append(record.read())
        write(path, value)
        states.append(record.read())

    later = {**SPLITS, "patient 3": "train"}
    monkeypatch.setattr(decisions, "write_json", dying)
    record.write(later)
    assert states == [SPLITS, SPLITS, SPLITS, later]
