"""Decoding boxes on 64 x 64 cells, against the straightforward decoder. `python -m tests.benchmarks.decode_boxes`.

Forward alone (in inference mode), and forward with backward, in float32, for several boxes of an image.
"""

import os
from functools import partial

import torch
from torch import Tensor

from medsam_core.models.sam import MaskDecoder, PromptEncoder
from tests.benchmarks._harness import interleaved, report
from tests.straightforward import StraightforwardDecoder

SIDE, GRID = 256, 64
NAME = "decode_boxes"


def _decode(decoder: MaskDecoder, prompts: PromptEncoder, embeddings: Tensor, boxes: Tensor) -> Tensor:
    sparse, dense = prompts(boxes)
    logits, iou = decoder(embeddings, prompts.dense_positions(), sparse, dense)
    return logits.square().mean() + iou.mean()


@torch.inference_mode()
def _forward(decoder: MaskDecoder, prompts: PromptEncoder, embeddings: Tensor, boxes: Tensor) -> Tensor:
    return _decode(decoder, prompts, embeddings, boxes)


def _backward(decoder: MaskDecoder, prompts: PromptEncoder, embeddings: Tensor, boxes: Tensor) -> None:
    torch.autograd.backward(_decode(decoder, prompts, embeddings, boxes))


def main() -> None:
    """Print two lines for each number of boxes: milliseconds of CPU a box."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.manual_seed(0)
    prompts, ours, rival = PromptEncoder(SIDE, GRID), MaskDecoder(), StraightforwardDecoder()
    rival.load_state_dict(ours.state_dict())
    for n_boxes in (1, 4, 16):
        low = SIDE / 2 * torch.rand(n_boxes, 2)
        boxes = torch.cat([low, low + SIDE / 4], dim=1)
        embeddings = torch.randn(1, 256, GRID, GRID)

        for case, work in (("forward", _forward), ("forward_backward", _backward)):
            own, other = (partial(work, decoder, prompts, embeddings, boxes) for decoder in (ours, rival))
            seconds, ratio = interleaved(own, other)
            name, unit = f"{case}_{n_boxes}", "cpu_ms_per_box"
            report(NAME, name, 1e3 * seconds / n_boxes, unit, rival="everything for every box", ratio=ratio)


if __name__ == "__main__":
    main()
