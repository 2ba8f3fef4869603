"""The training stages. What belongs here: what each draws, asks of the teacher, trains and minimises.

Not here: numbers (`medsam_core.base.config.StageConfig`), the layout of a plan (`medsam_core.planning.plan`),
steps and files (`medsam_core.training`), formulae (`losses`). torch is imported only where a loss is computed: plans
and caches do not need it.

Distillation fits the student's encoder to the teacher's embeddings. Fine-tuning fits the whole student to masks, and
to the teacher's masks where it has one; without one it also pretrains a stand-in teacher. Adaptation fits a teacher's
decoder to masks, on its own frozen encoder.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal

from medsam_core.base.config import BoxJitter, StageConfig
from medsam_core.learning.questions import EMBEDDINGS, TEACHER_PROBABILITIES, Question

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter

    from medsam_core.imaging.rendering import Microbatch
    from medsam_core.learning.teachers import TeacherAnswers
    from medsam_core.models.segmenter import Segmenter

StageName = Literal["distillation", "finetuning", "adaptation"]

UNREACHED = (
    "prompt_encoder.point_embeddings.0.",
    "prompt_encoder.point_embeddings.1.",
    "prompt_encoder.not_a_point_embed.",
    "prompt_encoder.mask_downscaling.",
    "mask_decoder.output_hypernetworks_mlps.1.",
    "mask_decoder.output_hypernetworks_mlps.2.",
    "mask_decoder.output_hypernetworks_mlps.3.",
)
"""Parameters of SAM that a box prompt with a single mask output never touches: point and mask prompts, other masks.

They stay as loaded. The optimiser would have no gradient for them, or zeros, to which it would add weight decay.
"""


class Stage(ABC):
    """One training stage.

    Attributes:
        name: Its name in profiles, plans and fingerprints.
        question: What it asks of the teacher, where it asks one.
        mixes: Whether the images of a microbatch may be mixed.
        draws_unlabelled: Whether it learns from images without ground truth, too.
        trains_decoder: Whether prompt encoder and mask decoder are trained, from the teacher's weights on. If not, the
            encoder is published with batch-norm statistics of clean images.
    """

    name: ClassVar[StageName]
    question: ClassVar[Question]
    mixes: ClassVar[bool]
    draws_unlabelled: ClassVar[bool] = False
    trains_decoder: ClassVar[bool]

    @property
    def section(self) -> str:
        """Its section of a profile."""
        return self.name

    @abstractmethod
    def n_prompts(self, config: StageConfig) -> int:
        """Return K, the labels drawn for a slot."""

    @abstractmethod
    def box_jitter(self, config: StageConfig) -> BoxJitter:
        """Return how far each side of a box may move."""

    @abstractmethod
    def asks(self, config: StageConfig) -> bool:
        """Return whether the teacher is asked."""

    @abstractmethod
    def terms(self, config: StageConfig) -> tuple[str, ...]:
        """Return the names of the loss and its terms, in the order of `losses`."""

    @abstractmethod
    def trains(self, parameter: str) -> bool:
        """Return whether the parameter of this name is trained."""

    @abstractmethod
    def losses(
        self, config: StageConfig, segmenter: "Segmenter", batch: "Microbatch", answers: "Tensor | None"
    ) -> "list[Tensor]":
        """Return a microbatch's loss, which carries the gradient, followed by its terms; scalars as `terms` has them.

        Args:
            config: Of the stage.
            segmenter: The model in training.
            batch: The rendered microbatch, on the model's device.
            answers: The teacher's, from `ask`.

        Raises:
            ValueError: If answers are missing that the loss cannot do without.
        """

    def ask(
        self, config: StageConfig, teacher: "TeacherAnswers | None", first_slot: int, batch: "Microbatch"
    ) -> "Tensor | None":
        """Return the teacher's answers that the stage learns from; None where it asks no teacher.

        Args:
            config: Of the stage.
            teacher: Answers the question.
            first_slot: Place of the microbatch's first slot in plan order.
            batch: The rendered microbatch.
        """
        if teacher is None or not self.asks(config):
            return None
        return teacher.answer(self.question, first_slot, batch)

    def prepare(self, segmenter: "Segmenter") -> "dict[str, Parameter]":
        """Freeze what is not trained, set the modes of layers, and return the trained parameters by name."""
        segmenter.eval()
        for part in self._trained_parts(segmenter):
            part.train()
        trained = {name: p for name, p in segmenter.named_parameters() if self.trains(name)}
        segmenter.requires_grad_(requires_grad=False)
        for parameter in trained.values():
            parameter.requires_grad = True
        return trained

    @abstractmethod
    def _trained_parts(self, segmenter: "Segmenter") -> "tuple[Module, ...]":
        """Return the parts whose layers are put into training mode."""


class Distillation(Stage):
    """The encoder learns the teacher's embeddings (paper, Table 3); prompt encoder and mask decoder stay."""

    name: ClassVar[StageName] = "distillation"
    question: ClassVar[Question] = EMBEDDINGS
    mixes: ClassVar[bool] = True
    draws_unlabelled: ClassVar[bool] = True
    trains_decoder: ClassVar[bool] = False

    def n_prompts(self, config: StageConfig) -> int:
        """Return 0: an embedding depends on the image alone."""
        del config
        return 0

    def box_jitter(self, config: StageConfig) -> BoxJitter:
        """Return none: there are no boxes."""
        del config
        return BoxJitter()

    def asks(self, config: StageConfig) -> bool:
        """Return True: the teacher's embeddings are all it learns from."""
        del config
        return True

    def terms(self, config: StageConfig) -> tuple[str, ...]:
        """Return the loss, which is its only term."""
        del config
        return ("loss", "embedding_mse")

    def trains(self, parameter: str) -> bool:
        """Return whether the parameter is the image encoder's."""
        return parameter.startswith("image_encoder.")

    def losses(
        self, config: StageConfig, segmenter: "Segmenter", batch: "Microbatch", answers: "Tensor | None"
    ) -> "list[Tensor]":
        """Return the mean square error of the embeddings, twice: as loss and as term."""
        from medsam_core.learning.losses import embedding_mse

        del config
        if answers is None:
            raise ValueError("distillation: expected the teacher's embeddings, found none; give a teacher")
        loss = embedding_mse(segmenter.encode(batch.images), answers)
        return [loss, loss]

    def _trained_parts(self, segmenter: "Segmenter") -> "tuple[Module, ...]":
        return (segmenter.image_encoder,)


class FineTuning(Stage):
    """The whole student learns masks, and the teacher's masks where `mask_distillation` is on (paper, Table 2)."""

    name: ClassVar[StageName] = "finetuning"
    question: ClassVar[Question] = TEACHER_PROBABILITIES
    mixes: ClassVar[bool] = False
    trains_decoder: ClassVar[bool] = True

    def n_prompts(self, config: StageConfig) -> int:
        """Return the configured labels of a slot."""
        return config.prompts_per_slot

    def box_jitter(self, config: StageConfig) -> BoxJitter:
        """Return the configured jitter."""
        return config.box_jitter

    def asks(self, config: StageConfig) -> bool:
        """Return whether the teacher's masks are learnt beside the ground truth's."""
        return config.mask_distillation

    def terms(self, config: StageConfig) -> tuple[str, ...]:
        """Return the loss and its terms: three of the ground truth, one of the teacher."""
        return ("loss", "dice", "bce", "iou", *(("teacher_bce",) if self.asks(config) else ()))

    def trains(self, parameter: str) -> bool:
        """Return whether a box prompt reaches the parameter."""
        return not parameter.startswith(UNREACHED)

    def losses(
        self, config: StageConfig, segmenter: "Segmenter", batch: "Microbatch", answers: "Tensor | None"
    ) -> "list[Tensor]":
        """Return the sum of the terms, then each."""
        from medsam_core.learning.losses import finetuning_loss

        logits, predicted_iou = segmenter(batch.images, batch.boxes)
        loss, terms = finetuning_loss(
            logits, predicted_iou, batch.masks, answers, dice=config.dice, bce_weight=config.bce_weight
        )
        return [loss, *terms.values()]

    def _trained_parts(self, segmenter: "Segmenter") -> "tuple[Module, ...]":
        return (segmenter,)


class Adaptation(Stage):
    """A teacher's prompt encoder and mask decoder learn masks; its encoder stays, so its embeddings can be read."""

    name: ClassVar[StageName] = "adaptation"
    question: ClassVar[Question] = EMBEDDINGS
    mixes: ClassVar[bool] = False
    trains_decoder: ClassVar[bool] = True

    @property
    def section(self) -> str:
        """Its section of a profile."""
        return "teacher_adaptation"

    def n_prompts(self, config: StageConfig) -> int:
        """Return the configured labels of a slot."""
        return config.prompts_per_slot

    def box_jitter(self, config: StageConfig) -> BoxJitter:
        """Return the configured jitter."""
        return config.box_jitter

    def asks(self, config: StageConfig) -> bool:
        """Return True: the embeddings are what the decoder is trained on."""
        del config
        return True

    def terms(self, config: StageConfig) -> tuple[str, ...]:
        """Return the loss and its terms, all of the ground truth."""
        del config
        return ("loss", "dice", "bce", "iou")

    def trains(self, parameter: str) -> bool:
        """Return whether a box prompt reaches the parameter, outside the encoder."""
        return not parameter.startswith(("image_encoder.", *UNREACHED))

    def losses(
        self, config: StageConfig, segmenter: "Segmenter", batch: "Microbatch", answers: "Tensor | None"
    ) -> "list[Tensor]":
        """Return the sum of the terms, then each; only the decoder runs."""
        from medsam_core.learning.losses import finetuning_loss

        if answers is None:
            raise ValueError("adaptation: expected the teacher's embeddings, found none; give a teacher")
        logits, predicted_iou = segmenter.decode(answers, batch.boxes)
        loss, terms = finetuning_loss(
            logits, predicted_iou, batch.masks, None, dice=config.dice, bce_weight=config.bce_weight
        )
        return [loss, *terms.values()]

    def _trained_parts(self, segmenter: "Segmenter") -> "tuple[Module, ...]":
        return (segmenter.prompt_encoder, segmenter.mask_decoder)


DISTILLATION = Distillation()
FINETUNING = FineTuning()
ADAPTATION = Adaptation()

STAGES: Mapping[StageName, Stage] = MappingProxyType(
    {stage.name: stage for stage in (ADAPTATION, DISTILLATION, FINETUNING)}
)
"""Stages by name."""
