"""Fingerprints: the hash of a result's inputs, and the list of differences when two results have other inputs.

What belongs here: canonical hashing of plain values and arrays. Not here: what goes into any one fingerprint.
A fingerprint covers logical content and configuration, never addresses, paths, arrival order, run ids or clocks.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from storage.base.errors import FingerprintMismatchError


def canonical_json(value: Any) -> str:  # noqa: ANN401
    """Serialise a plain value (dict, list, str, int, float, bool, None) so that equal values give equal text.

    Raises:
        TypeError: If the value holds a type that JSON lacks.
        ValueError: If it holds NaN or an infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(value: Any) -> str:  # noqa: ANN401
    """Return the SHA-256 hex digest of a plain value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def array_hash(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the BLAKE3 hex digest of named arrays: names (sorted), dtypes, shapes and C-order bytes.

    Pixels are hashed whenever a file is read; BLAKE3 is several times faster than SHA-256.
    """
    digest = blake3()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def combine(digests: Iterable[str]) -> str:
    """Return one digest of an ordered sequence of digests or other strings."""
    digest = hashlib.sha256()
    for item in digests:
        data = item.encode()
        digest.update(b"%d:" % len(data))  # the length keeps ("ab", "c") and ("a", "bc") apart
        digest.update(data)
    return digest.hexdigest()


def differences(expected: Mapping[str, object], found: Mapping[str, object], prefix: str = "") -> list[str]:
    """List every leaf in which two nested mappings differ, as `name: expected X, found Y` lines.

    Leaves are compared as canonical JSON, as fingerprints are: a tuple equals the list that JSON makes of it, and
    1, 1.0 and True are three values. So the returned list is empty exactly when the fingerprints are equal.
    """
    lines: list[str] = []
    for key in sorted({*expected, *found}):
        name = f"{prefix}{key}"
        if key not in found:
            lines.append(f"{name}: expected {expected[key]!r}, found nothing")
        elif key not in expected:
            lines.append(f"{name}: expected nothing, found {found[key]!r}")
        elif isinstance(one := expected[key], Mapping) and isinstance(other := found[key], Mapping):
            lines += differences(one, other, f"{name}.")
        elif canonical_json(expected[key]) != canonical_json(found[key]):
            lines.append(f"{name}: expected {expected[key]!r}, found {found[key]!r}")
    return lines


def require_same(what: str, expected: Mapping[str, object], found: Mapping[str, object], remedy: str) -> None:
    """Raise unless two descriptions agree.

    Raises:
        FingerprintMismatchError: If they differ; the message lists every difference and the remedy.
    """
    lines = differences(expected, found)
    if lines:
        listing = "\n  ".join(lines)
        raise FingerprintMismatchError(f"{what} was made from other inputs:\n  {listing}\n{remedy}")
