"""Properties of the models that hold for any weights: shapes, normalisation, seeding, resizing, key maps."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medsam_core.models.config import StudentConfig, TeacherConfig
from medsam_core.models.encoders.sam_vit import from_sam_keys, resize_positions
from medsam_core.models.segmenter import Segmenter, build_student, build_teacher, init_decoder_from
from medsam_core.models.weights import parameter_counts
from tests.golden_weights import golden_description
from tests.inverses import fused as fused_copy
from tests.inverses import to_sam_keys

MEAN, STD = [0.2, 0.3, 0.4], [0.1, 0.2, 0.3]


def student_of(size: int, seed: int = 0) -> Segmenter:
    return build_student(StudentConfig(backbone="repvit_m0_9", image_size=size), MEAN, STD, seed).eval()


def stand_in_of(size: int, seed: int = 0) -> Segmenter:
    return build_teacher(TeacherConfig(kind="stand_in", image_size=size), seed).eval()


@pytest.fixture(scope="module")
def student() -> Segmenter:
    return student_of(64)


@pytest.fixture(scope="module")
def stand_in() -> Segmenter:
    return stand_in_of(128)


def images(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 255


def boxes(count: int, per_image: int, size: int) -> Tensor:
    corners = torch.rand(count, per_image, 2, 2, generator=torch.Generator().manual_seed(1)) * size
    return corners.sort(dim=2).values.flatten(2)


@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("build", [student_of, stand_in_of])
def test_shapes_at_every_size(build: Callable[[int], Segmenter], size: int) -> None:
    model = build(size)
    with torch.no_grad():
        embeddings = model.encode(images(2, size))
        logits, iou = model.decode(embeddings, boxes(2, 3, size))
    assert embeddings.shape == (2, 256, size // 16, size // 16)
    assert logits.shape == (2, 3, size // 4, size // 4)
    assert iou.shape == (2, 3)


@pytest.mark.parametrize("make", [student_of, stand_in_of])
def test_an_image_is_encoded_alike_in_any_company(make: Callable[[int], Segmenter]) -> None:
    model, raw = make(64), images(3, 64)
    with torch.inference_mode():
        together = model.encode(raw)
        assert together.is_contiguous()
        for number in range(3):
            assert torch.equal(model.encode(raw[number : number + 1])[0], together[number])
    learning = model.encode(raw)
    assert learning.requires_grad
    torch.testing.assert_close(learning.detach(), together, rtol=1e-4, atol=1e-4)


def test_batch_statistics_are_of_the_whole_batch_without_gradients_too() -> None:
    one, other, raw = student_of(64).train(), student_of(64).train(), images(4, 64)
    with torch.no_grad():
        one.encode(raw)
    other.encode(raw)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(one.state_dict()[name], value, msg=name)


def test_standardised_input_is_zero_at_the_mean_and_one_a_deviation_above(student: Segmenter) -> None:
    mean = torch.tensor(MEAN).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    above = mean + torch.tensor(STD).view(1, 3, 1, 1)
    assert student.input_kind == "standardised"
    torch.testing.assert_close(student.normalise(mean * 255), torch.zeros(1, 3, 64, 64), atol=1e-6, rtol=0)
    torch.testing.assert_close(student.normalise(above * 255), torch.ones(1, 3, 64, 64))


def test_min_max_input_spans_zero_to_one_for_each_image_over_all_channels(stand_in: Segmenter) -> None:
    raw = images(2, 128)
    raw[0] = raw[0] * 0.1 + 40
    raw[1, 0] *= 0.5
    normalised = stand_in.normalise(raw)
    assert stand_in.input_kind == "min_max"
    assert normalised.amin(dim=(1, 2, 3)).tolist() == [0.0, 0.0]
    assert normalised.amax(dim=(1, 2, 3)).tolist() == [1.0, 1.0]
    assert normalised[1, 0].max() < 0.51
    torch.testing.assert_close(stand_in.normalise(raw[1:]), normalised[1:])


@pytest.mark.parametrize(("span", "largest"), [(0.0, 0.0), (0.99, 0.0), (1.0, 1.0), (2.0, 1.0)])
def test_min_max_of_a_range_below_one_grey_value_is_zero(stand_in: Segmenter, span: float, largest: float) -> None:
    raw = torch.full((1, 3, 128, 128), 8.0)
    raw[0, 1, 5, 5] += span
    assert stand_in.normalise(raw).max().item() == largest


@pytest.mark.parametrize("build", [lambda: student_of(64), lambda: stand_in_of(64)])
def test_boxes_of_a_batch_decode_as_alone(build: Callable[[], Segmenter]) -> None:
    model = build()
    raw, prompts = images(2, 64), boxes(2, 3, 64)
    with torch.no_grad():
        logits, iou = model(raw, prompts)
        for b in range(2):
            for k in range(3):
                alone, alone_iou = model(raw[b : b + 1], prompts[b : b + 1, k : k + 1])
                torch.testing.assert_close(alone[0, 0], logits[b, k], atol=2e-4, rtol=1e-3)
                torch.testing.assert_close(alone_iou[0, 0], iou[b, k], atol=2e-4, rtol=1e-3)
    assert not torch.allclose(logits[0, 0], logits[0, 1], atol=1e-2)


def test_swapping_the_axes_of_a_box_changes_its_encoding(student: Segmenter) -> None:
    box = torch.tensor([[4.0, 8.0, 40.0, 20.0]])
    with torch.no_grad():
        sparse, _ = student.prompt_encoder(box)
        swapped, _ = student.prompt_encoder(box[:, [1, 0, 3, 2]])
        positions = student.prompt_encoder.dense_positions()
    assert not torch.allclose(sparse, swapped, atol=1e-2)
    assert not torch.allclose(positions, positions.transpose(2, 3), atol=1e-2)


def test_grid_positions_are_those_of_a_prompt_at_the_cell_centre(student: Segmenter) -> None:
    column, row = 3, 1
    centre = torch.tensor([[column * 16 + 7.5, row * 16 + 7.5, 0.0, 0.0]])
    with torch.no_grad():
        sparse, _ = student.prompt_encoder(centre)
        kind = student.prompt_encoder.point_embeddings[2].get_parameter("weight")[0]
        positions = student.prompt_encoder.dense_positions()
    torch.testing.assert_close(sparse[0, 0] - kind, positions[0, :, row, column], atol=1e-5, rtol=0)


def test_positions_are_not_rounded_by_mixed_precision(student: Segmenter) -> None:
    prompts = boxes(1, 4, 64)[0]
    with torch.no_grad():
        exact, _ = student.prompt_encoder(prompts)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed, _ = student.prompt_encoder(prompts)
            positions = student.prompt_encoder.dense_positions()
    torch.testing.assert_close(mixed, exact)
    torch.testing.assert_close(positions, student.prompt_encoder.dense_positions())


def test_seed_decides_the_weights_and_leaves_global_randomness_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (student_of(64, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    same, changed = again.state_dict(), other.state_dict()
    assert all(torch.equal(value, same[key]) for key, value in first.state_dict().items())
    assert not torch.equal(
        first.state_dict()["mask_decoder.iou_token.weight"], changed["mask_decoder.iou_token.weight"]
    )


def test_stand_in_is_small_enough_to_ship(stand_in: Segmenter) -> None:
    counts = parameter_counts(stand_in)
    assert counts["total"] <= 8_000_000
    assert counts["prompt_encoder"] + counts["mask_decoder"] == 6_220 + 4_058_340


def test_decoder_starts_from_the_teachers(stand_in: Segmenter) -> None:
    student = student_of(64, seed=3)
    encoder = {key: value.clone() for key, value in student.image_encoder.state_dict().items()}
    init_decoder_from(student, stand_in)
    teacher = stand_in.state_dict()
    copied = [key for key in teacher if not key.startswith("image_encoder.")]
    assert "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix" in copied
    assert all(torch.equal(student.state_dict()[key], teacher[key]) for key in copied)
    assert all(torch.equal(value, encoder[key]) for key, value in student.image_encoder.state_dict().items())


def test_gradients_reach_all_of_the_student_that_answers_boxes() -> None:
    model = student_of(64).train()
    logits, iou = model(images(2, 64), boxes(2, 2, 64))
    (logits.square().mean() + iou.square().mean()).backward()
    without = {key for key, value in model.named_parameters() if value.grad is None}
    silent = ("point_embeddings.0", "point_embeddings.1", "not_a_point", "mask_downscaling", "hypernetworks_mlps.")
    assert all(any(part in key for part in silent) for key in without)
    assert not any("hypernetworks_mlps.0" in key for key in without)


def test_reparameterised_student_answers_alike_and_leaves_the_original(student: Segmenter) -> None:
    raw, prompts = images(1, 64), boxes(1, 2, 64)
    keys = list(student.state_dict())
    fused = fused_copy(student)
    with torch.no_grad():
        expected, found = student(raw, prompts)[0], fused(raw, prompts)[0]
    torch.testing.assert_close(found, expected, atol=1e-3 * expected.abs().max().item(), rtol=0)
    assert list(student.state_dict()) == keys
    assert len(fused.state_dict()) < len(keys)


def test_sam_keys_are_the_published_ones_and_map_back() -> None:
    published = {key: torch.empty(shape, device="meta") for key, shape in golden_description()["vit_b"].items()}
    with torch.device("meta"):
        own = Segmenter(TeacherConfig(kind="medsam_vit_b", image_size=1024)).state_dict()
    mapped = from_sam_keys(published)
    encoder = {key: value.shape for key, value in own.items() if key.startswith("image_encoder.")}
    assert {key: value.shape for key, value in mapped.items()} == encoder
    assert to_sam_keys(mapped).keys() == published.keys()
    assert from_sam_keys(to_sam_keys(own)).keys() == own.keys()


def test_resizing_fits_positions_and_keeps_every_other_weight(stand_in: Segmenter) -> None:
    larger = stand_in.resized(256)
    before, after = stand_in.state_dict(), larger.state_dict()
    changed = {key for key in before if before[key].shape != after[key].shape}
    assert changed == {key for key in before if key.endswith((".pos_embed", ".rel_pos_h", ".rel_pos_w"))}
    assert len(changed) == 1 + 2 * 6
    assert all(torch.equal(before[key], after[key]) for key in before.keys() - changed)
    assert larger.image_size == larger.architecture.image_size == 256
    assert not larger.training
    assert stand_in.image_size == 128


def test_resizing_to_the_same_size_is_the_identity(stand_in: Segmenter) -> None:
    state = stand_in.state_dict()
    same = stand_in.resized(128).state_dict()
    assert all(torch.equal(value, same[key]) for key, value in state.items())


def test_resizing_keeps_a_students_statistics(student: Segmenter) -> None:
    larger = student.resized(128)
    torch.testing.assert_close(larger.pixel_mean, torch.tensor(MEAN))
    torch.testing.assert_close(larger.pixel_std, torch.tensor(STD))


def test_resized_relative_positions_stay_centred_and_scale_with_the_grid() -> None:
    offsets = torch.arange(-7.0, 8.0).unsqueeze(1).expand(15, 4)
    key = "image_encoder.vit.blocks.0.attn.rel_pos_h"
    resized = resize_positions({key: offsets}, {key: torch.empty(31, 4)})[key]
    expected = torch.arange(-15.0, 16.0) * 15 / 31
    torch.testing.assert_close(resized[1:-1, 0], expected[1:-1])
    assert resized[15].abs().max() < 1e-6


def test_resized_absolute_positions_keep_their_axes() -> None:
    key = "image_encoder.vit.pos_embed"
    ramp = torch.arange(8.0).view(1, 8, 1, 1).expand(1, 8, 8, 2)
    resized = resize_positions({key: ramp}, {key: torch.empty(1, 16, 16, 2)})[key]
    centre = resized[0, 4:12, :, 0]
    torch.testing.assert_close(centre, ((torch.arange(4.0, 12.0) + 0.5) / 2 - 0.5).view(8, 1).expand(8, 16))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (torch.zeros(1, 3, 32, 32), r"expected \(B, 3, 64, 64\), found \(1, 3, 32, 32\)"),
        (torch.zeros(3, 64, 64), r"found \(3, 64, 64\)"),
        (torch.zeros(1, 1, 64, 64), r"found \(1, 1, 64, 64\)"),
    ],
)
def test_images_outside_the_model_frame_are_refused(student: Segmenter, raw: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        student.encode(raw)


@pytest.mark.parametrize("shape", [(2, 4), (3, 1, 4), (2, 1, 5)])
def test_boxes_of_another_batch_are_refused(student: Segmenter, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"boxes: expected \(2, K, 4\)"):
        student.decode(torch.zeros(2, 256, 4, 4), torch.zeros(shape))


def test_embeddings_of_another_size_are_refused(student: Segmenter) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 256, 4, 4\), found \(1, 256, 8, 8\)"):
        student.decode(torch.zeros(1, 256, 8, 8), torch.zeros(1, 1, 4))


def test_statistics_belong_to_students_alone() -> None:
    with pytest.raises(ValueError, match="for standardised input and none for other input"):
        Segmenter(TeacherConfig(kind="stand_in", image_size=64), (MEAN, STD))
    with pytest.raises(ValueError, match="for standardised input and none for other input"):
        Segmenter(StudentConfig(image_size=64))
    with pytest.raises(ValueError, match="expected positive values"):
        build_student(StudentConfig(image_size=64), MEAN, [0.1, 0.0, 0.1], seed=0)
    with pytest.raises(ValueError, match="expected 3 values"):
        build_student(StudentConfig(image_size=64), [0.5], STD, seed=0)


def test_timm_is_imported_on_first_use_only() -> None:
    code = (
        "import sys; from medsam_core.models import segmenter, checkpoints; assert 'timm' not in sys.modules;"
        "from medsam_core.models.timm_backbones import ensure_torchvision_importable as ensure;"
        "assert ensure() == ensure(); import timm, torchvision"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
