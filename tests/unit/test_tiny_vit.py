"""TinyViT computes what LiteMedSAM's public encoder computes, and takes its checkpoints whole.

Weights are a function of their names (`tests.golden_weights`), so keys and shapes are pinned too.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medsam_core.models.config import StudentConfig, TeacherConfig
from medsam_core.models.encoders.tiny_vit import LITE_MEDSAM, TinyViTEncoder, WindowAttention
from medsam_core.models.published import load_published
from medsam_core.models.segmenter import Segmenter, build_student
from medsam_core.models.weights import CheckpointError, load_strictly, parameter_counts
from tests.golden_weights import (
    NORM_TOLERANCE,
    RELATIVE_TOLERANCE,
    deviation,
    golden_images,
    golden_state,
    norm_deviation,
)
from tests.models import lite_medsam_state, perturb

PERTURBED = (
    "patch_embed.seq.0.c.weight",
    "layers.0.blocks.1.conv3.bn.weight",
    "layers.1.blocks.0.attn.attention_biases",
    "layers.1.downsample.conv2.c.weight",
    "layers.2.blocks.5.local_conv.bn.running_var",
    "layers.2.downsample.conv1.bn.bias",
    "layers.3.blocks.1.attn.qkv.weight",
    "layers.3.blocks.1.mlp.fc2.weight",
    "neck.2.weight",
)


def parts_of(encoder: TinyViTEncoder) -> list[tuple[str, nn.Module]]:
    """Return the parts that the encoder runs one after the other, with the beginning of their keys."""
    stages = [(f"layers.{number}.", stage) for number, stage in enumerate(encoder.layers)]
    return [("patch_embed.", encoder.patch_embed), *stages, ("neck.", encoder.neck)]


def own_state() -> dict[str, Tensor]:
    """Return the golden weights of the encoder by its own keys, batch norm's counters included."""
    prefix = "image_encoder."
    return {key.removeprefix(prefix): value for key, value in lite_medsam_state().items() if key.startswith(prefix)}


@pytest.fixture
def encoder() -> TinyViTEncoder:
    module = LITE_MEDSAM.build(256, {}).eval()
    assert isinstance(module, TinyViTEncoder)
    load_strictly(module, own_state(), "golden weights")
    return module


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    """Return what each part is given on the golden image, by the beginning of its keys; `output`: what comes out."""
    module = LITE_MEDSAM.build(256, {}).eval()
    assert isinstance(module, TinyViTEncoder)
    load_strictly(module, own_state(), "golden weights")
    values = golden_images(256)
    given = {}
    with torch.inference_mode():
        for name, part in parts_of(module):
            given[name] = values
            values = part(values)
    return {**given, "output": values}


@pytest.fixture(autouse=True)
def no_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.set_grad_enabled("gradients" in request.node.name):
        yield


def test_the_encoder_agrees(inputs: dict[str, Tensor]) -> None:
    output = inputs["output"]
    assert output.shape == (1, 256, 64, 64)
    assert deviation(output[:, ::8, ::4, ::4], "tiny_vit_256_biased") <= RELATIVE_TOLERANCE
    assert norm_deviation(output, "tiny_vit_256_biased_full_norm") <= NORM_TOLERANCE


def test_the_encoder_without_biases_agrees_and_they_are_what_differs(encoder: TinyViTEncoder) -> None:
    """The other golden value is of a public module that had kept the biases it was built with, zeros."""
    image = golden_images(256)
    assert all("attention_biases" not in name or bool(value.any()) for name, value in encoder.state_dict().items())
    for name, value in encoder.state_dict().items():
        if name.endswith("attention_biases"):
            value.zero_()
    output = encoder(image)
    assert deviation(output[:, ::8, ::4, ::4], "tiny_vit_256") <= RELATIVE_TOLERANCE
    assert norm_deviation(output, "tiny_vit_256_full_norm") <= NORM_TOLERANCE
    assert deviation(output[:, ::8, ::4, ::4], "tiny_vit_256_biased") > 100 * RELATIVE_TOLERANCE


def test_it_runs_its_parts_in_turn(encoder: TinyViTEncoder) -> None:
    image = golden_images(256)[..., :64, :64]
    expected = image
    for _, part in parts_of(encoder):
        expected = part(expected)
    assert torch.equal(encoder(image), expected)


@pytest.mark.parametrize("name", PERTURBED)
def test_the_encoder_perturbed_disagrees(encoder: TinyViTEncoder, inputs: dict[str, Tensor], name: str) -> None:
    perturb(encoder, name)
    parts = parts_of(encoder)
    first = next(number for number, (start, _) in enumerate(parts) if name.startswith(start))
    values = inputs[parts[first][0]]
    for _, part in parts[first:]:
        values = part(values)
    assert deviation(values[:, ::8, ::4, ::4], "tiny_vit_256_biased") > RELATIVE_TOLERANCE


def test_its_keys_are_the_published_ones(encoder: TinyViTEncoder) -> None:
    published = {key.removeprefix("tiny_vit."): value.shape for key, value in golden_state("tiny_vit_256").items()}
    own = {key: value.shape for key, value in encoder.state_dict().items() if "num_batches_tracked" not in key}
    assert own == published


def checkpoint(path: Path, **changes: Tensor | None) -> Path:
    """Write a checkpoint as LiteMedSAM's is published; None leaves a key out."""
    state = {**lite_medsam_state(), **changes}
    torch.save({key: value for key, value in state.items() if value is not None}, path)
    return path


def test_a_published_checkpoint_is_loaded_whole(tmp_path: Path) -> None:
    config = TeacherConfig(kind="lite_medsam", image_size=256)
    teacher = load_published(checkpoint(tmp_path / "lite_medsam.pth"), config)
    assert not teacher.training
    own, published = teacher.state_dict(), lite_medsam_state()
    assert own.keys() == published.keys()
    assert all(torch.equal(own[key], value) for key, value in published.items())
    sides = (teacher.geometry.image_side, teacher.geometry.embedding_side, teacher.geometry.logit_side)
    assert sides == (256, 64, 256)


def test_no_weight_depends_on_the_image_side(tmp_path: Path) -> None:
    config = TeacherConfig(kind="lite_medsam", image_size=64)
    teacher = load_published(checkpoint(tmp_path / "lite_medsam.pth"), config)
    published = lite_medsam_state()
    assert all(torch.equal(value, published[key]) for key, value in teacher.state_dict().items())
    logits, _ = teacher(torch.rand(1, 3, 64, 64) * 255, torch.tensor([[[8.0, 8.0, 40.0, 40.0]]]))
    assert logits.shape == (1, 1, 64, 64)


def test_every_key_of_another_checkpoint_is_named(tmp_path: Path) -> None:
    changes = {
        "image_encoder.layers.2.blocks.3.attn.attention_biases": None,
        "image_encoder.layers.2.blocks.3.attn.ab": torch.zeros(5, 196, 196),
        "image_encoder.patch_embed.seq.0.c.weight": torch.zeros(32, 3, 3, 3),
    }
    path = checkpoint(tmp_path / "mobile_sam.pth", **changes)
    with pytest.raises(CheckpointError) as caught:
        load_published(path, TeacherConfig(kind="lite_medsam", image_size=256))
    said = str(caught.value)
    assert "missing (1): image_encoder.layers.2.blocks.3.attn.attention_biases" in said
    assert "unexpected (1): image_encoder.layers.2.blocks.3.attn.ab" in said
    assert "patch_embed.seq.0.c.weight expected (32, 3, 1, 1) found (32, 3, 3, 3)" in said


def test_weights_loaded_after_eval_are_the_ones_used(encoder: TinyViTEncoder) -> None:
    """The public module goes on with the attention biases that it had when it was last set to evaluate."""
    image = golden_images(256)[..., :64, :64]
    late = TinyViTEncoder(1, 1).eval()
    late(image)
    late.load_state_dict(own_state())
    assert torch.equal(late(image), encoder(image))


def attended_by_loops(module: WindowAttention, cells: Tensor) -> Tensor:
    """Attend within one window cell by cell, as the formula says: softmax(q k / sqrt(d) + bias of the distance) v."""
    side, channels = module.window, cells.shape[-1]
    width = channels // module.heads
    normalised = module.norm(cells).reshape(-1, channels)
    projected = module.qkv(normalised)
    places = [divmod(number, side) for number in range(side**2)]
    out = torch.zeros(side**2, channels)
    for head in range(module.heads):
        q, k, v = projected[:, 3 * width * head : 3 * width * (head + 1)].split(width, dim=-1)
        for number, (y, x) in enumerate(places):
            bias = torch.stack([module.attention_biases[head, abs(y - v_) * side + abs(x - u)] for v_, u in places])
            weights = torch.softmax(k @ q[number] / width**0.5 + bias, dim=0)
            out[number, head * width : (head + 1) * width] = weights @ v
    projected_out: Tensor = module.proj(out)
    return projected_out.reshape(side, side, channels)


def test_attention_stays_in_windows_and_counts_padding_in() -> None:
    torch.manual_seed(0)
    module = WindowAttention(channels=8, heads=2, window=3)
    nn.init.normal_(module.attention_biases)
    cells = torch.randn(1, 3, 5, 8)
    found = module(cells)[0]
    torch.testing.assert_close(found[:, :3], attended_by_loops(module, cells[0, :, :3]))
    padded = torch.cat([cells[0, :, 3:], torch.zeros(3, 1, 8)], dim=1)
    torch.testing.assert_close(found[:, 3:], attended_by_loops(module, padded)[:, :2])


def test_its_size_and_work_are_the_published_ones() -> None:
    teacher = Segmenter(TeacherConfig(kind="lite_medsam", image_size=256)).eval()
    assert parameter_counts(teacher) == {
        "image_encoder": 5_726_740,
        "prompt_encoder": 6_220,
        "mask_decoder": 4_058_340,
        "total": 9_791_300,
    }
    with torch.device("meta"):
        encoder, image = TinyViTEncoder(1, 1).eval(), torch.empty(1, 3, 256, 256)
    with FlopCounterMode(display=False) as counter:
        encoder(image)
    assert counter.get_total_flops() / 1e9 == pytest.approx(74.95, abs=0.01)


def test_as_a_student_every_weight_has_gradients() -> None:
    student = build_student(StudentConfig(backbone="lite_medsam", image_size=64), [0.5] * 3, [0.2] * 3, seed=0)
    assert student.geometry.logit_side == 64
    embeddings = student.encode(torch.rand(2, 3, 64, 64) * 255)
    embeddings.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in student.image_encoder.named_parameters()}
    assert [name for name, value in gradients.items() if value is None or not bool(torch.isfinite(value).all())] == []
    # Of a fresh bottleneck only the last norm's weight learns at first; attention does from the first step on.
    assert all(bool(value.any()) for name, value in gradients.items() if value is not None and ".attn." in name)


def test_it_is_exported_whole(encoder: TinyViTEncoder) -> None:
    """No step depends on values, so that other engines can take it."""
    image = golden_images(256)[..., :64, :64]
    exported = torch.export.export(encoder, (image,)).module()
    torch.testing.assert_close(exported(image), encoder(image))
