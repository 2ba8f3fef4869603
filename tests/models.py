"""Models with golden weights, and changed ones. What belongs here: what several tests of models share."""

import torch
from torch import Tensor, nn

from medsam_core.models.config import TeacherConfig
from medsam_core.models.segmenter import build_teacher
from tests.golden_weights import golden_state


def perturb(module: nn.Module, name: str) -> None:
    """Add noise of 5 % of a tensor's root mean square to it."""
    tensor = module.state_dict()[name]
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
    tensor += 0.05 * tensor.square().mean().sqrt() * noise


def lite_medsam_state() -> dict[str, Tensor]:
    """Return LiteMedSAM's whole state by its published keys, with weights that are a function of their names."""
    encoder = {key.replace("tiny_vit.", "image_encoder."): value for key, value in golden_state("tiny_vit_256").items()}
    fresh = build_teacher(TeacherConfig(kind="lite_medsam", image_size=256)).state_dict()
    counters = {key: value for key, value in fresh.items() if key.endswith("num_batches_tracked")}
    return {**encoder, **counters, **golden_state("prompt_encoder"), **golden_state("mask_decoder")}
