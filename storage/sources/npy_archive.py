"""Reading zip archives of npy arrays from an untrusted source: all headers are checked before any payload is read.

What belongs here: opening, header checks, inflating. Not here: which arrays a case has (`storage.sources.npz_source`).

Pickled arrays are never opened. The size in a header is compared with a limit and with the size of the member before
any byte of the payload is inflated. The CRC-32 of every member that is read is verified.
"""

import io
import math
import os
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from storage.sources.source import reject

_PIECE_BYTES: Final = 1 << 20
"""Most bytes of the file, and most inflated bytes, that are held besides the array."""
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
"""A zip member's local header: its magic, and the lengths of the name and extra field behind it (APPNOTE 4.3.7)."""
_LOCAL_MAGIC: Final = b"PK\x03\x04"
_ENCRYPTED: Final = 1
"""Bit of a zip member's flags (APPNOTE 4.4.4)."""
_MAGIC_BYTES: Final = np.lib.format.MAGIC_LEN

_HEADER_READERS: Final = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_HEADER_LENGTHS: Final = {(1, 0): struct.Struct("<H"), (2, 0): struct.Struct("<I")}
"""How the length of a header is stored, by the version of the npy format."""
_MAX_HEADER_BYTES: Final = 1 << 16
"""A header is read no further than this, whatever length it states; numpy refuses those of more than 10,000 bytes."""


DAMAGES: Final = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, OverflowError, UnicodeDecodeError)
"""What reading a damaged archive raises; `open_archive` turns it into a reason code."""


@dataclass(frozen=True, eq=False)
class Header:
    """The header of an npy member."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[np.generic]
    offset: int
    """Bytes of the member before its payload."""
    member: "_Member"
    """The open member, read up to the first byte of its payload."""
    holds_nothing: bool = False
    """Whether it is an array of Python objects without any: its payload is the pickle of an empty list, never read."""

    @property
    def n_bytes(self) -> int:
        """Bytes of the payload."""
        return math.prod(self.shape) * self.dtype.itemsize


class _Member:
    """Reads a zip member from front to back; isal inflates faster than zlib."""

    def __init__(self, archive: "Archive", name: str) -> None:
        self._name, self._descriptor = name, archive.descriptor
        self.info = archive.members[name]
        local = os.pread(self._descriptor, _LOCAL_HEADER.size, self.info.header_offset)
        magic, *lengths = _LOCAL_HEADER.unpack(local)
        if magic != _LOCAL_MAGIC:
            raise zipfile.BadZipFile(f"{name} has no local header")
        # Name and extra field may be longer here than in the directory at the archive's end.
        self._at = self.info.header_offset + _LOCAL_HEADER.size + sum(lengths)
        self._left = self.info.compress_size
        self._stored = self.info.compress_type == zipfile.ZIP_STORED
        self._inflate = isal_zlib.decompressobj(-isal_zlib.MAX_WBITS)
        self._tail, self._full = b"", False
        self.checksum = 0

    def read(self, limit: int) -> bytes:
        """Return the next bytes, at most `limit`, none only at the end."""
        piece = self._as_stored(limit) if self._stored else self._inflated(limit)
        self.checksum = isal_zlib.crc32(piece, self.checksum)
        return piece

    def _as_stored(self, limit: int) -> bytes:
        return self._compressed(limit) if self._left else b""

    def _inflated(self, limit: int) -> bytes:
        inflate = self._inflate
        while not inflate.eof:
            if not self._tail and not self._full:
                self._tail = self._compressed(_PIECE_BYTES)
            try:
                piece: bytes = inflate.decompress(self._tail, limit)
            except isal_zlib.IsalError as error:  # type: ignore[misc]  # the stub omits its base
                raise zlib.error(str(error)) from error
            self._tail = inflate.unconsumed_tail
            # A full piece may leave output behind even where all input has been taken.
            self._full = len(piece) == limit
            if piece:
                return piece
        return b""

    def _compressed(self, limit: int) -> bytes:
        data = os.pread(self._descriptor, min(limit, self._left), self._at)
        if not data:
            raise EOFError(f"{self._name} ends {self._left} bytes early")
        self._at += len(data)
        self._left -= len(data)
        return data

    def exactly(self, n_bytes: int) -> bytes:
        """Return the next `n_bytes`, fewer only at the end."""
        data = b""
        while len(data) < n_bytes and (piece := self.read(n_bytes - len(data))):
            data += piece
        return data


@dataclass(frozen=True)
class Archive:
    """An open archive.

    Attributes:
        descriptor: Of its file.
        members: Name -> what the archive's directory says of it.
    """

    descriptor: int
    members: Mapping[str, zipfile.ZipInfo]


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an archive for the block, and turn every error of its bytes into a reason code.

    Raises:
        BadSampleError: `unreadable`, `truncated` or `not_npz`.
    """
    try:
        # A pipe without a writer would block for ever, a device never end; links may lead to either.
        with open(path, "rb", opener=_without_waiting) as file, _opened(file) as archive:
            yield Archive(file.fileno(), archive.NameToInfo)
    except DAMAGES as error:
        reject("truncated", f"expected an undamaged archive, found: {error}; fetch the file again")
    except MemoryError:
        reject("unreadable", "expected a case that fits the free memory, found a larger one; give it more memory")
    except (OSError, RuntimeError) as error:
        found = getattr(error, "strerror", None) or str(error)
        reject("unreadable", f"expected a readable file, found: {found}; check its access rights and the disk")


def _without_waiting(path: str, flags: int) -> int:
    """Open an ordinary file; whatever else lies there is rejected at once."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        reject("unreadable", "expected an ordinary file, found a folder, pipe or device; remove it, or the link to it")
    return descriptor


def _opened(file: BinaryIO) -> zipfile.ZipFile:
    """Open an archive; the first bytes tell whether a bad file is a damaged archive or no archive."""
    try:
        return zipfile.ZipFile(file)
    except zipfile.BadZipFile:
        file.seek(0)
        start = file.read(4)
        if not b"PK".startswith(start[:2]):
            reject("not_npz", f"expected a zip archive, found a file that begins with {start!r}; convert or remove it")
        raise


def read_header(archive: Archive, name: str, *, may_hold_nothing: bool = False) -> Header | None:
    """Return the checked header of an array; None if the archive does not hold it.

    Args:
        archive: The open archive.
        name: The array's name, without `.npy`.
        may_hold_nothing: Return an array of objects whose shape leaves no room for one as an empty array of numbers.

    Raises:
        BadSampleError: `not_npz`, `unreadable` or `pickled`.
    """
    if not any(member.endswith(".npy") for member in archive.members):
        found = sorted(archive.members)[:9]
        reject("not_npz", f"expected npy members, found {found}; convert or remove the file")
    if f"{name}.npy" not in archive.members:
        return None
    header = _read_header(archive, name)
    if header.dtype.hasobject:
        if not may_hold_nothing or header.dtype.kind != "O" or 0 not in header.shape:
            reject("pickled", f"{name}: expected numbers, found dtype {header.dtype}; write it as a numeric array")
        # The shape alone decides: the pickle behind the header is not looked at.
        return replace(header, dtype=np.dtype(np.float64), holds_nothing=True)
    return header


def require_sizes(headers: Sequence[Header], max_bytes: int) -> None:
    """Compare the sizes in headers with a limit, and with the sizes of their members.

    Args:
        headers: The headers.
        max_bytes: Most payload bytes that these arrays may promise together.

    Raises:
        BadSampleError: `too_large` or `truncated`.
    """
    promised = sum(header.n_bytes for header in headers)
    if promised > max_bytes:
        reject(
            "too_large",
            f"expected at most {max_bytes} array bytes, found headers that promise {promised}; "
            "raise the source's max_case_bytes or split the case",
        )
    for header in headers:
        info = header.member.info
        held = info.file_size - header.offset
        if held != header.n_bytes and not header.holds_nothing:
            name = info.filename.removesuffix(".npy")
            reject(
                "truncated",
                f"{name}: expected {header.n_bytes} bytes for shape {header.shape}, found {held}; fetch the file again",
            )


def _read_header(archive: Archive, name: str) -> Header:
    info = archive.members[f"{name}.npy"]
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & _ENCRYPTED:
        found = f"method {info.compress_type}" + (", encrypted" if info.flag_bits & _ENCRYPTED else "")
        reject("unreadable", f"{name}: expected a stored or deflated member, found {found}; convert the file")
    member = _Member(archive, f"{name}.npy")
    try:
        version = np.lib.format.read_magic(io.BytesIO(member.exactly(_MAGIC_BYTES)))
        if version not in _HEADER_LENGTHS:
            reject("not_npz", f"{name}: expected npy format 1.0 or 2.0, found {version}; use numpy.savez")
        length = _HEADER_LENGTHS[version]
        data = member.exactly(length.size)
        data += member.exactly(min(length.unpack(data)[0], _MAX_HEADER_BYTES))
        shape, fortran_order, dtype = _parsed(version, data)
    except (
        ValueError,
        TypeError,
        LookupError,
        SyntaxError,
        struct.error,
        tokenize.TokenError,
        RecursionError,
    ) as error:
        reject("not_npz", f"{name}: expected an npy header, found: {error}; write the file with numpy.savez")
    if min(shape, default=0) < 0:
        reject("not_npz", f"{name}: expected sizes from 0, found {shape}; write the file with numpy.savez")
    return Header(shape, fortran_order, dtype, _MAGIC_BYTES + len(data), member)


@lru_cache(maxsize=1024)
def _parsed(version: tuple[int, int], data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Return shape, order and type that a header states; data sets repeat a few headers over and over.

    Args:
        version: Of the npy format.
        data: What follows the magic, with the length in front.
    """
    shape, fortran_order, dtype = _HEADER_READERS[version](io.BytesIO(data))
    return shape, fortran_order, dtype


def read_array(name: str, header: Header) -> npt.NDArray[np.generic]:
    """Inflate the payload after a header into a C-ordered array in the machine's byte order, and verify its CRC-32.

    Inflating stops with an error at the size in the header. Call this once for each header, within `open_archive`.

    Raises:
        EOFError, zipfile.BadZipFile, zlib.error: If its bytes are damaged; `open_archive` gives them their code.
    """
    if header.holds_nothing:
        return np.empty(header.shape, header.dtype)
    member, n_bytes = header.member, header.n_bytes
    buffer = np.empty(n_bytes, dtype=np.uint8)
    filled = 0
    while filled < n_bytes and (piece := member.read(min(_PIECE_BYTES, n_bytes - filled))):
        buffer[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
        filled += len(piece)
    if filled < n_bytes:
        raise EOFError(f"{name} ends after {filled} of {n_bytes} bytes")
    if member.read(1):
        raise zipfile.BadZipFile(f"{name} holds more than the {n_bytes} bytes of its shape")
    if member.checksum != member.info.CRC:
        raise zipfile.BadZipFile(f"{name} fails its CRC-32")
    array = buffer.view(header.dtype).reshape(header.shape, order="F" if header.fortran_order else "C")
    return np.ascontiguousarray(array, dtype=header.dtype.newbyteorder("="))
