"""The losses of the two stages as functions of tensors. What belongs here: formulae and the sum of a stage's terms.

Not here: which slots are drawn, who answers for the teacher, or how gradients are applied.

Legend: B images, K boxes of an image, E embedding channels, h w the embedding grid, H W the logits' grid (4h, 4w).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from medsam_core.base.config import DiceKind

DICE_SMOOTH = 1e-5
"""Added to numerator and denominator, MONAI's default, which the paper's public code uses [C]."""


def embedding_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error of embeddings, the distillation loss (paper, Table 3).

    Args:
        student: (B, E, h, w).
        teacher: (B, E, h, w); no gradient flows into it.

    Raises:
        ValueError: If the shapes differ, which would otherwise broadcast.
    """
    _require_same_shape("teacher embeddings", student, teacher)
    return F.mse_loss(student.float(), teacher.detach().float())


def dice_loss(logits: Tensor, target: Tensor, kind: DiceKind = "squared") -> Tensor:
    """Return one minus the soft Dice of sigmoid probabilities, mean over images and boxes.

    Where all that is known of a region is the share q of foreground in it, squares are minimal at a probability of
    sqrt(q), and below q = 0.25 that is an empty mask; sums are minimal at certainty, the region filled.

    Args:
        logits: (B, K, H, W).
        target: (B, K, H, W) in [0, 1].
        kind: The denominator: a sum of squares (Milletari et al. 2016, V-Net), as in the paper's public code [C], or a
            sum of values (Drozdzal et al. 2016).
    """
    _require_same_shape("target masks", logits, target)
    probability = logits.float().sigmoid()
    target = target.float()
    overlap = (probability * target).sum(dim=(-2, -1))
    if kind == "squared":
        probability, target = probability.square(), target.square()
    size = probability.sum(dim=(-2, -1)) + target.sum(dim=(-2, -1))
    return (1 - (2 * overlap + DICE_SMOOTH) / (size + DICE_SMOOTH)).mean()


def bce_with_logits(logits: Tensor, target: Tensor) -> Tensor:
    """Return the binary cross-entropy of logits, mean over pixels.

    Args:
        logits: (B, K, H, W).
        target: (B, K, H, W) in [0, 1]; targets may be soft.
    """
    _require_same_shape("target masks", logits, target)
    return F.binary_cross_entropy_with_logits(logits.float(), target.float())


def teacher_bce(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Return the cross-entropy of the student's logits against the teacher's probabilities (paper, Table 2).

    Args:
        logits: (B, K, H, W), the student's.
        probabilities: (B, K, H, W), the sigmoid of the teacher's logits; no gradient flows into it.
    """
    return bce_with_logits(logits, probabilities.detach())


def mask_iou(logits: Tensor, target: Tensor) -> Tensor:
    """Return the intersection over union of `logits > 0` with `target > 0.5`, (B, K) float32 without gradient.

    Two empty masks agree: their IoU is 1.

    Args:
        logits: (B, K, H, W).
        target: (B, K, H, W) in [0, 1].
    """
    _require_same_shape("target masks", logits, target)
    predicted, wanted = logits.detach() > 0, target > 0.5
    union = (predicted | wanted).sum(dim=(-2, -1))
    overlap = (predicted & wanted).sum(dim=(-2, -1))
    return torch.where(union > 0, overlap / union.clamp(min=1), 1.0)


def iou_head_loss(predicted_iou: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of the IoU head against the IoU of its mask.

    The paper's public code calls this the "IoU loss" [C]; it trains the head only, not the mask.

    Args:
        predicted_iou: (B, K), the head's answers.
        logits: (B, K, H, W); thresholded, so no gradient flows into them.
        target: (B, K, H, W) in [0, 1].
    """
    iou = mask_iou(logits, target)
    _require_same_shape("predicted IoU", iou, predicted_iou)
    return F.mse_loss(predicted_iou.float(), iou)


def finetuning_loss(
    logits: Tensor,
    predicted_iou: Tensor,
    masks: Tensor,
    probabilities: Tensor | None,
    *,
    dice: DiceKind = "squared",
    bce_weight: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the fine-tuning loss and its terms, by default all with weight 1 (paper, Table 2; weights [C]).

    Args:
        logits: (B, K, H, W), the student's low-resolution logits.
        predicted_iou: (B, K), the student's IoU head.
        masks: (B, K, H, W), ground truth brought to the logits' grid, 0 or 1.
        probabilities: (B, K, H, W), the teacher's, or None to learn from ground truth alone (ablation 1).
        dice: Denominator of the Dice term.
        bce_weight: Weight of the term `bce` in the sum.

    Returns:
        The sum, and its terms by name: `dice`, `bce`, `iou` and, with a teacher, `teacher_bce`.
    """
    terms = {
        "dice": dice_loss(logits, masks, dice),
        "bce": bce_with_logits(logits, masks),
        "iou": iou_head_loss(predicted_iou, logits, masks),
    }
    if probabilities is not None:
        terms["teacher_bce"] = teacher_bce(logits, probabilities)
    weighted = [bce_weight * term if name == "bce" else term for name, term in terms.items()]
    return torch.stack(weighted).sum(), terms


def _require_same_shape(what: str, expected: Tensor, found: Tensor) -> None:
    if expected.shape != found.shape:
        raise ValueError(
            f"{what}: expected shape {tuple(expected.shape)}, found {tuple(found.shape)}; "
            "student, teacher and masks must be rendered for the same image size"
        )
