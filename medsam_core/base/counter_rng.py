"""Counter-based random numbers: the i-th draw of a named stream is computed without the draws before it.

What belongs here: the generator of the training plan. Not here: what is drawn with it.

The numbers of an item depend only on the seed, the purpose, the name of the stream and the index of the item. So an
epoch can be built without the epochs before it, and switching one kind of augmentation off changes no other draw.
The generator is Philox (Salmon et al., SC 2011). numpy keeps the raw output of its bit generators stable across
versions but not its distributions, so the few distributions needed are computed here.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_WORDS_PER_BLOCK = 4
"""Philox 4x64 yields four 64-bit words for each counter value."""


@dataclass(frozen=True)
class CounterRng:
    """All random streams of one seed and purpose.

    Attributes:
        seed: The plan seed.
        purpose: What the numbers are for, for example the name of a training stage.
    """

    seed: int
    purpose: str

    def raw(self, name: str, first: int, count: int, width: int) -> npt.NDArray[np.uint64]:
        """Return the words of items `first` to `first + count` of a stream.

        Args:
            name: The stream's name.
            first: Index of the first item.
            count: Number of items.
            width: Words per item; the same stream read with another width is another stream.

        Returns:
            (count, width) uint64, uniform.
        """
        digest = hashlib.sha256(f"{self.seed}|{self.purpose}|{name}|{width}".encode()).digest()
        generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
        blocks = -(-width // _WORDS_PER_BLOCK)
        generator.advance(first * blocks)
        words = generator.random_raw(count * blocks * _WORDS_PER_BLOCK)
        return words.reshape(count, blocks * _WORDS_PER_BLOCK)[:, :width]

    def uniform(self, name: str, first: int, count: int, width: int) -> npt.NDArray[np.float64]:
        """Return the same items as `raw`, as (count, width) float64 in [0, 1) with 53 random bits."""
        bits = self.raw(name, first, count, width) >> np.uint64(11)
        return bits.astype(np.float64) * 2.0**-53

    def permutations(self, name: str, first: int, count: int, size: int) -> npt.NDArray[np.int64]:
        """Return (count, size) int64: row i is a permutation of `range(size)` for item `first + i`."""
        orders: npt.NDArray[np.int64] = np.argsort(self.raw(name, first, count, size), axis=1, kind="stable")
        return orders


def below(uniform: npt.NDArray[np.float64], bound: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Turn numbers in [0, 1) into integers in [0, bound), elementwise; shapes broadcast."""
    integers: npt.NDArray[np.int64] = np.floor(uniform * np.asarray(bound)).astype(np.int64)
    return integers
