"""Slices that compress as CT does, for benchmarks of storage. Not here: stores.

Windowed abdominal CT at 512 x 512 keeps about a quarter of its bytes under zlib level 6, and label maps under 1 %.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from storage.base.fingerprints import array_hash
from storage.sources.case import Case

SIZE = 512


def ct_like_slice(seed: int, size: int = SIZE) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return an image and a label map of one slice, (size, size) uint8 each."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    body = (x / 0.72) ** 2 + (y / 0.58) ** 2 < 1
    image = np.where(body, 105.0, 0.0)
    labels = np.zeros((size, size), np.uint8)
    for label in range(1, 6):
        cx, cy, rx, ry = (
            rng.uniform(-0.4, 0.4),
            rng.uniform(-0.3, 0.3),
            rng.uniform(0.05, 0.16),
            rng.uniform(0.05, 0.16),
        )
        inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
        image[inside & body] = rng.uniform(70, 190)
        labels[inside & body] = label
    noise = ndimage.gaussian_filter(rng.normal(0, 1, (size, size)), 1.1)
    image += body * noise / noise.std() * 14.0
    return np.clip(image, 0, 255).astype(np.uint8), labels


def ct_like_cases(count: int, distinct: int = 64) -> dict[str, Case]:
    """Return 2D cases; beyond `distinct` ones, mirror images and shifts of those, which compress alike."""
    drawn = [ct_like_slice(seed) for seed in range(min(count, distinct))]
    cases = {}
    for number in range(count):
        turned = [np.roll(array, 7 * (number // distinct), axis=1) for array in drawn[number % distinct]]
        image, labels = (np.ascontiguousarray(array) for array in turned)
        digest = array_hash({"imgs": image, "gts": labels})
        cases[f"2DBox_CT_{number:05d}"] = Case(image, False, labels, None, None, digest)
    return cases


def write_npz(folder: Path, cases: dict[str, Case]) -> Sequence[Path]:
    """Write one npz for each case as numpy compresses it (zlib level 6), as the challenge's files are."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for case_id, case in cases.items():
        arrays = {"imgs": case.imgs} if case.gts is None else {"imgs": case.imgs, "gts": case.gts}
        np.savez_compressed(folder / f"{case_id}.npz", **arrays)
        paths.append(folder / f"{case_id}.npz")
    return paths
