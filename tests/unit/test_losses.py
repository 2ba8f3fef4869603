"""Losses against hand computation and their properties."""

import numpy as np
import pytest
import torch

from medsam_core.learning.losses import (
    bce_with_logits,
    dice_loss,
    embedding_mse,
    finetuning_loss,
    iou_head_loss,
    mask_iou,
    teacher_bce,
)

SHAPE = (2, 3, 8, 8)


def _masks(seed: int = 0) -> torch.Tensor:
    return (torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)) > 0.6).float()


def _logits(seed: int = 1) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_embedding_mse_is_the_mean_of_squares() -> None:
    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    assert embedding_mse(student, teacher).item() == pytest.approx(2.5)
    assert embedding_mse(student, student).item() == 0


def test_dice_squares_its_denominator() -> None:
    logits, masks = _logits(), _masks()
    p, t = torch.sigmoid(logits.detach()).double().numpy(), masks.double().numpy()
    axes = (2, 3)
    score = (2 * (p * t).sum(axes) + 1e-5) / ((p**2).sum(axes) + (t**2).sum(axes) + 1e-5)
    assert dice_loss(logits, masks).item() == pytest.approx(float(np.mean(1 - score)), rel=1e-6)


def test_dice_is_zero_for_a_perfect_and_one_for_a_disjoint_mask() -> None:
    masks = _masks()
    certain = (masks * 2 - 1) * 40
    assert dice_loss(certain, masks).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(-certain, masks).item() == pytest.approx(1, abs=1e-5)


def test_dice_of_two_empty_masks_is_zero() -> None:
    assert dice_loss(torch.full((1, 1, 4, 4), -60.0), torch.zeros(1, 1, 4, 4)).item() == pytest.approx(0, abs=1e-6)


def test_dice_is_a_mean_over_boxes_not_over_pixels() -> None:
    logits, masks = _logits().detach(), _masks()
    one_by_one = [
        dice_loss(logits[b : b + 1, k : k + 1], masks[b : b + 1, k : k + 1]) for b in range(2) for k in range(3)
    ]
    assert dice_loss(logits, masks).item() == pytest.approx(torch.stack(one_by_one).mean().item(), rel=1e-6)


def test_bce_takes_soft_targets_literally() -> None:
    value = bce_with_logits(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.25)).item()
    assert value == pytest.approx(np.log(2), rel=1e-6)


def test_teacher_bce_is_least_where_the_student_agrees() -> None:
    probabilities = torch.rand(SHAPE, generator=torch.Generator().manual_seed(4)).clamp(0.05, 0.95)
    agreeing = torch.logit(probabilities).requires_grad_()
    teacher_bce(agreeing, probabilities).backward()  # type: ignore[no-untyped-call]
    assert agreeing.grad is not None
    assert agreeing.grad.abs().max() < 1e-7


def test_the_teacher_gets_no_gradient() -> None:
    probabilities = torch.rand(SHAPE).requires_grad_()
    embeddings = torch.rand(2, 4).requires_grad_()
    (teacher_bce(_logits(), probabilities) + embedding_mse(torch.rand(2, 4).requires_grad_(), embeddings)).backward()  # type: ignore[no-untyped-call]
    assert probabilities.grad is None
    assert embeddings.grad is None


def test_mask_iou_counts_pixels() -> None:
    logits = torch.tensor([[[[3.0, 3.0, -3.0, -3.0]]]])
    target = torch.tensor([[[[1.0, 0.0, 1.0, 0.0]]]])
    assert mask_iou(logits, target).tolist() == [[pytest.approx(1 / 3)]]


def test_two_empty_masks_agree() -> None:
    empty = torch.zeros(1, 1, 4, 4)
    assert mask_iou(empty - 5, empty).tolist() == [[1.0]]
    assert iou_head_loss(torch.tensor([[1.0]]), empty - 5, empty).item() == 0


def test_the_iou_loss_teaches_the_head_only() -> None:
    logits, predicted = _logits(), torch.full((2, 3), 0.5).requires_grad_()
    iou_head_loss(predicted, logits, _masks()).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is None
    assert predicted.grad is not None
    assert (predicted.grad != 0).all()


def test_finetuning_sums_its_terms_with_weight_one() -> None:
    logits, masks, predicted = _logits(), _masks(), torch.full((2, 3), 0.3)
    probabilities = torch.rand(SHAPE)
    total, terms = finetuning_loss(logits, predicted, masks, probabilities)
    expected = (
        dice_loss(logits, masks)
        + bce_with_logits(logits, masks)
        + iou_head_loss(predicted, logits, masks)
        + teacher_bce(logits, probabilities)
    )
    assert list(terms) == ["dice", "bce", "iou", "teacher_bce"]
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_without_a_teacher_there_is_no_teacher_term() -> None:
    _, terms = finetuning_loss(_logits(), torch.zeros(2, 3), _masks(), None)
    assert list(terms) == ["dice", "bce", "iou"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_are_taken_in_float32(dtype: torch.dtype) -> None:
    logits = _logits().detach().to(dtype)
    total, terms = finetuning_loss(logits, torch.zeros(2, 3, dtype=dtype), _masks(), torch.rand(SHAPE))
    assert {total.dtype, *(term.dtype for term in terms.values())} == {torch.float32}
    assert embedding_mse(logits, logits).dtype == torch.float32


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected shape \(2, 3, 8, 8\), found \(2, 1, 8, 8\)"):
        dice_loss(_logits(), _masks()[:, :1])
    with pytest.raises(ValueError, match="teacher embeddings"):
        embedding_mse(torch.zeros(2, 4), torch.zeros(1, 4))


def test_what_cannot_be_made_out_is_filled_by_the_linear_dice_and_dropped_by_the_squared_one() -> None:
    """Of 100 pixels 9 are foreground, nobody knows which: the best single probability of all of them."""
    mask = torch.zeros(1, 1, 10, 10)
    mask[..., 0, :9] = 1
    probabilities = torch.linspace(0.01, 0.99, 99)
    logits = torch.logit(probabilities)[:, None, None, None].expand(-1, 1, 10, 10)
    best = {}
    for kind in ("squared", "linear"):
        losses = torch.stack([dice_loss(one[None], mask, kind) for one in logits])
        best[kind] = float(probabilities[losses.argmin()])
    assert best == pytest.approx({"squared": 0.3, "linear": 0.99}, abs=0.006)


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_the_weight_of_the_cross_entropy_changes_the_sum_and_not_the_term(weight: float) -> None:
    logits, masks = _logits(), _masks()
    plain, terms = finetuning_loss(logits, torch.zeros(2, 3), masks, None)
    weighted, same = finetuning_loss(logits, torch.zeros(2, 3), masks, None, bce_weight=weight)
    assert same == terms
    assert weighted.item() == pytest.approx((plain - (1 - weight) * terms["bce"]).item(), rel=1e-6)
