"""Who answers for the teacher. What belongs here: a stage's questions, answered live or from a cache in plan order.

Not here: how answers are stored, or the teacher's architecture.

Legend: B slots of a group, K boxes of a slot, E embedding channels, h w the embedding grid, H W the logits' grid.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medsam_core.models.segmenter import Segmenter
from medsam_core.rendering import GroupBatch


class TeacherAnswers(Protocol):
    """What a stage asks of the teacher about a group of slots."""

    @property
    def reads_ahead(self) -> bool:
        """Whether answers are read rather than computed, so that the loading thread asks for them early."""
        ...

    def embeddings(self, first_slot: int, batch: GroupBatch) -> Tensor:
        """Return (B, E, h, w): the embeddings of the group whose first slot is `first_slot` in plan order."""
        ...

    def probabilities(self, first_slot: int, batch: GroupBatch) -> Tensor:
        """Return (B, K, H, W): the sigmoid of the low-resolution logits, for the batch's boxes."""
        ...


class OnlineTeacher:
    """Runs the teacher on the very pixels and boxes that the student is shown.

    Args:
        segmenter: The teacher, on the device of the batches; it is frozen and put into evaluation mode.
    """

    reads_ahead = False

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter.eval().requires_grad_(requires_grad=False)

    @torch.no_grad()
    def embeddings(self, first_slot: int, batch: GroupBatch) -> Tensor:  # noqa: ARG002
        """Return (B, E, h, w) float32; `first_slot` is not needed."""
        return self._segmenter.encode(batch.images).float()

    @torch.no_grad()
    def probabilities(self, first_slot: int, batch: GroupBatch) -> Tensor:  # noqa: ARG002
        """Return (B, K, H, W) float32; `first_slot` is not needed."""
        logits, _ = self._segmenter(batch.images, batch.boxes)
        probabilities: Tensor = logits.float().sigmoid()
        return probabilities


class CachedTeacher:
    """Reads answers that were computed ahead and stored in plan order.

    Args:
        read: Called with an array's name, a first and a stop slot; returns (stop - first, ...) float32.
        embeddings: Name of the array of embeddings.
        probabilities: Name of the array of probabilities.
    """

    reads_ahead = True

    def __init__(
        self,
        read: Callable[[str, int, int], npt.NDArray[Any]],
        *,
        embeddings: str = "embeddings",
        probabilities: str = "probabilities",
    ) -> None:
        self._read = read
        self._embeddings = embeddings
        self._probabilities = probabilities

    def embeddings(self, first_slot: int, batch: GroupBatch) -> Tensor:
        """Return (B, E, h, w) float32, on the CPU."""
        return self._answers(self._embeddings, first_slot, batch)

    def probabilities(self, first_slot: int, batch: GroupBatch) -> Tensor:
        """Return (B, K, H, W) float32, on the CPU."""
        return self._answers(self._probabilities, first_slot, batch)

    def _answers(self, name: str, first_slot: int, batch: GroupBatch) -> Tensor:
        answers = self._read(name, first_slot, first_slot + len(batch.images))
        return torch.from_numpy(np.ascontiguousarray(answers, dtype=np.float32))
