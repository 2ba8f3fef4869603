"""The mask decoder gives what the straightforward one gives, values and gradients, and shares what boxes share."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from medsam_core.models.sam import MaskDecoder, PromptEncoder
from tests.straightforward import StraightforwardDecoder

SIDE, GRID = 64, 16


@pytest.fixture(scope="module")
def decoders() -> tuple[MaskDecoder, StraightforwardDecoder]:
    """Both with the same weights, none of them a fresh layer's zero or one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours, rival = MaskDecoder(), StraightforwardDecoder()
        for parameter in ours.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    rival.load_state_dict(ours.state_dict())
    return ours, rival


def decode(decoder: MaskDecoder, images: int, boxes: int, *, multimask: bool = False) -> tuple[Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        prompts = PromptEncoder(SIDE, GRID)
        embeddings = torch.randn(images, 256, GRID, GRID)
        corners = SIDE * torch.rand(images * boxes, 4)
    sparse, dense = prompts(corners)
    logits, iou = decoder(embeddings, prompts.dense_positions(), sparse, dense, multimask_output=multimask)
    return logits, iou


@pytest.mark.parametrize(("images", "boxes"), [(1, 1), (1, 4), (3, 1), (2, 3)])
@pytest.mark.parametrize("multimask", [False, True])
def test_the_answers_are_the_straightforward_ones(
    decoders: tuple[MaskDecoder, StraightforwardDecoder], images: int, boxes: int, *, multimask: bool
) -> None:
    with torch.inference_mode():
        (logits, iou), (expected, expected_iou) = (decode(d, images, boxes, multimask=multimask) for d in decoders)
    assert logits.shape == expected.shape == (images * boxes, 3 if multimask else 1, 4 * GRID, 4 * GRID)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (iou - expected_iou).abs().max() <= 1e-5


def test_so_are_the_gradients(decoders: tuple[MaskDecoder, StraightforwardDecoder]) -> None:
    found: list[dict[str, Tensor]] = []
    for decoder in decoders:
        decoder.zero_grad()
        logits, iou = decode(decoder, 2, 3)
        (logits.square().mean() + iou.square().mean()).backward()
        found.append({name: p.grad for name, p in decoder.named_parameters() if p.grad is not None})
    ours, expected = found
    assert ours.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        # The bias of keys moves all scores of a query alike: its gradient is nothing but rounding.
        allowed = 1e-4 * float(gradient.abs().max()) + 1e-6 * largest
        assert float((ours[name] - gradient).abs().max()) <= allowed, name


def flops(decoder: MaskDecoder, boxes: int) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        decode(decoder, 1, boxes)
    return counter.get_total_flops()


def test_a_further_box_costs_less_than_the_first_and_than_one_of_the_straightforward_one(
    decoders: tuple[MaskDecoder, StraightforwardDecoder],
) -> None:
    ours, rival = ([flops(decoder, boxes) for boxes in (1, 4, 5)] for decoder in decoders)
    assert ours[2] - ours[1] < ours[0]
    assert rival[2] - rival[1] == rival[0]
    assert ours[2] - ours[1] < 0.62 * rival[0]
