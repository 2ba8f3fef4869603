"""A zip archive of npy arrays from an untrusted source: headers first, payload only when they hold.

What belongs here: opening, header checks, inflating. Not here: which arrays a case has (`storage.npz_source`).

Pickled arrays are never opened, a header's promise is compared with a limit and with the member's size before a payload
byte is inflated, and the CRC-32 of every member read is verified.
"""

import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, cast

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from storage.errors import BadSampleError

_CHUNK_BYTES: Final = 1 << 20
_PIECE_BYTES: Final = 1 << 20
_LOCAL_HEADER: Final = 30
"""Bytes of a zip member's local header; its last four are the lengths of its name and extra field (APPNOTE 4.3.7)."""

_HEADER_READERS: Final = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class Header:
    """What an npy member promises."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    offset: int
    """Bytes of the member before its payload."""

    @property
    def n_bytes(self) -> int:
        """Bytes of the payload."""
        return math.prod(self.shape) * self.dtype.itemsize


def reject(code: str, message: str) -> NoReturn:
    """Give up on a file.

    Raises:
        BadSampleError: Always; without the cause, whose traceback would name this machine's paths.
    """
    raise BadSampleError(code, message) from None


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive for the block and turn whatever goes wrong with its bytes into a reason code.

    Raises:
        BadSampleError: `unreadable`, `truncated` or `not_npz`.
    """
    try:
        with _opened(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, UnicodeDecodeError) as error:
        reject("truncated", f"expected an undamaged archive, found: {error}; fetch the file again")
    except (OSError, NotImplementedError, RuntimeError) as error:
        found = getattr(error, "strerror", None) or str(error)
        reject("unreadable", f"expected a readable file, found: {found}; check its access rights and the disk")


def _opened(path: Path) -> zipfile.ZipFile:
    """Open an archive, telling a damaged one from a file that never was one by the first bytes."""
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        with path.open("rb") as file:
            start = file.read(4)
        if not b"PK".startswith(start[:2]):
            reject("not_npz", f"expected a zip archive, found a file that begins with {start!r}; convert or remove it")
        raise


def read_headers(archive: zipfile.ZipFile, names: Iterable[str], max_bytes: int) -> dict[str, Header]:
    """Return the checked header of each named array that the archive holds, in the order of `names`.

    Args:
        archive: The open archive.
        names: Array names, without `.npy`.
        max_bytes: Most payload bytes that these arrays may promise together.

    Raises:
        BadSampleError: `not_npz`, `unreadable`, `pickled`, `too_large` or `truncated`.
    """
    members = set(archive.namelist())
    if not any(member.endswith(".npy") for member in members):
        reject("not_npz", f"expected npy members, found {sorted(members)[:9]}; convert or remove the file")
    headers = {name: _read_header(archive, name) for name in names if f"{name}.npy" in members}
    promised = sum(header.n_bytes for header in headers.values())
    if promised > max_bytes:
        reject(
            "too_large",
            f"expected at most {max_bytes} array bytes, found headers that promise {promised}; "
            "raise the source's max_case_bytes or split the case",
        )
    _check_sizes(archive, headers)
    return headers


def _read_header(archive: zipfile.ZipFile, name: str) -> Header:
    method = archive.getinfo(f"{name}.npy").compress_type
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        reject("unreadable", f"{name}: expected a stored or deflated member, found method {method}; convert the file")
    with archive.open(f"{name}.npy") as file:
        try:
            version = np.lib.format.read_magic(file)
            if version not in _HEADER_READERS:
                reject("not_npz", f"{name}: expected npy format 1.0 or 2.0, found {version}; use numpy.savez")
            shape, fortran_order, dtype = _HEADER_READERS[version](file)
        except (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError) as error:
            reject("not_npz", f"{name}: expected an npy header, found: {error}; write the file with numpy.savez")
        if dtype.hasobject:
            reject("pickled", f"{name}: expected numbers, found dtype {dtype}; write it as a numeric array")
        if min(shape, default=0) < 0:
            reject("not_npz", f"{name}: expected sizes from 0, found {shape}; write the file with numpy.savez")
        return Header(shape, fortran_order, dtype, file.tell())


def _check_sizes(archive: zipfile.ZipFile, headers: Mapping[str, Header]) -> None:
    for name, header in headers.items():
        held = archive.getinfo(f"{name}.npy").file_size - header.offset
        if held != header.n_bytes:
            reject(
                "truncated",
                f"{name}: expected {header.n_bytes} bytes for shape {header.shape}, found {held}; fetch the file again",
            )


def read_array(archive: zipfile.ZipFile, name: str, header: Header) -> npt.NDArray[Any]:
    """Inflate one member into a C-ordered array in the machine's byte order; its CRC-32 is verified.

    A member that holds more than its header promises is stopped there.

    Raises:
        EOFError, zipfile.BadZipFile, zlib.error: If its bytes are damaged; `open_archive` gives them their code.
    """
    member = archive.getinfo(f"{name}.npy")
    buffer = np.empty(header.n_bytes, dtype=np.uint8)
    checksum, filled = 0, -header.offset
    for piece in _inflated(cast("str", archive.filename), member):
        checksum = isal_zlib.crc32(piece, checksum)
        payload = piece[max(-filled, 0) :] if filled < 0 else piece
        begin = max(filled, 0)
        filled += len(piece)
        if filled > header.n_bytes:
            raise zipfile.BadZipFile(f"{name} holds more than the {header.n_bytes} bytes of its shape")
        buffer[begin : begin + len(payload)] = np.frombuffer(payload, np.uint8)
    if filled < header.n_bytes:
        raise EOFError(f"{name} ends after {filled} of {header.n_bytes} bytes")
    if checksum != member.CRC:
        raise zipfile.BadZipFile(f"{name} fails its CRC-32")
    array = buffer.view(header.dtype).reshape(header.shape, order="F" if header.fortran_order else "C")
    return np.ascontiguousarray(array, dtype=header.dtype.newbyteorder("="))


def _inflated(archive: str, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the content of a member in pieces, by a faster inflate than zlib's."""
    stored = member.compress_type == zipfile.ZIP_STORED
    inflate = isal_zlib.decompressobj(-isal_zlib.MAX_WBITS)
    with Path(archive).open("rb") as file:
        file.seek(member.header_offset)
        local = file.read(_LOCAL_HEADER)
        # Its name and extra field may be longer than in the directory at the archive's end.
        file.seek(sum(struct.unpack("<HH", local[-4:])), os.SEEK_CUR)
        left = member.compress_size
        while left > 0 and not inflate.eof:
            data = file.read(min(left, _CHUNK_BYTES))
            if not data:
                raise EOFError(f"{member.filename} ends {left} bytes early")
            left -= len(data)
            if stored:
                yield data
            else:
                yield from _pieces(inflate, data)
    if not stored and not inflate.eof:
        raise EOFError(f"{member.filename} ends in the middle")


def _pieces(inflate: Any, data: bytes) -> Iterator[bytes]:  # noqa: ANN401
    """Yield what compressed bytes give, a piece at a time, so that no bomb is held whole."""
    full = True
    while full and not inflate.eof:
        try:
            piece = inflate.decompress(data, _PIECE_BYTES)
        except isal_zlib.IsalError as error:  # type: ignore[misc]  # the stub omits its base
            raise zlib.error(str(error)) from error
        if piece:
            yield piece
        data = inflate.unconsumed_tail
        # A full piece may leave output behind even where all input has been taken.
        full = bool(data) or len(piece) == _PIECE_BYTES
