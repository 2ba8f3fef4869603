"""Golden values of the public reference implementations, and the weights and inputs they were made with.

What belongs here: what `tests/golden/README.md` describes. Not here: assertions about models.
"""

import functools
import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

KEPT = Path(__file__).parent / "golden"
GOLDEN = Path(os.environ.get("MEDSAM_GOLDEN", KEPT))

RELATIVE_TOLERANCE = 1e-4
"""Of the largest magnitude of the reference's output."""

NORM_TOLERANCE = 1e-5
"""Relative, of the L2 norm of a whole output."""


@functools.cache
def golden_description() -> dict[str, Any]:
    """Return the salt and, for each module, every key and shape in the reference's order."""
    description: dict[str, Any] = json.loads((GOLDEN / "sam_golden.json").read_text())
    return description


@functools.cache
def golden_arrays() -> dict[str, npt.NDArray[Any]]:
    """Return the reference's sampled outputs and the boxes."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for path in (GOLDEN / "sam_golden.npz", KEPT / "tiny_vit_golden.npz"):
        with np.load(path, allow_pickle=False) as file:
            arrays |= {name: file[name] for name in file.files}
    return arrays


def generator(name: str) -> np.random.Generator:
    """Return the random generator that belongs to a name."""
    seed = zlib.crc32(f"{golden_description()['salt']}:{name}".encode())
    return np.random.Generator(np.random.PCG64(seed))


def golden_weight(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return the value of a parameter or floating buffer: a function of its prefixed name and shape alone."""
    n = generator(name).standard_normal(shape)
    if name.endswith("running_var"):
        n = 1 + 0.1 * np.abs(n)
    elif name.endswith(("running_mean", "bias")):
        n = 0.02 * n
    elif name.endswith("gaussian_matrix"):
        pass
    elif len(shape) >= 2:
        n = n / math.sqrt(math.prod(shape[1:]))
    else:
        n = 1 + 0.1 * n
    return n.astype(np.float32)


def golden_state(module: str) -> dict[str, Tensor]:
    """Return a reference module's whole state, by its own keys, in its own order."""
    shapes: dict[str, list[int]] = golden_description()[module]
    return {name: torch.from_numpy(golden_weight(name, tuple(shape))) for name, shape in shapes.items()}


def load_by_order(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state whose keys differ but whose order is the same; batch norm's integer counters keep their values."""
    keys = [key for key in module.state_dict() if not key.endswith("num_batches_tracked")]
    renamed = dict(zip(keys, state.values(), strict=True))
    missing, unexpected = module.load_state_dict(renamed, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)


def golden_images(size: int) -> Tensor:
    """Return the encoder input of a side length, (1, 3, size, size) in [0, 1)."""
    return torch.from_numpy(generator(f"input{size}").random((1, 3, size, size)).astype(np.float32))


def golden_embedding() -> Tensor:
    """Return the mask decoder's input, (1, 256, 64, 64)."""
    return torch.from_numpy(generator("embedding").standard_normal((1, 256, 64, 64)).astype(np.float32))


def golden_boxes() -> Tensor:
    """Return three boxes, (3, 4), xyxy_px in the 1024 frame."""
    return torch.from_numpy(golden_arrays()["boxes"])


def deviation(found: Tensor, name: str) -> float:
    """Return the largest difference from a golden array, relative to that array's largest magnitude."""
    expected = golden_arrays()[name]
    assert found.shape == expected.shape
    difference = np.abs(found.detach().numpy() - expected).max()
    return float(difference / np.abs(expected).max())


def norm_deviation(found: Tensor, name: str) -> float:
    """Return the relative difference of a whole output's L2 norm from the golden one."""
    expected = float(golden_arrays()[name][0])
    return abs(float(torch.linalg.vector_norm(found.detach().double())) / expected - 1)
