"""SAM's prompt encoder and mask decoder. What belongs here: both modules, under the keys of published checkpoints.

Not here: image encoders, or bringing boxes into the model frame. Facts: "Segment Anything"
(arXiv 2304.02643), appendix A, and the keys, shapes and outputs of the public implementation.

Legend: B images, K boxes an image, N = B * K prompts, T tokens, h w the embedding grid, C = 256 channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsam_core.base.geometry import EMBEDDING_CHANNELS
from medsam_core.models.layers import LayerNorm2d, Mlp
from medsam_core.models.two_way_transformer import TwoWayTransformer

MASK_TOKENS = 4
"""One token for the single-mask answer and three for the ambiguous, multi-mask one."""

_CORNERS = (2, 3)
"""Which `point_embeddings` mark a box's top left and bottom right corner; 0 and 1 mark background and foreground."""

_PIXEL_CENTRE = 0.5
"""Offset SAM adds to prompt coordinates and to grid indices."""


class PositionEncoding(nn.Module):
    """Random Fourier features of positions in the unit square."""

    def __init__(self) -> None:
        super().__init__()
        gaussian = torch.randn(2, EMBEDDING_CHANNELS // 2)
        self.register_buffer("positional_encoding_gaussian_matrix", gaussian)
        self.positional_encoding_gaussian_matrix: Tensor

    def forward(self, xy: Tensor) -> Tensor:
        """Map positions (..., 2), x then y as fractions of the frame, to encodings (..., 256).

        Written without a matrix product, which automatic mixed precision would round to half: the phase needs float32.
        """
        x, y = (2 * xy - 1).unsqueeze(-1).unbind(-2)
        frequencies = self.positional_encoding_gaussian_matrix
        phase = 2 * math.pi * (x * frequencies[0] + y * frequencies[1])
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


class PromptEncoder(nn.Module):
    """Turns boxes into tokens.

    The weights for points and mask prompts are kept, so that published checkpoints load and save
    completely; no forward pass of this project uses them.

    Args:
        image_size: Side S of the square model frame in pixels.
        grid: Side of the embedding grid.
    """

    def __init__(self, image_size: int, grid: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.grid = grid
        self.pe_layer = PositionEncoding()
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, EMBEDDING_CHANNELS) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, EMBEDDING_CHANNELS)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, kernel_size=2, stride=2),
            LayerNorm2d(4),
            nn.GELU(),
            nn.Conv2d(4, 16, kernel_size=2, stride=2),
            LayerNorm2d(16),
            nn.GELU(),
            nn.Conv2d(16, EMBEDDING_CHANNELS, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, EMBEDDING_CHANNELS)

    def forward(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Encode boxes.

        Args:
            boxes: (N, 4) float, xyxy_px in the model frame. SAM moves each corner by half a pixel; so does this.

        Returns:
            Sparse embeddings (N, 2, 256), one token a corner, and a dense embedding (1, 256, h, w), which says that
            there is no mask prompt and is the same for all boxes.
        """
        corners = (boxes.float().reshape(-1, 2, 2) + _PIXEL_CENTRE) / self.image_size
        kinds = torch.cat([self.point_embeddings[row].get_parameter("weight") for row in _CORNERS])
        sparse = self.pe_layer(corners) + kinds
        dense = self.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(-1, -1, self.grid, self.grid)
        return sparse, dense

    def dense_positions(self) -> Tensor:
        """Return the positional encoding of the embedding grid's cell centres, (1, 256, h, w)."""
        device = self.no_mask_embed.weight.device
        centres = (torch.arange(self.grid, device=device, dtype=torch.float32) + _PIXEL_CENTRE) / self.grid
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        encoding: Tensor = self.pe_layer(torch.stack([x, y], dim=-1))
        return encoding.permute(2, 0, 1).unsqueeze(0)


class MaskDecoder(nn.Module):
    """Predicts masks on a grid four times as fine as the embedding's, and the IoU it expects of each."""

    def __init__(self) -> None:
        super().__init__()
        C = EMBEDDING_CHANNELS
        self.transformer = TwoWayTransformer()
        self.iou_token = nn.Embedding(1, C)
        self.mask_tokens = nn.Embedding(MASK_TOKENS, C)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(C, C // 4, kernel_size=2, stride=2),
            LayerNorm2d(C // 4),
            nn.GELU(),
            nn.ConvTranspose2d(C // 4, C // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(Mlp(C, C, C // 8, depth=3) for _ in range(MASK_TOKENS))
        self.iou_prediction_head = Mlp(C, C, MASK_TOKENS, depth=3)

    def forward(
        self, embeddings: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor, *, multimask_output: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Decode prompts against image embeddings.

        Args:
            embeddings: (B, 256, h, w); image b belongs to prompts b * K to (b + 1) * K.
            image_pe: (1, 256, h, w), of `PromptEncoder.dense_positions`.
            sparse: (N, T, 256), of `PromptEncoder.forward`.
            dense: (1, 256, h, w), likewise.
            multimask_output: Return the three ambiguous masks rather than the single one.

        Returns:
            Logits (N, M, 4h, 4w) and expected IoUs (N, M), M = 3 or 1.
        """
        own_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own_tokens.expand(len(sparse), -1, -1), sparse], dim=1)
        image, positions = (grid.flatten(2).transpose(1, 2).contiguous() for grid in (embeddings + dense, image_pe))
        tokens, cells = self.transformer(image, positions, tokens)
        wanted = range(1, MASK_TOKENS) if multimask_output else range(1)
        kernels = torch.stack([self.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in wanted], dim=1)
        iou = self.iou_prediction_head(tokens[:, 0])
        return self._logits(cells, kernels, embeddings.shape[3]), iou[:, wanted.start : wanted.stop]

    def _logits(self, cells: Tensor, kernels: Tensor, width: int) -> Tensor:
        """Upscale cells (N, h * w, 256) twice and take their products with kernels (N, M, 32): (N, M, 4h, 4w).

        The upscaled cells of a cell stay beside each other, channels last, until one number is left of each: a
        transposed convolution whose stride is its kernel is a linear layer of every cell alone.
        """
        first, norm, gelu, second, last_gelu = self.output_upscaling
        quarters = _quartered(first, cells)
        quarters = gelu(norm(quarters.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        sixteenths = last_gelu(_quartered(second, quarters))
        logits = sixteenths.flatten(1, 3) @ kernels.transpose(1, 2)
        # Rows and columns: of the cell, of its quarter, of that one's quarter.
        grid = logits.view(len(cells), -1, width, 2, 2, 2, 2, kernels.shape[1])
        rows_and_columns: Tensor = grid.permute(0, 7, 1, 3, 5, 2, 4, 6).flatten(5, 7).flatten(2, 4)
        return rows_and_columns


def _quartered(upscaling: nn.Module, cells: Tensor) -> Tensor:
    """Map cells (..., C) to their quarters (..., 4, C'), by row and then column, as the 2x2 layer of stride 2 does."""
    weight = upscaling.get_parameter("weight").permute(2, 3, 1, 0).flatten(0, 2)
    quarters = F.linear(cells, weight, upscaling.get_parameter("bias").repeat(4))
    return quarters.view(*cells.shape[:-1], 4, -1)
