"""The files of a training run. What belongs here: the lock, the checkpoint and the metrics log of one folder.

Not here: weights meant for others (`medsam_core.models.checkpoints`), and when to save (`medsam_core.training.loop`).

A checkpoint appears whole or not at all, and never holds a value that is not finite. The metrics log is cut back to
the checkpoint's length on resuming, so a resumed run writes the same bytes as one that was never stopped.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NotRequired, Self, TypedDict

import torch
from torch import Tensor

from medsam_core.base.files import atomic_file
from medsam_core.training.errors import DivergedError, OutputBusyError, TrainingError

CHECKPOINT_VERSION = 1
"""Raised by hand whenever an older checkpoint can no longer be resumed from."""


class TrainingState(TypedDict):
    """What a checkpoint holds."""

    version: NotRequired[int]
    identity: dict[str, str]
    """What the training is made from."""
    step: int
    """Steps done."""
    log_length: int
    """Bytes of the metrics log at that point."""
    model: dict[str, Tensor]
    optimizer: dict[str, object]
    scaler: dict[str, object]
    """Loss scale; empty unless the networks run in float16."""


@contextmanager
def output_lock(out: Path) -> Iterator[None]:
    """Hold a folder for one trainer; the kernel frees it when the process dies.

    Raises:
        OutputBusyError: If another process trains into it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / "trainer.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise OutputBusyError(
                f"{out}: expected no other trainer, found process {file.read().strip() or 'unknown'} at work; "
                "wait for it to end, or stop it, then run again"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def require_finite_weights(weights: Mapping[str, Tensor]) -> None:
    """Refuse weights with a value that is not finite.

    Raises:
        DivergedError: Naming the first few such tensors.
    """
    floating = {name: t for name, t in weights.items() if t.is_floating_point()}
    flags = torch.stack([t.isfinite().all() for t in floating.values()]).tolist() if floating else []
    bad = [name for name, finite in zip(floating, flags, strict=True) if not finite]
    if bad:
        raise DivergedError(
            f"expected finite weights, found {len(bad)} tensors with nan or inf ({', '.join(bad[:3])}, ...); "
            "nothing was saved: lower the learning rate and resume from the last checkpoint"
        )


def save_checkpoint(path: Path, state: TrainingState) -> None:
    """Publish a checkpoint atomically; its `model` entry must be finite.

    Raises:
        DivergedError: If it is not; the checkpoint on disk stays as it was.
    """
    require_finite_weights(state["model"])
    with atomic_file(path) as file:
        torch.save({"version": CHECKPOINT_VERSION, **state}, file)


def load_checkpoint(path: Path, device: torch.device, identity: Mapping[str, str]) -> TrainingState:
    """Read a checkpoint that was made by the same training.

    Args:
        path: What `save_checkpoint` wrote.
        device: Where its tensors go.
        identity: What this training is made from; must equal the checkpoint's `identity`.

    Raises:
        TrainingError: If it belongs to another training or version, listing the differences.
    """
    state: TrainingState = torch.load(path, map_location=device, weights_only=True)
    expected = {"version": str(CHECKPOINT_VERSION), **identity}
    require_same_training(path, expected, {"version": str(state.get("version")), **state.get("identity", {})})
    return state


def require_same_training(path: Path, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Refuse what another training left behind.

    Raises:
        TrainingError: Listing every difference.
    """
    names = sorted(expected.keys() | found.keys())
    differences = [
        f"{name}: expected {expected.get(name, 'nothing')}, found {found.get(name, 'nothing')}"
        for name in names
        if expected.get(name) != found.get(name)
    ]
    if differences:
        raise TrainingError(
            f"{path} belongs to another training ({'; '.join(differences)}); "
            "train into an empty folder, or restore the settings to go on with this one"
        )


class MetricsLog:
    """One JSON object a line for every step, in bytes that depend on the training alone.

    Args:
        path: The log.
        length: Bytes to keep of what is there; 0 starts afresh.

    Raises:
        TrainingError: If there is less than `length`.
    """

    def __init__(self, path: Path, length: int) -> None:
        self._file = path.open("ab")
        if self._file.tell() < length:
            self._file.close()
            raise TrainingError(
                f"{path}: expected at least the {length} bytes its checkpoint knows of, found {path.stat().st_size}; "
                "restore the file, or remove the checkpoint to start over"
            )
        self._file.truncate(length)
        self._file.seek(length)

    def write(self, record: Mapping[str, float]) -> None:
        """Append a record; it reaches other processes at once."""
        self._file.write((json.dumps(record, allow_nan=False) + "\n").encode())
        self._file.flush()

    def sync(self) -> int:
        """Flush to the device and return the length in bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
