"""The teacher's answers. What belongs here: answering a stage's question, with the model or from a cache in plan order.

Not here: the questions (`medsam_core.learning.questions`), how answers are stored, or the teacher's architecture.

Legend: B slots of a microbatch.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medsam_core.imaging.rendering import Microbatch
from medsam_core.learning.questions import Question
from medsam_core.models.segmenter import Segmenter


class TeacherAnswers(Protocol):
    """Answers a stage's question about a microbatch of slots."""

    @property
    def reads_ahead(self) -> bool:
        """Whether answers are read rather than computed; the loading thread then asks for them ahead."""
        ...

    def answer(self, question: Question, first_slot: int, batch: Microbatch) -> Tensor:
        """Return the answers, (B, ...) float32, about the microbatch whose first slot is `first_slot` in plan order."""
        ...


class OnlineTeacher:
    """Runs the teacher on the same pixels and boxes that the student sees.

    Args:
        segmenter: The teacher, on the device of the batches; it is frozen and put into evaluation mode.
    """

    reads_ahead = False

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter.eval().requires_grad_(requires_grad=False)

    @torch.no_grad()
    def answer(self, question: Question, first_slot: int, batch: Microbatch) -> Tensor:
        """Return the answers on the batch's device; `first_slot` is not needed."""
        del first_slot
        return question.ask(self._segmenter, batch.images, batch.boxes)


class CachedTeacher:
    """Reads answers that were computed ahead and stored in plan order.

    Args:
        read: Called with an array's name, a first and a stop slot; returns (stop - first, ...) float32.
    """

    reads_ahead = True

    def __init__(self, read: Callable[[str, int, int], npt.NDArray[np.float32]]) -> None:
        self._read = read

    def answer(self, question: Question, first_slot: int, batch: Microbatch) -> Tensor:
        """Return the answers on the CPU."""
        answers = self._read(question.array, first_slot, first_slot + len(batch.images))
        return torch.from_numpy(np.ascontiguousarray(answers, dtype=np.float32))


class BelievedTeacher:
    """Gives the teacher's probabilities for some slots, and ground truth for those where the teacher is not believed.

    Args:
        teacher: Answers for the teacher.
        believed: (slots of the plan,) bool, in plan order.
    """

    def __init__(self, teacher: TeacherAnswers, believed: npt.NDArray[np.bool_]) -> None:
        self._teacher = teacher
        self._believed = torch.from_numpy(believed)

    @property
    def reads_ahead(self) -> bool:
        """As the teacher's."""
        return self._teacher.reads_ahead

    def answer(self, question: Question, first_slot: int, batch: Microbatch) -> Tensor:
        """Return probabilities, (B, K, G, G) float32; the question is the one about masks."""
        answers = self._teacher.answer(question, first_slot, batch)
        believed = self._believed[first_slot : first_slot + len(answers)].to(answers.device)
        return torch.where(believed[:, None, None, None], answers, batch.masks.to(answers.device))
