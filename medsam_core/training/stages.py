"""The two stages. What belongs here: what each trains, what it asks of the teacher, and its loss for one group.

Not here: steps, gradients across groups, files (`medsam_core.training.step`, `.loop`).

Distillation fits the student's encoder to the teacher's embeddings. Fine-tuning fits the whole student to masks, and
to the teacher's masks where it has one; without one it also pretrains a stand-in teacher.
"""

from torch import Tensor
from torch.nn import Parameter

from medsam_core.config import StageConfig
from medsam_core.losses import embedding_mse, finetuning_loss
from medsam_core.models.segmenter import Segmenter
from medsam_core.plan import Stage
from medsam_core.rendering import GroupBatch
from medsam_core.training.errors import TrainingError
from medsam_core.training.teachers import TeacherAnswers

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

They stay as loaded. Left to the optimiser they would get no gradient, or zeros with weight decay upon them.
"""


def prepare(segmenter: Segmenter, stage: Stage) -> dict[str, Parameter]:
    """Freeze what the stage does not train, set the modes of layers, and return the trained parameters by name.

    Distillation trains `image_encoder` and leaves prompt encoder and mask decoder as they are.
    """
    segmenter.eval()
    (segmenter.image_encoder if stage == "distillation" else segmenter).train()
    trained = {name: p for name, p in segmenter.named_parameters() if _is_trained(name, stage)}
    segmenter.requires_grad_(requires_grad=False)
    for parameter in trained.values():
        parameter.requires_grad = True
    return trained


def term_names(stage: Stage, config: StageConfig) -> tuple[str, ...]:
    """Return the names of the loss and its terms, in the order of `group_loss`."""
    if stage == "distillation":
        return ("loss", "embedding_mse")
    return ("loss", "dice", "bce", "iou", *(("teacher_bce",) if config.mask_distillation else ()))


def require_teacher(stage: Stage, config: StageConfig, teacher: TeacherAnswers | None) -> None:
    """Refuse a stage that asks a teacher which is not there.

    Raises:
        TrainingError: If the stage needs a teacher and none is given.
    """
    if teacher is None and (stage == "distillation" or config.mask_distillation):
        raise TrainingError(
            f"{stage}: expected a teacher, found none; give one, or fine-tune with mask_distillation off"
        )


def ask_teacher(
    stage: Stage, config: StageConfig, teacher: TeacherAnswers | None, first_slot: int, batch: GroupBatch
) -> Tensor | None:
    """Return the teacher's answers that the stage learns from: embeddings, probabilities, or None for none."""
    if teacher is None:
        return None
    if stage == "distillation":
        return teacher.embeddings(first_slot, batch)
    return teacher.probabilities(first_slot, batch) if config.mask_distillation else None


def group_loss(stage: Stage, segmenter: Segmenter, batch: GroupBatch, answers: Tensor | None) -> list[Tensor]:
    """Return a group's loss, which carries the gradient, followed by its terms; scalars as `term_names` has them.

    Args:
        stage: Which of the two stages.
        segmenter: The model in training.
        batch: The rendered group, on the model's device.
        answers: The teacher's, from `ask_teacher`; a must in distillation.
    """
    if stage == "distillation":
        if answers is None:
            raise TrainingError("distillation: expected the teacher's embeddings, found none; give a teacher")
        loss = embedding_mse(segmenter.encode(batch.images), answers)
        return [loss, loss]
    logits, predicted_iou = segmenter(batch.images, batch.boxes)
    loss, terms = finetuning_loss(logits, predicted_iou, batch.masks, answers)
    return [loss, *terms.values()]


def _is_trained(name: str, stage: Stage) -> bool:
    if stage == "distillation":
        return name.startswith("image_encoder.")
    return not name.startswith(UNREACHED)
