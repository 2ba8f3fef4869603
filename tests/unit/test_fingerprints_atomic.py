"""Fingerprints say when two things are the same; atomic files are there whole or not at all; locks exclude."""

import errno
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsam_core.base.files import atomic_file as model_file
from storage.base.atomic import (
    atomic_file,
    create_bytes,
    read_json,
    remove_partials,
    write_bytes,
    write_json,
    write_parquet,
)
from storage.base.errors import BusyError, FingerprintMismatchError, IntegrityError
from storage.base.fingerprints import (
    array_hash,
    canonical_json,
    combine,
    differences,
    file_hash,
    fingerprint,
    require_same,
)
from storage.base.locks import exclusive_lock, shared_lock, waiting_lock

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2, width=16) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.text("abc", max_size=2), PLAIN, max_size=4)


def test_file_hash_is_of_the_bytes(tmp_path: Path) -> None:
    """SHA-256 of `abc`, FIPS 180-2 appendix B.1."""
    (tmp_path / "file").write_bytes(b"abc")
    assert file_hash(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


class TestFingerprint:
    def test_known_value(self) -> None:
        """SHA-256 of `{"a":[1,null],"b":"\\u00e9"}`, by sha256sum."""
        value = {"b": "é", "a": (1, None)}
        assert canonical_json(value) == '{"a":[1,null],"b":"\\u00e9"}'
        assert fingerprint(value) == "fdaff1fbea8b4eb51e48128b1db50baa5f3ff6285a4d66f88d8573babc400fd4"

    def test_key_order_does_not_matter_but_list_order_does(self) -> None:
        assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
        assert fingerprint([1, 2]) != fingerprint([2, 1])

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_not_a_number(self, value: float) -> None:
        with pytest.raises(ValueError, match="JSON"):
            fingerprint({"a": value})

    @pytest.mark.parametrize("value", [np.int64(1), Path("a"), {1, 2}, b"a"])
    def test_other_types(self, value: Any) -> None:
        with pytest.raises(TypeError):
            fingerprint({"a": value})

    @given(MAPPINGS)
    def test_survives_a_round_trip_through_json(self, value: dict[str, Any]) -> None:
        assert fingerprint(json.loads(json.dumps(value))) == fingerprint(value)


class TestDifferences:
    @given(MAPPINGS, MAPPINGS)
    def test_empty_exactly_when_fingerprints_agree(self, one: dict[str, Any], other: dict[str, Any]) -> None:
        assert (differences(one, other) == []) == (fingerprint(one) == fingerprint(other))
        assert differences(one, one) == []

    def test_tuples_equal_what_json_reads_back(self) -> None:
        value = {"order": ("z", "y"), "nested": {"deep": (1, (2,))}}
        assert differences(value, json.loads(json.dumps(value))) == []

    @pytest.mark.parametrize(("one", "other"), [(1, 1.0), (1, True), (0, False), (0, None), ("1", 1), ({}, [])])
    def test_values_that_python_may_call_equal(self, one: Any, other: Any) -> None:
        assert len(differences({"a": one}, {"a": other})) == 1

    def test_every_leaf_is_listed(self) -> None:
        expected = {"a": 1, "b": {"c": 2, "d": 3}, "same": [1]}
        found = {"b": {"c": 5, "e": 6}, "same": [1], "f": "g"}
        assert differences(expected, found) == [
            "a: expected 1, found nothing",
            "b.c: expected 2, found 5",
            "b.d: expected 3, found nothing",
            "b.e: expected nothing, found 6",
            "f: expected nothing, found 'g'",
        ]

    def test_require_same(self) -> None:
        require_same("cache", {"a": 1}, {"a": 1}, "delete it")
        with pytest.raises(FingerprintMismatchError) as caught:
            require_same("cache", {"a": 1, "b": 2}, {"a": 3}, "delete it")
        for part in ("cache", "a: expected 1, found 3", "b: expected 2, found nothing", "delete it"):
            assert part in str(caught.value)


class TestHashes:
    def test_array_hash_covers_name_dtype_shape_and_values(self) -> None:
        base = np.arange(6, dtype=np.int32)
        variants: list[dict[str, Any]] = [
            {"a": base},
            {"b": base},
            {"a": base.astype(np.int64)},
            {"a": base.astype(">i4")},
            {"a": base.view(np.uint32)},
            {"a": base.reshape(2, 3)},
            {"a": base.reshape(3, 2)},
            {"a": base + 1},
            {"a": base, "b": base},
            {"a": base[:0]},
            {},
        ]
        assert len({array_hash(arrays) for arrays in variants}) == len(variants)

    def test_array_hash_ignores_memory_layout_and_order(self) -> None:
        array = np.arange(24).reshape(2, 3, 4)
        assert array_hash({"a": np.asfortranarray(array)}) == array_hash({"a": array})
        assert array_hash({"a": array[:, ::2]}) == array_hash({"a": array[:, ::2].copy()})
        assert array_hash({"a": array, "b": array[0]}) == array_hash({"b": array[0], "a": array})

    @pytest.mark.parametrize("array", [np.array([True, False]), np.zeros((0, 4)), np.array(3), np.array([1.5])])
    def test_array_hash_takes_any_numbers(self, array: Any) -> None:
        assert len(array_hash({"a": array})) == 64

    @given(st.lists(st.text("a\n1:", max_size=4), max_size=4), st.lists(st.text("a\n1:", max_size=4), max_size=4))
    def test_combine_tells_sequences_apart(self, one: list[str], other: list[str]) -> None:
        assert (combine(one) == combine(other)) == (one == other)

    def test_combine_takes_an_iterator(self) -> None:
        assert combine(iter(["a", "b"])) == combine(["a", "b"])


def _publish_for_models(path: Path, data: bytes) -> None:
    with model_file(path) as file:
        file.write(data)


class TestAtomicFile:
    @pytest.mark.parametrize("publish", [write_bytes, create_bytes, _publish_for_models])
    def test_the_content_is_on_the_device_before_the_name_and_the_name_at_the_end(
        self, publish: Callable[[Path, bytes], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, data, flushed = tmp_path / "file.bin", b"x" * 10_000, []

        def fsync(descriptor: int) -> None:
            status = os.fstat(descriptor)
            whole = stat.S_ISREG(status.st_mode) and status.st_size == len(data)
            flushed.append(("folder" if stat.S_ISDIR(status.st_mode) else whole, path.exists()))

        monkeypatch.setattr(os, "fsync", fsync)
        publish(path, data)
        assert flushed == [(True, False), ("folder", True)]
        assert path.read_bytes() == data

    def test_appears_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "file.bin"
        with atomic_file(path) as file:
            file.write(b"first")
            assert not path.exists()
        assert path.read_bytes() == b"first"
        assert [entry.name for entry in path.parent.iterdir()] == ["file.bin"]

    def test_an_error_leaves_the_old_file_and_nothing_else(self, tmp_path: Path) -> None:
        path = tmp_path / "file.bin"
        write_bytes(path, b"old")

        def write_half() -> None:
            with atomic_file(path) as file:
                file.write(b"half")
                raise RuntimeError

        with pytest.raises(RuntimeError):
            write_half()
        assert path.read_bytes() == b"old"
        assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]

    def test_a_killed_writer_leaves_only_a_partial_file(self, tmp_path: Path) -> None:
        code = (
            "import os, sys, pathlib; from storage.base.atomic import atomic_file\n"
            "with atomic_file(pathlib.Path(sys.argv[1])) as file:\n"
            "    file.write(b'half'); file.flush(); os.kill(os.getpid(), 9)\n"
        )
        path = tmp_path / "sub" / "file.bin"
        write_bytes(path, b"old")
        ended = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
        assert ended.returncode == -9
        assert path.read_bytes() == b"old"
        assert len(list(path.parent.iterdir())) == 2
        assert remove_partials(tmp_path) == 1
        assert [entry.name for entry in path.parent.iterdir()] == ["file.bin"]

    def test_threads_do_not_share_a_temporary_file(self, tmp_path: Path) -> None:
        path, meeting = tmp_path / "file.bin", threading.Barrier(4)

        def write(byte: bytes) -> None:
            with atomic_file(path) as file:
                meeting.wait(timeout=20)
                file.write(byte * 1000)

        threads = [threading.Thread(target=write, args=(b"%d" % n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        data = path.read_bytes()
        assert len(data) == 1000
        assert len(set(data)) == 1
        assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]

    def test_json(self, tmp_path: Path) -> None:
        path = tmp_path / "value.json"
        value = {"b": [1, None, "é"], "a": 0.1}
        write_json(path, value)
        assert read_json(path) == value
        assert path.read_text().index('"a"') < path.read_text().index('"b"')
        with pytest.raises(ValueError, match="JSON"):
            write_json(path, {"a": float("nan")})
        assert read_json(path) == value

    @pytest.mark.parametrize("data", [b"", b'{"a": 1', b"\xff\xfe"])
    def test_torn_json(self, tmp_path: Path, data: bytes) -> None:
        path = tmp_path / "value.json"
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match="expected JSON"):
            read_json(path)

    def test_parquet(self, tmp_path: Path) -> None:
        table = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}, index=[5, 6])
        write_parquet(tmp_path / "table.parquet", table)
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "table.parquet"), table.reset_index(drop=True))
        assert [entry.name for entry in tmp_path.iterdir()] == ["table.parquet"]


class TestLocks:
    HOLD = (
        "import sys, pathlib; from storage.base.locks import exclusive_lock\n"
        "with exclusive_lock(pathlib.Path(sys.argv[1]), what='store'):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )

    def hold(self, path: Path) -> subprocess.Popen[bytes]:
        """Start a process that holds the lock until its input is closed or it is killed."""
        process = subprocess.Popen(
            [sys.executable, "-c", self.HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        return process

    def test_another_process_is_kept_out_and_told_who_holds_it(self, tmp_path: Path) -> None:
        path = tmp_path / "sub" / "lock"
        with self.hold(path) as process:
            told = f"store is in use by process {process.pid};"
            with pytest.raises(BusyError, match=told), exclusive_lock(path, what="store"):
                pass
            process.kill()
        with exclusive_lock(path, what="store"):  # the kernel has freed it
            assert path.read_text() == f"{os.getpid()}\n{socket.gethostname()}"

    def test_a_holder_on_another_machine_is_named_with_it(self, tmp_path: Path) -> None:
        """A shared disk locks across machines, where a process id alone names a stranger."""
        path = tmp_path / "lock"
        with self.hold(path) as process:
            path.write_text("12\nother-machine")
            with pytest.raises(BusyError, match="store is in use by process 12 on other-machine;"):
                exclusive_lock(path, what="store").__enter__()
            path.write_text("12")
            with pytest.raises(BusyError, match="in use by process 12;"), exclusive_lock(path, what="store"):
                pass
            process.kill()

    def test_is_freed_after_an_error(self, tmp_path: Path) -> None:
        path = tmp_path / "lock"
        with pytest.raises(RuntimeError), exclusive_lock(path, what="store"):
            raise RuntimeError
        with exclusive_lock(path, what="store"):
            pass

    def test_excludes_within_a_process(self, tmp_path: Path) -> None:
        path = tmp_path / "lock"
        with exclusive_lock(path, what="store"), pytest.raises(BusyError), exclusive_lock(path, what="store"):
            pass

    def test_waiting_lock_waits(self, tmp_path: Path) -> None:
        path, entered = tmp_path / "lock", threading.Event()

        def wait() -> None:
            with waiting_lock(path):
                entered.set()

        with exclusive_lock(path, what="store"):
            waiter = threading.Thread(target=wait)
            waiter.start()
            assert not entered.wait(0.2)
        waiter.join(timeout=20)
        assert entered.is_set()

    def test_only_sharers_enter_beside_each_other(self, tmp_path: Path) -> None:
        path = tmp_path / "lock"
        for held in (exclusive_lock(path, what="store"), waiting_lock(path)):
            with held:
                for refused in (exclusive_lock, shared_lock):
                    with pytest.raises(BusyError), refused(path, what="store"):
                        pass
        beside = shared_lock(path, what="store"), shared_lock(path, what="store")
        with beside[0], beside[1], pytest.raises(BusyError), exclusive_lock(path, what="store"):
            pass


def test_an_error_names_the_final_file_and_not_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path, *_arguments: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "open", read_only)
    with pytest.raises(OSError, match="Read-only") as error:
        write_bytes(tmp_path / "a.json", b"one")
    assert error.value.filename == str(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["a" * 255, "2DBox_US_" + "1.2.840." * 28 + ".npz", "超" * 85, "x" + "é" * 127])
def test_a_file_of_the_longest_legal_name_is_published(name: str, tmp_path: Path) -> None:
    assert len(os.fsencode(name)) <= 255
    write_bytes(tmp_path / name, b"one")
    assert not create_bytes(tmp_path / name, b"two")
    with model_file(tmp_path / name) as file:
        (partial,) = (path.name for path in tmp_path.iterdir() if path.name != name)
        assert partial.endswith(".partial")
        file.write(b"three")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"three")]


def test_a_file_whose_name_is_in_another_encoding_is_published(tmp_path: Path) -> None:
    name = os.fsdecode("超声".encode("gbk") + b"x" * 240)
    write_bytes(tmp_path / name, b"one")
    with model_file(tmp_path / name) as file:
        file.write(b"two")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"two")]


def test_two_files_of_one_beginning_are_written_side_by_side(tmp_path: Path) -> None:
    paths = [tmp_path / ("a" * 254 + ending) for ending in "xy"]
    for writer in (atomic_file, model_file):
        with writer(paths[0]) as first, writer(paths[1]) as second:
            first.write(b"x")
            second.write(b"y")
        assert [path.read_bytes() for path in paths] == [b"x", b"y"]
