"""How a float32 array is kept in fewer bytes. What belongs here: encodings and their error. Not here: files.

An encoding turns values into one or more stored components, named by a suffix to the array's name. The two here have a
single one; an affine int8 encoding would add its scales and offsets as components of their own.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from storage.errors import StorageError

Floats = npt.NDArray[np.float32]
Stored = dict[str, npt.NDArray[Any]]


class Encoding(ABC):
    """One way of storing float32 values, slot by slot along axis 0.

    Attributes:
        name: As recorded in headers.
        decoding: The formula that gives a value back, for readers without this code.
        max_error: Bound on the difference between a value and its decoded form, in words.
    """

    name: str
    decoding: str
    max_error: str

    @abstractmethod
    def components(self, tail: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return suffix -> (dtype, shape after axis 0) of what is stored for values of shape (n, *tail)."""

    @abstractmethod
    def encode(self, values: Floats) -> Stored:
        """Return suffix -> array for values (n, *tail).

        Raises:
            StorageError: If a value has no place in this encoding.
        """

    @abstractmethod
    def decode(self, stored: Mapping[str, npt.NDArray[Any]]) -> Floats:
        """Return the values (n, *tail) of what `encode` gave."""


class Float16(Encoding):
    """IEEE half precision."""

    name = "float16"
    decoding = "value = stored"
    max_error = "2**-11 of the value, 2**-25 below 2**-14; values of 65520 and more are refused"

    def components(self, tail: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return the one array."""
        return {"": ("float16", tail)}

    def encode(self, values: Floats) -> Stored:
        """Round to half precision; raises StorageError on NaN, infinity and what half precision cannot hold."""
        with np.errstate(over="ignore"):
            stored = values.astype(np.float16)
        if not np.isfinite(stored).all():
            raise StorageError(
                f"float16: expected finite values below 65520, found {_worst(values)}; check the model that made them"
            )
        return {"": stored}

    def decode(self, stored: Mapping[str, npt.NDArray[Any]]) -> Floats:
        """Widen to float32."""
        return stored[""].astype(np.float32)


class ProbabilityUint8(Encoding):
    """Probabilities in steps of 1/255."""

    name = "probability_uint8"
    decoding = "value = stored / 255"
    max_error = "1/510"

    def components(self, tail: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return the one array."""
        return {"": ("uint8", tail)}

    def encode(self, values: Floats) -> Stored:
        """Round 255 p to the nearest integer; raises StorageError on anything outside [0, 1]."""
        if not ((values >= 0) & (values <= 1)).all():
            raise StorageError(
                f"probability_uint8: expected values in [0, 1], found {_worst(values)}; apply the sigmoid"
            )
        return {"": np.rint(values * np.float32(255)).astype(np.uint8)}

    def decode(self, stored: Mapping[str, npt.NDArray[Any]]) -> Floats:
        """Divide by 255."""
        return stored[""].astype(np.float32) / np.float32(255)


def _worst(values: Floats) -> str:
    return "NaN" if np.isnan(values).any() else f"{values.min()} to {values.max()}"


ENCODINGS: Final[dict[str, Encoding]] = {encoding.name: encoding for encoding in (Float16(), ProbabilityUint8())}
"""Every encoding by its name in headers."""
