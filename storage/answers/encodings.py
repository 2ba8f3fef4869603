"""Encodings of float32 arrays in fewer bytes. What belongs here: encodings and their error. Not here: files.

An encoding turns values into one or more stored components; a suffix to the array's name names each component.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from storage.base.errors import StorageError
from storage.shards.arrays import Elements

Floats = npt.NDArray[np.float32]
Stored = dict[str, Elements]


class Encoding(ABC):
    """One way of storing float32 values, slot by slot along axis 0.

    Attributes:
        name: Its name in headers.
        decoding: The formula that decodes a value, for readers without this code.
        max_error: Bound on the difference between a value and its decoded form, in words.
    """

    name: str
    decoding: str
    max_error: str

    @abstractmethod
    def components(self, tail: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return suffix -> (dtype, shape after axis 0) of the components of values of shape (n, *tail)."""

    @abstractmethod
    def encode(self, values: Floats) -> Stored:
        """Return suffix -> array for values (n, *tail).

        Raises:
            StorageError: If this encoding cannot store a value.
        """

    @abstractmethod
    def decode(self, stored: Mapping[str, Elements]) -> Floats:
        """Return the values (n, *tail) of the components that `encode` returned."""


class Float16(Encoding):
    """IEEE half precision."""

    name = "float16"
    decoding = "value = stored"
    max_error = "2**-11 of the value, 2**-25 below 2**-14; values of 65520 and more are refused"

    def components(self, tail: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return the one array."""
        return {"": ("float16", tail)}

    def encode(self, values: Floats) -> Stored:
        """Round to half precision; raise StorageError on NaN, infinity and values out of its range."""
        with np.errstate(over="ignore"):
            stored = values.astype(np.float16)
        if not np.isfinite(stored).all():
            raise StorageError(
                f"float16: expected finite values below 65520, found {_worst(values)}; check the model that made them"
            )
        return {"": stored}

    def decode(self, stored: Mapping[str, Elements]) -> Floats:
        """Widen to float32."""
        return stored[""].astype(np.float32)


MAX_SHARE_OF_SQUARES: Final = 5e-5
"""Bound on mean((a - b)^2) / mean(a^2) of a slot a and its decoded form b."""

MAX_SHARE_OF_VARIANCE: Final = 2e-4
"""Bound on mean((a - b)^2) / mean of the variances within each channel of a."""

_MARGIN: Final = 0.9
"""Share of the bounds that the step uses; the rest allows for the rounding of offsets."""


class Int8PerChannel(Encoding):
    """Eight-bit steps with a scale and an offset for each slot and channel.

    All channels of a slot have the same step: the largest that keeps the slot within both bounds. For a given squared
    error, uniform noise costs the fewest bytes (reverse water-filling). A channel whose range needs more than 256 such
    steps gets a wider step. If the slot then exceeds a bound, every channel gets the finest step that its range allows.
    Offsets centre the codes, so that all channels have a similar distribution, which the entropy coder compresses well.
    """

    name = "int8_per_channel"
    decoding = "value = NAME_zero[c] + NAME_scale[c] * stored[c]; NAME_exact where NAME_scale is NaN"
    max_error = (
        f"mean squared error at most {MAX_SHARE_OF_SQUARES} of the mean square and {MAX_SHARE_OF_VARIANCE} of the mean "
        "variance within channels, of each slot; a slot that would exceed either is kept as float16"
    )

    def components(self, tail: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return codes, scales, offsets and exact values, which are zero unless a slot needs them; tail is (C, ...)."""
        return {
            "": ("uint8", tail),
            "_scale": ("float32", tail[:1]),
            "_zero": ("float16", tail[:1]),
            "_exact": ("float16", tail),
        }

    def encode(self, values: Floats) -> Stored:
        """Quantise slot by slot; raise StorageError on NaN, infinity and values out of half precision's range."""
        Float16().encode(values)
        stored: Stored = {
            suffix: np.zeros((len(values), *tail), dtype)
            for suffix, (dtype, tail) in self.components(values.shape[1:]).items()
        }
        for number, slot in enumerate(values):
            channels = slot.reshape(len(slot), -1)
            for step in (_widest_step(channels), 0.0):
                codes, scale, zero = _quantised(channels, step)
                if _within_bounds(channels, zero[:, None].astype(np.float32) + scale[:, None] * codes):
                    stored[""][number] = codes.reshape(slot.shape)
                    stored["_scale"][number], stored["_zero"][number] = scale, zero
                    break
            else:
                stored["_scale"][number] = np.nan
                stored["_exact"][number] = slot
        return stored

    def decode(self, stored: Mapping[str, Elements]) -> Floats:
        """Scale and shift the codes; read exact values only if a slot has some."""
        codes, scale = stored[""], stored["_scale"]
        wide = (*scale.shape, *(1,) * (codes.ndim - scale.ndim))
        values = codes.astype(np.float32)
        values *= scale.reshape(wide)
        values += stored["_zero"].astype(np.float32).reshape(wide)
        exact = np.isnan(scale).any(axis=1)
        if exact.any():
            values[exact] = stored["_exact"][exact]
        return values


def _widest_step(channels: Floats) -> float:
    """Return the step d whose mean squared rounding error, d^2 / 12, is `_MARGIN` of the error that a slot may have."""
    allowed = min(
        MAX_SHARE_OF_SQUARES * float(np.square(channels).mean()),
        MAX_SHARE_OF_VARIANCE * float(channels.var(axis=1).mean()),
    )
    return math.sqrt(12 * _MARGIN * allowed)


def _quantised(channels: Floats, step: float) -> tuple[npt.NDArray[np.uint8], Floats, npt.NDArray[np.float16]]:
    """Return codes (C, n), scales and offsets (C,) of one slot's channels (C, n), in steps no finer than `step`."""
    low, high, mean = channels.min(axis=1), channels.max(axis=1), channels.mean(axis=1)
    scale = np.maximum((high - low) / 254, np.float32(max(step, float(np.finfo(np.float32).tiny)))).astype(np.float32)
    centred = mean - 128 * scale
    fits = (low >= centred) & (high <= centred + 254 * scale)
    with np.errstate(over="ignore"):  # an offset that overflows half precision exceeds the bounds
        zero = np.where(fits, centred, low - scale / 2).astype(np.float16)
        codes = np.rint((channels - zero[:, None].astype(np.float32)) / scale[:, None])
    return np.clip(codes, 0, 255).astype(np.uint8), scale, zero


def _within_bounds(channels: Floats, decoded: Floats) -> bool:
    error = float(np.square(channels - decoded).mean())
    squares, variance = float(np.square(channels).mean()), float(channels.var(axis=1).mean())
    return error <= MAX_SHARE_OF_SQUARES * squares and error <= MAX_SHARE_OF_VARIANCE * variance


class ProbabilityUint8(Encoding):
    """Probabilities in steps of 1/255."""

    name = "probability_uint8"
    decoding = "value = stored / 255"
    max_error = "1/510"

    def components(self, tail: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return the one array."""
        return {"": ("uint8", tail)}

    def encode(self, values: Floats) -> Stored:
        """Round 255 p to the nearest integer; raise StorageError on values outside [0, 1]."""
        if not ((values >= 0) & (values <= 1)).all():
            raise StorageError(
                f"probability_uint8: expected values in [0, 1], found {_worst(values)}; apply the sigmoid"
            )
        return {"": np.rint(values * np.float32(255)).astype(np.uint8)}

    def decode(self, stored: Mapping[str, Elements]) -> Floats:
        """Divide by 255."""
        return stored[""].astype(np.float32) / np.float32(255)


def _worst(values: Floats) -> str:
    return "NaN" if np.isnan(values).any() else f"{values.min()} to {values.max()}"


ENCODINGS: Final[dict[str, Encoding]] = {
    encoding.name: encoding for encoding in (Float16(), Int8PerChannel(), ProbabilityUint8())
}
"""Every encoding by its name in headers."""
