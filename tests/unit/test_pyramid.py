"""The pyramid neck: its grid and cost, what reaches the embedding, fusion, its files, its norm's start."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medsam_core.models.checkpoints import load_model, save_model
from medsam_core.models.config import StudentConfig, TeacherConfig
from medsam_core.models.encoders.registry import ENCODERS
from medsam_core.models.segmenter import Segmenter, build_student, build_teacher, init_last_norm_from
from tests.inverses import fused

SIDE = 64


def pyramid(stride: Literal[4, 8, 16] | None = None, backbone: str = "repvit_m0_9", side: int = SIDE) -> Segmenter:
    config = StudentConfig(backbone=backbone, image_size=side, neck="pyramid", stride=stride)
    return build_student(config, [0.5] * 3, [0.2] * 3, seed=0).eval()


def image(side: int = SIDE) -> Tensor:
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("stride", "cells"), [(None, 16), (4, 16), (8, 8), (16, 4)])
def test_the_embedding_has_the_stride_asked_for(stride: Literal[4, 8, 16] | None, cells: int) -> None:
    model = pyramid(stride)
    with torch.inference_mode():
        found = model.encode(255 * image())
    assert found.shape == (1, *model.geometry.embedding_shape) == (1, 256, cells, cells)
    assert model.geometry.logit_side == 4 * cells


@pytest.mark.parametrize(("backbone", "expected"), [("repvit_m0_9", 7.9), ("repvit_m1_1", 9.9)])
def test_an_image_of_256_pixels_costs_what_the_decision_says(backbone: str, expected: float) -> None:
    encoder = pyramid(backbone=backbone, side=256).image_encoder
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        encoder(image(256))
    assert counter.get_total_flops() / 1e9 == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("stride", [4, 16])
@pytest.mark.parametrize("level", range(4))
def test_every_stage_reaches_the_embedding(level: int, stride: Literal[4, 16]) -> None:
    encoder = pyramid(stride).image_encoder
    with torch.inference_mode():
        before = encoder(image())
        encoder.get_submodule(f"neck.lateral.{level}.bn").get_parameter("weight").zero_()
        assert (encoder(image()) - before).abs().max() > 1e-2


def test_a_fine_detail_moves_the_embedding_where_it_lies_most() -> None:
    """Of the finest grid alone: other levels are silenced, and the change stays within reach of its convolutions."""
    encoder = pyramid().image_encoder
    with torch.inference_mode():
        for level in (1, 2, 3):
            encoder.get_submodule(f"neck.lateral.{level}.bn").get_parameter("weight").zero_()
        changed = image()
        changed[..., 32:36, 32:36] += 1
        moved = (encoder(changed) - encoder(image())).abs().amax(dim=(0, 1))
    row, column = divmod(int(moved.argmax()), moved.shape[1])
    assert abs(row - 8) <= 1
    assert abs(column - 8) <= 1


def shaken(encoder: nn.Module) -> nn.Module:
    """Give every batch norm other statistics and another scale and shift than fresh ones have."""
    generator = torch.Generator().manual_seed(2)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name in ("running_mean", "bias"):
                getattr(module, name).data.normal_(0, 0.1, generator=generator)
            for name in ("running_var", "weight"):
                getattr(module, name).data.uniform_(0.8, 1.25, generator=generator)
    return encoder


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_fused_it_computes_the_same_without_a_batch_norm(stride: Literal[4, 8, 16]) -> None:
    encoder = shaken(pyramid(stride).image_encoder)
    whole = fused(encoder)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in whole.modules())
    with torch.inference_mode():
        assert (whole(image()) - encoder(image())).abs().max() <= 1e-4


def test_lite_medsams_convolutions_fuse_as_well() -> None:
    encoder = shaken(build_teacher(TeacherConfig(kind="lite_medsam", image_size=SIDE)).eval().image_encoder)
    whole = fused(encoder)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in whole.modules())
    with torch.inference_mode():
        assert (whole(image()) - encoder(image())).abs().max() <= 1e-4


def test_it_outlives_its_file(tmp_path: Path) -> None:
    model = pyramid(8)
    save_model(tmp_path / "model.safetensors", model, {})
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.geometry == model.geometry
    with torch.inference_mode():
        assert torch.equal(loaded.encode(255 * image()), model.encode(255 * image()))
    assert loaded.resized(128).geometry.embedding_side == 16


@pytest.mark.parametrize("kind", [name for name, spec in ENCODERS.items() if spec.input_kind == "min_max"])
def test_its_last_norm_starts_from_the_teachers_and_scales_what_it_gives(kind: str) -> None:
    teacher = build_teacher(TeacherConfig(kind=kind, image_size=SIDE), seed=1)
    norm = teacher.last_norm
    assert norm is not None
    with torch.no_grad():
        norm.get_parameter("weight").fill_(0.25)
        norm.get_parameter("bias").fill_(-3)
        teachers_mean = teacher.eval().encode(255 * image()).mean(dim=(2, 3))
    assert teachers_mean.mean() == pytest.approx(-3, abs=1e-3), "it is the norm that ends the teacher's encoder"
    model = pyramid()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    init_last_norm_from(model, teacher)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"image_encoder.neck.output.norm2.{name}" for name in ("weight", "bias")}
    with torch.inference_mode():
        found = model.encode(255 * image())
    assert found.mean() == pytest.approx(-3, abs=1e-3)
    assert found.std() == pytest.approx(0.25, rel=0.05)
    norm.get_parameter("weight").data.zero_()
    assert model.last_norm is not None
    assert float(model.last_norm.get_parameter("weight").detach().mean()) == 0.25, "a copy, not the teacher's own"


def test_a_teacher_that_names_no_last_norm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = build_teacher(TeacherConfig(kind="stand_in", image_size=SIDE))
    monkeypatch.setattr(teacher, "_encoder", type("Other", (), {"last_norm": lambda _self, _network: None})())
    with pytest.raises(ValueError, match=r"stand_in: expected an encoder that names its last norm"):
        init_last_norm_from(pyramid(), teacher)
