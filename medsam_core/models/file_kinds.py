"""The kind of a file that a user gave as a model, recognised by its first bytes.

What belongs here: recognising kinds, and what to do about each. Not here: reading a model (`checkpoints`).
No file can run code here: archives are listed, pickles are not opened.
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_HEAD_BYTES: Final = 512
_LONGEST_HEADER: Final = 100 * 2**20
"""The most bytes that the format allows for the header of a safetensors file."""

UNPACK: Final = "unpack it, and give the model file in it"
FETCH_AGAIN: Final = "fetch the file again and compare its size with what the publisher states"


@dataclass(frozen=True)
class FileKind:
    """A kind of file, in words fit for a message.

    Attributes:
        name: With its article.
        remedy: What turns it into a model file.
        is_safetensors: Whether it begins as a safetensors file does.
        is_torch: Whether it begins as what `torch.save` writes.
    """

    name: str
    remedy: str
    is_safetensors: bool = False
    is_torch: bool = False


_SAFETENSORS: Final = FileKind("a safetensors file", FETCH_AGAIN, is_safetensors=True)
_TORCH: Final = FileKind(
    "a torch checkpoint (.pth)",
    "give the model.safetensors that this project made; a published SAM or MedSAM checkpoint can only be a teacher: "
    "set MEDSAM_TEACHER to it, or write LiteMedSAM's as a model by `medsam teacher lite_medsam -o FILE`",
    is_torch=True,
)
_FOLDER: Final = FileKind("a folder", "give the file model.safetensors in it")
_EMPTY: Final = FileKind("damage: an empty file", FETCH_AGAIN)
_UNKNOWN: Final = FileKind("damage, or a file of another kind", FETCH_AGAIN)

_CONVERT: Final = "no model of this format can be read; give the model.safetensors that this project made"

_BY_FIRST_BYTES: Final[tuple[tuple[bytes, FileKind], ...]] = (
    (
        b"version https://git-lfs.github.com",
        FileKind(
            "a Git LFS pointer, which only stands for the weights",
            "run `git lfs pull` where it was cloned, or download the file itself",
        ),
    ),
    (b"\x1f\x8b", FileKind("a gzip file", UNPACK)),
    (b"BZh", FileKind("a bzip2 file", UNPACK)),
    (b"\xfd7zXZ", FileKind("an xz file", UNPACK)),
    (b"\x28\xb5\x2f\xfd", FileKind("a zstandard file", UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", FileKind("a 7z archive", UNPACK)),
    (b"Rar!", FileKind("a RAR archive", UNPACK)),
    (b"\x93NUMPY", FileKind("a NumPy array", _CONVERT)),
    (b"\x89HDF\r\n", FileKind("an HDF5 file, such as a Keras model", _CONVERT)),
    (b"GGUF", FileKind("a GGUF model", _CONVERT)),
    (b"%PDF", FileKind("a PDF", FETCH_AGAIN)),
)
_PAGE: Final = FileKind(
    "an HTML page, as a site sends for a login, a warning or an error",
    "open its address in a browser, and download the file itself",
)
_XML: Final = FileKind("XML text, such as an OpenVINO model or a server's error", _CONVERT)
_JSON: Final = FileKind("JSON text, such as a server's error", FETCH_AGAIN)
_ONNX: Final = FileKind("an ONNX model", _CONVERT)
_TAR: Final = FileKind("a tar archive", UNPACK)


def file_kind(path: Path) -> FileKind:
    """Tell what a file is by its first bytes, whatever its name says.

    Args:
        path: An existing file or folder.

    Raises:
        OSError: If it cannot be read.
    """
    if path.is_dir():
        return _FOLDER
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        return _EMPTY
    if head.startswith(b"PK"):
        return _zip_kind(path)
    found = next((kind for magic, kind in _BY_FIRST_BYTES if head.startswith(magic)), None)
    return found or next((kind for holds, kind in _BY_STRUCTURE if holds(head)), _UNKNOWN)


def _text(head: bytes) -> bytes:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") <= _LONGEST_HEADER


def _is_pickle(head: bytes) -> bool:
    """Tell whether a pickle begins: protocol 2 to 5, as torch wrote before it wrote zip archives."""
    return len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def _is_onnx(head: bytes) -> bool:
    """Tell whether the protobuf message of an ONNX model begins: its version, then one of its first few fields."""
    return len(head) > 3 and head[0] == 0x08 and 0 < head[1] < 32 and head[2] in (0x12, 0x1A, 0x22, 0x3A, 0x42)


_BY_STRUCTURE: Final[tuple[tuple[Callable[[bytes], bool], FileKind], ...]] = (
    (_is_safetensors, _SAFETENSORS),
    (_is_pickle, _TORCH),
    (_is_onnx, _ONNX),
    (lambda head: _text(head).startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")), _PAGE),
    (lambda head: _text(head).startswith(b"<"), _XML),
    (lambda head: _text(head).startswith((b"{", b"[")), _JSON),
    (lambda head: head[257:262] == b"ustar", _TAR),
)


def _zip_kind(path: Path) -> FileKind:
    """Tell what a zip archive holds by the names of its members."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return FileKind("a torch checkpoint or another zip archive, cut short or damaged", FETCH_AGAIN)
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return _TORCH
    if names and all(name.endswith(".npy") for name in names):
        return FileKind("a file of NumPy arrays (npz)", _CONVERT)
    return FileKind(f"a zip archive of {', '.join(names[:3]) or 'nothing'}", UNPACK)
