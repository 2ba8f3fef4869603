"""Places for blobs: one contract, held by a folder and by an S3 bucket on a server of the tests' own."""

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from storage.base.blobs import Blobs, LocalBlobs, open_blobs
from storage.base.errors import BusyError, StorageError
from tests.unit.s3_server import BUCKET, s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "folder":
        return open_blobs(tmp_path / "deep" / "place")
    request.getfixturevalue("s3")
    return open_blobs(f"s3://{BUCKET}/{tmp_path.name}/place")


def test_what_is_put_is_read_whole_and_by_range(place: Blobs) -> None:
    place.put("a/b", b"0123456789")
    assert place.read("a/b") == b"0123456789"
    assert place.size("a/b") == 10
    opened = place.open("a/b")
    assert opened.n_bytes == 10
    assert opened.read(3, 4) == b"3456"
    assert opened.read(8, 10) == b"89", "a range ends where the blob ends"
    assert opened.read(0, 0) == b""


def test_put_replaces(place: Blobs) -> None:
    place.put("a", b"old, and longer")
    place.put("a", b"new")
    assert place.read("a") == b"new"


def test_what_is_not_there(place: Blobs) -> None:
    assert place.size("a") is None
    assert place.read_version("a") is None
    assert place.sizes() == {}
    place.delete("a")
    for use in (place.read, place.open):
        with pytest.raises(FileNotFoundError):
            use("a")


def test_create_publishes_once(place: Blobs) -> None:
    assert place.create("x/a", b"first")
    assert not place.create("x/a", b"second")
    assert place.read("x/a") == b"first"


def test_replace_wants_the_version_that_was_read(place: Blobs) -> None:
    place.replace("a", b"1", None)
    found = place.read_version("a")
    assert found is not None
    assert found[0] == b"1"
    place.replace("a", b"2", found[1])
    for stale in (found[1], None):
        with pytest.raises(BusyError, match="replaced since"):
            place.replace("a", b"3", stale)
    assert place.read("a") == b"2"


def test_sizes_are_of_the_blobs_below_a_name(place: Blobs) -> None:
    for key in ("c/1", "c/10/x", "c1", "b"):
        place.put(key, key.encode())
    assert place.sizes() == {"b": 1, "c/1": 3, "c/10/x": 6, "c1": 2}
    assert place.sizes("c") == {"c/1": 3, "c/10/x": 6}
    assert place.below("c").sizes() == {"1": 3, "10/x": 6}


def test_a_place_below_a_place(place: Blobs) -> None:
    inner = place.below("CT")
    inner.put("imgs/c/0", b"shard")
    assert place.read("CT/imgs/c/0") == b"shard"
    assert open_blobs(inner.url).read("imgs/c/0") == b"shard"


def test_delete(place: Blobs) -> None:
    place.put("a", b"1")
    place.put("b", b"2")
    place.delete("a")
    assert place.sizes() == {"b": 1}


def test_a_place_pickles(place: Blobs) -> None:
    place.put("a", b"1")
    assert pickle.loads(pickle.dumps(place)).read("a") == b"1"


def test_a_partial_file_and_the_lock_are_no_blobs(tmp_path: Path) -> None:
    place = LocalBlobs(tmp_path)
    (tmp_path / "imgs.77-ab.partial").write_bytes(b"half")
    with place.exclusive("test"), pytest.raises(BusyError), place.shared("test"):
        pass
    assert place.sizes() == {}
    assert place.sweep() == 1
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


def a_folder(path: Path) -> None:
    path.mkdir()
    (path / "x").write_bytes(b"somebody's")


def a_link_to_nowhere(path: Path) -> None:
    path.symlink_to("/nowhere/at/all")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def a_link_to_a_folder(path: Path) -> None:
    path.symlink_to(Path(__file__).parent)


@pytest.mark.parametrize("harm", [a_folder, a_link_to_nowhere, a_link_to_itself, a_link_to_a_folder])
@pytest.mark.parametrize("publish", [LocalBlobs.put, LocalBlobs.create])
def test_what_lies_in_the_place_of_a_blob_is_none_and_gives_way(
    tmp_path: Path, harm: Callable[[Path], None], publish: Callable[[LocalBlobs, str, bytes], object]
) -> None:
    place = LocalBlobs(tmp_path)
    (tmp_path / "imgs" / "c").mkdir(parents=True)
    harm(tmp_path / "imgs" / "c" / "0")
    assert place.size("imgs/c/0") is None
    assert place.read_version("imgs/c/0") is None
    for use in (place.read, place.open):
        with pytest.raises(FileNotFoundError, match="imgs/c/0"):
            use("imgs/c/0")
    publish(place, "imgs/c/0", b"shard")
    assert place.read("imgs/c/0") == b"shard"
    assert not (tmp_path / "imgs" / "c" / "0").is_symlink()
    assert Path(__file__).is_file(), "what a link leads to stays"


@pytest.mark.parametrize("harm", [Path.touch, a_link_to_nowhere, a_link_to_itself])
def test_what_lies_in_the_place_of_a_folder_of_blobs_gives_way(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    place = LocalBlobs(tmp_path)
    harm(tmp_path / "imgs")
    assert place.size("imgs/c/0") is None
    assert place.sizes("imgs") == {}
    harm(tmp_path / "gts")
    place.put("gts/c/0", b"shard")
    assert place.read("gts/c/0") == b"shard"


def test_deleting_a_blob_leaves_the_plain_file_above_its_key(place: Blobs) -> None:
    place.put("imgs", b"a blob of its own")
    place.delete("imgs/c/0")
    assert place.sizes() == {"imgs": 17}


@pytest.mark.parametrize("harm", [a_folder, a_link_to_nowhere, a_link_to_itself, a_link_to_a_folder])
def test_deleting_a_blob_leaves_what_lies_in_its_place_and_is_none(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    harm(tmp_path / "0")
    before = (tmp_path / "0").lstat()
    LocalBlobs(tmp_path).delete("0")
    assert (tmp_path / "0").lstat() == before


def test_an_open_file_outlives_its_name(tmp_path: Path) -> None:
    place = LocalBlobs(tmp_path)
    place.put("a", b"content")
    opened = place.open("a")
    place.delete("a")
    assert opened.read(0, 7) == b"content"


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_not_there_is_told() -> None:
    with pytest.raises(StorageError, match="s3://nowhere/a: expected an answer from S3, found: NoSuchBucket"):
        open_blobs("s3://nowhere").read("a")


def test_a_server_that_is_gone_is_told() -> None:
    with s3_server():
        place = open_blobs(f"s3://{BUCKET}")
        place.put("a", b"1")
        blob = place.open("a")
        environment = dict(os.environ)
    with mock.patch.dict(os.environ, environment), pytest.raises(StorageError, match=r"medsam/a: .* check the bucket"):
        blob.read(0, 1)


def test_a_url_of_another_kind_is_refused() -> None:
    with pytest.raises(StorageError, match="'ftp'"):
        open_blobs("ftp://host/stores")
