"""The networks compute what the public reference implementations compute, and a changed layer is noticed.

Weights are a function of their names (`tests.golden_weights`), so these tests also pin keys, shapes and their order.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from medsam_core.models.config import StudentConfig
from medsam_core.models.encoders.repvit import RepViTEncoder
from medsam_core.models.encoders.sam_vit import MEDSAM_VIT_B, from_sam_keys
from medsam_core.models.sam import MaskDecoder, PromptEncoder
from medsam_core.models.segmenter import Segmenter, build_student
from medsam_core.models.weights import load_strictly, parameter_counts
from tests.golden_weights import (
    NORM_TOLERANCE,
    RELATIVE_TOLERANCE,
    deviation,
    golden_boxes,
    golden_description,
    golden_embedding,
    golden_images,
    golden_state,
    load_by_order,
    norm_deviation,
)
from tests.inverses import fused as fused_copy
from tests.models import perturb

PROMPT_WEIGHTS = (
    "pe_layer.positional_encoding_gaussian_matrix",
    "point_embeddings.2.weight",
    "point_embeddings.3.weight",
    "no_mask_embed.weight",
)
DECODER_WEIGHTS = (
    "transformer.layers.0.self_attn.q_proj.weight",
    "transformer.layers.0.cross_attn_token_to_image.v_proj.weight",
    "transformer.layers.0.norm4.bias",
    "transformer.layers.1.self_attn.k_proj.weight",
    "transformer.layers.1.mlp.lin1.weight",
    "transformer.layers.1.cross_attn_image_to_token.out_proj.weight",
    "transformer.final_attn_token_to_image.q_proj.weight",
    "mask_tokens.weight",
    "output_upscaling.1.weight",
    "output_upscaling.3.bias",
)
REPVIT_WEIGHTS = (
    "stem.conv1.c.weight",
    "stages.2.blocks.0.se.fc1.weight",
    "stages.3.downsample.spatial_downsample.c.weight",
    "neck.2.weight",
)


def unprefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items()}


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def prompt_encoder() -> PromptEncoder:
    module = PromptEncoder(image_size=1024, grid=64).eval()
    load_strictly(module, unprefixed(golden_state("prompt_encoder"), "prompt_encoder."), "golden weights")
    return module


@pytest.fixture(scope="module")
def mask_decoder_state() -> dict[str, Tensor]:
    return unprefixed(golden_state("mask_decoder"), "mask_decoder.")


@pytest.fixture
def mask_decoder(mask_decoder_state: dict[str, Tensor]) -> MaskDecoder:
    module = MaskDecoder().eval()
    load_strictly(module, mask_decoder_state, "golden weights")
    return module


def prompt_deviations(module: PromptEncoder) -> dict[str, float]:
    sparse, dense = module(golden_boxes())
    positions = module.dense_positions()
    return {
        "sparse": deviation(sparse, "sparse"),
        "dense": deviation(dense.expand(len(sparse), -1, -1, -1)[:, ::16, ::8, ::8], "dense_sample"),
        "dense_pe": deviation(positions[:, ::16, ::8, ::8], "dense_pe_sample"),
    }


def decode(prompts: PromptEncoder, decoder: MaskDecoder, *, multimask: bool) -> tuple[Tensor, Tensor]:
    sparse, dense = prompts(golden_boxes())
    logits, iou = decoder(golden_embedding(), prompts.dense_positions(), sparse, dense, multimask_output=multimask)
    return logits, iou


def test_prompt_encoder_agrees(prompt_encoder: PromptEncoder) -> None:
    assert max(prompt_deviations(prompt_encoder).values()) <= RELATIVE_TOLERANCE


@pytest.mark.parametrize("name", PROMPT_WEIGHTS)
def test_prompt_encoder_perturbed_disagrees(prompt_encoder: PromptEncoder, name: str) -> None:
    perturb(prompt_encoder, name)
    assert max(prompt_deviations(prompt_encoder).values()) > RELATIVE_TOLERANCE


def test_mask_decoder_single_mask_agrees(prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
    logits, iou = decode(prompt_encoder, mask_decoder, multimask=False)
    assert logits.shape == (3, 1, 256, 256)
    assert deviation(logits[:, :, ::4, ::4], "low_res_logits") <= RELATIVE_TOLERANCE
    assert deviation(iou, "iou") <= RELATIVE_TOLERANCE


def test_mask_decoder_multi_mask_agrees(prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
    logits, iou = decode(prompt_encoder, mask_decoder, multimask=True)
    assert deviation(logits[:, :, ::8, ::8], "multimask_logits") <= RELATIVE_TOLERANCE
    assert deviation(iou, "multimask_iou") <= RELATIVE_TOLERANCE


@pytest.mark.parametrize("name", [*DECODER_WEIGHTS, "output_hypernetworks_mlps.0.layers.0.weight"])
def test_mask_decoder_single_mask_perturbed_disagrees(
    prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder, name: str
) -> None:
    perturb(mask_decoder, name)
    logits, _ = decode(prompt_encoder, mask_decoder, multimask=False)
    assert deviation(logits[:, :, ::4, ::4], "low_res_logits") > RELATIVE_TOLERANCE


@pytest.mark.parametrize(
    "name", [f"output_hypernetworks_mlps.{i}.layers.2.weight" for i in (1, 2, 3)] + ["transformer.norm_final_attn.bias"]
)
def test_mask_decoder_multi_mask_perturbed_disagrees(
    prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder, name: str
) -> None:
    perturb(mask_decoder, name)
    logits, _ = decode(prompt_encoder, mask_decoder, multimask=True)
    assert deviation(logits[:, :, ::8, ::8], "multimask_logits") > RELATIVE_TOLERANCE


@pytest.mark.parametrize("name", ["iou_token.weight", *[f"iou_prediction_head.layers.{i}.weight" for i in range(3)]])
def test_iou_head_perturbed_disagrees(prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder, name: str) -> None:
    perturb(mask_decoder, name)
    _, iou = decode(prompt_encoder, mask_decoder, multimask=False)
    assert deviation(iou, "iou") > RELATIVE_TOLERANCE


@pytest.fixture(scope="module")
def repvit_state() -> dict[str, Tensor]:
    return golden_state("repvit_m1_1")


@pytest.fixture
def repvit(repvit_state: dict[str, Tensor]) -> RepViTEncoder:
    module = RepViTEncoder("repvit_m1_1").eval()
    load_by_order(module, repvit_state)
    return module


def test_repvit_agrees(repvit: RepViTEncoder) -> None:
    output = repvit(golden_images(1024))
    assert output.shape == (1, 256, 64, 64)
    assert deviation(output[:, ::8, ::4, ::4], "repvit_m1_1") <= RELATIVE_TOLERANCE
    assert norm_deviation(output, "repvit_m1_1_full_norm") <= NORM_TOLERANCE


def test_reparameterised_repvit_agrees(repvit: RepViTEncoder) -> None:
    fused = fused_copy(repvit)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    output = fused(golden_images(1024))
    assert deviation(output[:, ::8, ::4, ::4], "repvit_m1_1") <= RELATIVE_TOLERANCE
    assert norm_deviation(output, "repvit_m1_1_full_norm") <= NORM_TOLERANCE


@pytest.mark.parametrize("name", REPVIT_WEIGHTS)
def test_repvit_perturbed_disagrees(repvit: RepViTEncoder, name: str) -> None:
    perturb(repvit, name)
    assert deviation(repvit(golden_images(1024))[:, ::8, ::4, ::4], "repvit_m1_1") > RELATIVE_TOLERANCE


@pytest.fixture(scope="module")
def student() -> Segmenter:
    return build_student(StudentConfig(backbone="repvit_m1_1", image_size=1024), [0.5] * 3, [0.2] * 3, seed=0).eval()


def test_segmenter_decodes_as_the_reference(student: Segmenter, mask_decoder_state: dict[str, Tensor]) -> None:
    prompt_state = unprefixed(golden_state("prompt_encoder"), "prompt_encoder.")
    load_strictly(student.prompt_encoder, prompt_state, "golden weights")
    load_strictly(student.mask_decoder, mask_decoder_state, "golden weights")
    logits, iou = student.decode(golden_embedding(), golden_boxes().unsqueeze(0))
    assert deviation(logits.transpose(0, 1)[:, :, ::4, ::4], "low_res_logits") <= RELATIVE_TOLERANCE
    assert deviation(iou.transpose(0, 1), "iou") <= RELATIVE_TOLERANCE


def test_parameter_counts_are_the_papers(student: Segmenter) -> None:
    assert parameter_counts(student) == {
        "image_encoder": 8_496_784,
        "prompt_encoder": 6_220,
        "mask_decoder": 4_058_340,
        "total": 12_561_344,
    }


def test_decoder_keys_are_the_published_ones(student: Segmenter) -> None:
    for part in ("prompt_encoder", "mask_decoder"):
        published = {key: tuple(shape) for key, shape in golden_description()[part].items()}
        own = {key: tuple(value.shape) for key, value in student.state_dict().items() if key.startswith(part)}
        assert own == published


@pytest.mark.slow
def test_vit_b_agrees_and_perturbed_disagrees() -> None:
    encoder = MEDSAM_VIT_B.build(1024, {}).eval()
    state = unprefixed(from_sam_keys(golden_state("vit_b")), "image_encoder.")
    load_strictly(encoder, state, "golden weights")
    before_last: list[Tensor] = []
    last = encoder.vit.get_submodule("blocks.11")
    hook = last.register_forward_pre_hook(lambda _module, inputs: before_last.append(inputs[0]))
    output = encoder(golden_images(1024))
    hook.remove()
    assert deviation(output[:, ::8, ::4, ::4], "vit_b") <= RELATIVE_TOLERANCE
    assert norm_deviation(output, "vit_b_full_norm") <= NORM_TOLERANCE

    perturb(last, "attn.rel_pos_h")
    perturbed = encoder.vit.get_submodule("neck")(last(before_last[0]).permute(0, 3, 1, 2))
    assert deviation(perturbed[:, ::8, ::4, ::4], "vit_b") > RELATIVE_TOLERANCE
