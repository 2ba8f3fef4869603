"""Fetching the teacher by URL from a server on loopback: whole, resumed, changed meanwhile, refused."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from pipelines.base.settings import InputError
from pipelines.teacher.downloads import ATTEMPTS, PIECE_BYTES, download

CONTENT = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()


@dataclass
class Served:
    """What the server has, how it misbehaves, and what it was asked."""

    content: bytes = CONTENT
    tag: str = '"v1"'
    breaks_after: list[int] = field(default_factory=list)
    """For each answer to come: bytes after which the connection is cut."""
    status: list[int] = field(default_factory=list)
    """For each answer to come: a status in its place."""
    ranges: list[str | None] = field(default_factory=list)
    """The ranges asked for."""
    sent: int = 0
    url: str = ""


@pytest.fixture
def served() -> Iterator[Served]:
    state = Served()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.ranges.append(wanted)
            if state.status:
                self.send_error(state.status.pop(0))
                return
            start = 0
            if wanted and self.headers.get("If-Range") == state.tag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(state.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(state.content)}")
                self.end_headers()
                return
            body = state.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            if state.tag:
                self.send_header("ETag", state.tag)
            self.end_headers()
            body = body[: state.breaks_after.pop(0)] if state.breaks_after else body
            state.sent += len(body)
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/weights/medsam_vit_b.pth"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(served: Served, folder: Path, sha256: str | None = None) -> tuple[Path, list[str]]:
    said: list[str] = []
    return download(served.url, folder, sha256, said.append, pause_s=0.0), said


def test_a_file_is_fetched_once_with_its_progress_said(served: Served, tmp_path: Path) -> None:
    path, said = fetch(served, tmp_path, hashlib.sha256(CONTENT).hexdigest())
    assert path.name == "medsam_vit_b.pth"
    assert path.read_bytes() == CONTENT
    assert said[-1] == f"{served.url}: {len(CONTENT)} of {len(CONTENT)} bytes"
    assert {file.name for file in path.parent.iterdir()} == {path.name, f"{path.name}.lock"}
    assert fetch(served, tmp_path)[0] == path
    assert len(served.ranges) == 1


def test_a_broken_connection_is_taken_up_where_it_broke(served: Served, tmp_path: Path) -> None:
    served.breaks_after = [1_100_000, 500_000]
    path, said = fetch(served, tmp_path)
    assert path.read_bytes() == CONTENT
    assert served.ranges[0] is None
    starts = [int(str(wanted).removeprefix("bytes=").removesuffix("-")) for wanted in served.ranges[1:]]
    assert 0 <= 1_100_000 - starts[0] < PIECE_BYTES
    assert 0 <= starts[0] + 500_000 - starts[1] < PIECE_BYTES
    assert sum("trying again" in line for line in said) == 2


def test_a_server_that_fails_for_a_while_is_asked_again(served: Served, tmp_path: Path) -> None:
    served.status = [503, 500]
    assert fetch(served, tmp_path)[0].read_bytes() == CONTENT


def test_a_killed_download_goes_on_in_the_next_run(served: Served, tmp_path: Path) -> None:
    served.breaks_after = [400_000] * ATTEMPTS
    with pytest.raises(InputError, match=rf"connection broken {ATTEMPTS} times.*run again to go on from .*\.part"):
        fetch(served, tmp_path)
    served.breaks_after = []
    assert fetch(served, tmp_path)[0].read_bytes() == CONTENT
    assert served.sent <= len(CONTENT) + ATTEMPTS * PIECE_BYTES


def test_a_download_killed_after_its_last_byte_fetches_nothing_again(served: Served, tmp_path: Path) -> None:
    path, _ = fetch(served, tmp_path)
    part = path.with_name(f"{path.name}.part")
    path.rename(part)
    part.with_name(f"{part.name}.etag").write_text(served.tag)
    assert fetch(served, tmp_path)[0].read_bytes() == CONTENT
    assert served.sent == len(CONTENT)


@pytest.mark.parametrize("content", [CONTENT[::-1], CONTENT[:1000]])
def test_a_file_that_changed_meanwhile_is_not_glued_to_the_old_one(
    served: Served, tmp_path: Path, content: bytes
) -> None:
    served.breaks_after = [1_000_000] * ATTEMPTS
    served.tag = '"old"'
    served.content = CONTENT * 3
    with pytest.raises(InputError):
        fetch(served, tmp_path)
    served.breaks_after, served.tag, served.content = [], '"new"', content
    assert fetch(served, tmp_path)[0].read_bytes() == content


def test_a_new_version_cut_short_is_not_taken_up_from_the_old_ones_bytes(served: Served, tmp_path: Path) -> None:
    """The connection breaks before the first byte of the new version, whose tag has come already."""
    path, _ = fetch(served, tmp_path)
    part = path.with_name(f"{path.name}.part")
    path.unlink()
    part.write_bytes(CONTENT[:500_000])
    part.with_name(f"{part.name}.etag").write_text(served.tag)
    served.tag, served.content, served.breaks_after = '"v2"', CONTENT[::-1], [0]
    assert fetch(served, tmp_path)[0].read_bytes() == CONTENT[::-1]


def test_a_file_that_turns_out_to_be_the_wrong_one_is_fetched_anew(served: Served, tmp_path: Path) -> None:
    served.content = CONTENT[::-1]
    wrong, _ = fetch(served, tmp_path)
    served.content, served.tag = CONTENT, '"v2"'
    path, said = fetch(served, tmp_path, hashlib.sha256(CONTENT).hexdigest())
    assert path == wrong
    assert path.read_bytes() == CONTENT
    assert "fetching it again" in said[0]


def test_without_a_tag_a_broken_download_starts_over(served: Served, tmp_path: Path) -> None:
    served.tag, served.breaks_after = "", [1_000_000]
    assert fetch(served, tmp_path)[0].read_bytes() == CONTENT
    assert served.ranges == [None, None]


def test_another_file_than_expected_is_refused_and_not_kept(served: Served, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"expected SHA-256 {'0' * 64}, found {hashlib.sha256(CONTENT).hexdigest()}"):
        fetch(served, tmp_path, "0" * 64)
    assert not [path for path in tmp_path.rglob("*.pth*") if path.suffix in (".pth", ".part")]


def test_what_is_not_there_is_told_at_once(served: Served, tmp_path: Path) -> None:
    served.status = [404]
    with pytest.raises(InputError, match="found status 404; correct MEDSAM_TEACHER"):
        fetch(served, tmp_path)
    assert len(served.ranges) == 1
