"""SAM's mask decoder as its paper writes it down: everything for every box. What belongs here: that decoder.

Tests and benchmarks hold the project's own, which computes once what boxes share, against it. It has the same weights
under the same keys.
"""

import torch
from torch import Tensor

from medsam_core.models.sam import MASK_TOKENS, MaskDecoder
from medsam_core.models.two_way_transformer import TwoWayBlock, TwoWayTransformer


def _block(block: TwoWayBlock, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor) -> tuple[Tensor, ...]:
    if block.first:
        tokens = block.self_attn(tokens, tokens, tokens)
    else:
        tokens = tokens + block.self_attn(tokens + token_pe, tokens + token_pe, tokens)
    tokens = block.norm1(tokens)
    tokens = block.norm2(tokens + block.cross_attn_token_to_image(tokens + token_pe, image + image_pe, image))
    tokens = block.norm3(tokens + block.mlp(tokens))
    image = block.norm4(image + block.cross_attn_image_to_token(image + image_pe, tokens + token_pe, tokens))
    return tokens, image


class StraightforwardTransformer(TwoWayTransformer):
    """Attention by projections of every cell of every box."""

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """As `TwoWayTransformer.forward`, from `image` (N, S, C)."""
        token_pe = tokens
        for layer in self.layers:
            assert isinstance(layer, TwoWayBlock)
            tokens, image = _block(layer, tokens, image, token_pe, image_pe)
        attended = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + attended), image


class StraightforwardDecoder(MaskDecoder):
    """Repeats the embedding for every box and upscales by transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = StraightforwardTransformer()

    def forward(
        self, embeddings: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor, *, multimask_output: bool = False
    ) -> tuple[Tensor, Tensor]:
        """As `MaskDecoder.forward`."""
        own_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own_tokens.expand(len(sparse), -1, -1), sparse], dim=1)
        image = embeddings.repeat_interleave(len(sparse) // len(embeddings), dim=0) + dense
        tokens, cells = self.transformer(image.flatten(2).transpose(1, 2), image_pe.flatten(2).transpose(1, 2), tokens)
        upscaled = self.output_upscaling(cells.transpose(1, 2).unflatten(2, image.shape[2:]))
        wanted = range(1, MASK_TOKENS) if multimask_output else range(1)
        kernels = torch.stack([self.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in wanted], dim=1)
        logits = (kernels @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
        return logits, self.iou_prediction_head(tokens[:, 0])[:, wanted.start : wanted.stop]
