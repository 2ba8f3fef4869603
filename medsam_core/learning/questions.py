"""What is asked of the teacher. What belongs here: each question, the form of its answer and how answers compare.

Not here: which stage asks what (`stages`), who answers (`teachers`), or how answers are stored. Nothing here
imports torch before the teacher is asked, so that a plan of a cache needs none.

Legend: B images, K boxes of an image, G side of the logits.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from medsam_core.base.geometry import Geometry

if TYPE_CHECKING:
    from torch import Tensor

    from medsam_core.models.segmenter import Segmenter

AnswerKind = Literal["embeddings", "logits"]


class Question(ABC):
    """A question that has one answer for each slot of a plan.

    Attributes:
        kind: Name of the answers in caches and assets. Probabilities are named `logits`, of which they are the sigmoid,
            as in earlier versions, whose caches are found by it.
        array: Name of the stored array.
        values: `features` are unbounded reals, `probabilities` lie in [0, 1]; a store rounds them accordingly.
        allowed_error: Largest error between a stored answer and the same answer computed again. It allows for rounding
            in the store, mixed precision and another machine; another image gives an error hundreds of times as large.
    """

    kind: ClassVar[AnswerKind]
    array: ClassVar[str]
    values: ClassVar[Literal["features", "probabilities"]]
    allowed_error: ClassVar[float]

    @abstractmethod
    def shape(self, geometry: Geometry, n_prompts: int) -> tuple[int, ...]:
        """Return the shape of the answer for one slot.

        Args:
            geometry: Of the teacher.
            n_prompts: K.
        """

    @abstractmethod
    def ask(self, teacher: "Segmenter", images: "Tensor", boxes: "Tensor") -> "Tensor":
        """Return the answers, (B, ...) float32.

        Args:
            teacher: The teacher.
            images: (B, 3, S, S) float32, raw values in 0..255.
            boxes: (B, K, 4) float32, `xyxy_px` of the model frame, half-open.
        """

    @abstractmethod
    def error(self, again: npt.NDArray[np.float32], stored: npt.NDArray[np.float32]) -> float:
        """Return how far a slot's stored answer is from the same answer computed again."""


class Embeddings(Question):
    """The teacher's embedding of the image, (256, h, w) each."""

    kind: ClassVar[AnswerKind] = "embeddings"
    array: ClassVar[str] = "embeddings"
    values: ClassVar[Literal["features", "probabilities"]] = "features"
    allowed_error: ClassVar[float] = 1e-3

    def shape(self, geometry: Geometry, n_prompts: int) -> tuple[int, ...]:
        """Return (256, h, w)."""
        del n_prompts
        return geometry.embedding_shape

    def ask(self, teacher: "Segmenter", images: "Tensor", boxes: "Tensor") -> "Tensor":
        """Encode the images; the boxes do not matter."""
        del boxes
        return teacher.encode(images).float()

    def error(self, again: npt.NDArray[np.float32], stored: npt.NDArray[np.float32]) -> float:
        """Return the mean square of the difference over the mean variance within channels."""
        return float(np.square(again - stored).mean() / again.reshape(len(again), -1).var(axis=1).mean())


class TeacherProbabilities(Question):
    """The teacher's probability that a cell of the logit grid belongs to the object of the box, (K, G, G) each."""

    kind: ClassVar[AnswerKind] = "logits"
    array: ClassVar[str] = "probabilities"
    values: ClassVar[Literal["features", "probabilities"]] = "probabilities"
    allowed_error: ClassVar[float] = 1e-2

    def shape(self, geometry: Geometry, n_prompts: int) -> tuple[int, ...]:
        """Return (K, G, G)."""
        return (n_prompts, geometry.logit_side, geometry.logit_side)

    def ask(self, teacher: "Segmenter", images: "Tensor", boxes: "Tensor") -> "Tensor":
        """Return the sigmoid of the low-resolution logits."""
        logits, _ = teacher.decode(teacher.encode(images), boxes)
        return logits.float().sigmoid()

    def error(self, again: npt.NDArray[np.float32], stored: npt.NDArray[np.float32]) -> float:
        """Return the mean absolute difference."""
        return float(np.abs(again - stored).mean())


EMBEDDINGS = Embeddings()
TEACHER_PROBABILITIES = TeacherProbabilities()
