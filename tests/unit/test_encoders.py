"""The registry of image encoders, and the configurations that name them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from medsam_core.models.checkpoints import load_model, save_model
from medsam_core.models.config import StudentConfig, TeacherConfig
from medsam_core.models.encoders import registry
from medsam_core.models.encoders.base import load_encoder
from medsam_core.models.encoders.registry import ENCODERS, ENTRY_POINTS, EncoderSpec, encoder_spec
from medsam_core.models.segmenter import build_student, build_teacher
from pipelines.base.profile import ProfileError, load_profile
from pipelines.base.settings import InputError
from pipelines.teacher import tasks as teacher_tasks


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_keeps_what_its_line_promises(name: str) -> None:
    spec = encoder_spec(name)
    assert spec.name == name
    encoder = load_encoder(spec).build(64, spec.settings).eval()
    with torch.inference_mode():
        embeddings = encoder(torch.zeros(1, 3, 64, 64))
    assert tuple(embeddings.shape[1:]) == spec.geometry(64).embedding_shape


def test_configurations_and_profiles_are_read_without_torch() -> None:
    code = (
        "import sys; from pipelines.base.profile import load_profile;"
        "sides = [load_profile(name).teacher.geometry.logit_side for name in ('sample', 'real', 'paper')];"
        "assert sides == [32, 256, 256], sides; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_earlier_versions_fingerprinted_is_dumped_as_they_did() -> None:
    assert StudentConfig().model_dump(mode="json") == {"backbone": "repvit_m1_1", "image_size": 1024}
    sizes = {"embed_dim": 192, "depth": 6, "num_heads": 6}
    assert TeacherConfig().model_dump(mode="json") == {"kind": "medsam_vit_b", "image_size": 1024, **sizes}
    profile = load_profile("sample").model_dump(mode="json")
    assert profile["student"] == {"backbone": "repvit_m0_9", "image_size": 128}
    assert profile["teacher"] == {"kind": "stand_in", "image_size": 128, **sizes}


def test_what_they_did_not_have_is_dumped_where_it_is_set() -> None:
    config = StudentConfig(frame="padded")
    assert config.model_dump(mode="json") == {"backbone": "repvit_m1_1", "image_size": 1024, "frame": "padded"}
    assert StudentConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("values", [{"neck": "pyramid"}, {"neck": "pyramid", "stride": 8}, {"stride": 16}])
def test_a_neck_is_dumped_where_it_is_set(values: dict[str, object]) -> None:
    config = StudentConfig.model_validate(values)
    assert config.model_dump(mode="json") == {"backbone": "repvit_m1_1", "image_size": 1024, **values}
    assert StudentConfig.model_validate_json(config.model_dump_json()) == config


def test_a_profile_whose_student_has_another_grid_than_the_teacher_is_refused_in_one_line(tmp_path: Path) -> None:
    assert load_profile("real").student.geometry.logit_side == 256
    for changes, told in (
        (
            "{extends: real, student: {neck: plain}}",
            "stride 16 like student.backbone repvit_m1_1, found lite_medsam of stride 4;",
        ),
        (
            "{extends: real, student: {stride: 8}}",
            "stride 8 like student.backbone repvit_m1_1 with neck pyramid, found lite_medsam of stride 4;",
        ),
        (
            "{extends: sample, student: {neck: pyramid}}",
            "stride 4 like student.backbone repvit_m0_9 with neck pyramid, found stand_in of stride 16;",
        ),
    ):
        first, *problems = problems_of(tmp_path, changes).splitlines()
        assert "has 1 problem(s)" in first
        assert len(problems) == 1
        assert f"teacher.kind: expected an encoder of {told}" in problems[0]


def test_the_frame_of_a_model_outlives_its_file(tmp_path: Path) -> None:
    student = build_student(StudentConfig(backbone="repvit_m0_9", image_size=64, frame="padded"), [0.5] * 3, [1] * 3, 0)
    assert student.geometry.frame == "padded"
    save_model(tmp_path / "model.safetensors", student, {})
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.geometry == student.geometry
    assert loaded.resized(128).geometry == StudentConfig(image_size=128, frame="padded").geometry


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone": "resnet"}, r"expected one of the encoders repvit_m0_9, .*found 'resnet'"),
        ({"frame": "round"}, r"frame: expected one of square, padded, found 'round'"),
        ({"neck": "pyramid", "stride": 2}, r"stride\n.*Input should be 4, 8 or 16"),
        ({"stride": 4}, r"stride: expected 16 with neck plain, found 4; leave it out, or set the neck"),
        ({"backbone": "stand_in", "neck": "pyramid"}, r"neck: expected none with backbone stand_in, .*found 'pyramid'"),
        ({"backbone": "stand_in", "stride": 16}, r"stride: expected none with backbone stand_in, .*found 16"),
        ({"settings": {"depth": 2}}, r"settings: expected those of repvit_m1_1: none, found {'depth': 2}"),
    ],
)
def test_a_student_that_cannot_be_built_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StudentConfig.model_validate(values)


def test_a_teacher_whose_weights_would_need_statistics_is_refused() -> None:
    with pytest.raises(ValidationError, match="expected an encoder on min_max input, found repvit_m0_9"):
        TeacherConfig(kind="repvit_m0_9")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> EncoderSpec:
    """Know one more encoder: the stand-in by another name, with a setting of its own and another stride."""
    settings = {"embed_dim": 24, "depth": 1, "num_heads": 2, "dropout": 0.5}
    spec = replace(ENCODERS["stand_in"], name="toy", stride=8, settings=settings)
    monkeypatch.setattr(registry, "ENCODERS", {**ENCODERS, "toy": spec})
    return spec


@pytest.mark.usefixtures("toy")
def test_settings_are_the_specs_defaults_then_the_configured_ones() -> None:
    config = StudentConfig(backbone="toy", settings={"depth": 3})
    assert config.encoder_settings == {"embed_dim": 24, "depth": 3, "num_heads": 2, "dropout": 0.5}
    # A teacher says the stand-in's sizes in fields of their own.
    teacher = TeacherConfig(kind="toy", depth=2, settings={"dropout": 0.1})
    assert teacher.encoder_settings == {"embed_dim": 192, "depth": 2, "num_heads": 6, "dropout": 0.1}
    for wrong in ({"depth": 2}, {"dropout": "much"}):
        with pytest.raises(ValidationError, match=r"settings: expected those of toy: dropout \(float\), found"):
            TeacherConfig.model_validate({"kind": "toy", "settings": wrong})


def test_a_student_on_min_max_input_takes_no_statistics(toy: EncoderSpec) -> None:
    del toy
    student = build_student(StudentConfig(backbone="stand_in", image_size=64), [0.5] * 3, [0.2] * 3, seed=0)
    assert student.pixel_mean is None
    teacher = build_teacher(TeacherConfig(kind="stand_in", image_size=64))
    assert student.state_dict().keys() == teacher.state_dict().keys()


def problems_of(tmp_path: Path, text: str) -> str:
    path = tmp_path / "profile.yaml"
    path.write_text(text)
    with pytest.raises(ProfileError) as caught:
        load_profile(str(path))
    return str(caught.value)


@pytest.mark.usefixtures("toy")
def test_a_teacher_of_another_grid_or_frame_is_refused_by_the_profile(tmp_path: Path) -> None:
    found = problems_of(tmp_path, "{extends: sample, teacher: {kind: toy, frame: padded}}")
    assert "teacher.kind: expected an encoder of stride 16 like student.backbone repvit_m0_9, found toy of" in found
    assert "teacher.frame: expected student.frame square, found padded" in found


def test_published_weights_are_not_trained_further(tmp_path: Path) -> None:
    found = problems_of(tmp_path, "{extends: paper, teacher_pretraining: {epochs: 1}}")
    assert "teacher_pretraining: expected none with teacher.kind 'medsam_vit_b'" in found


def test_weights_of_another_geometry_than_the_profiles_are_refused(tmp_path: Path) -> None:
    config = TeacherConfig(kind="stand_in", image_size=64, embed_dim=24, depth=1, num_heads=2)
    path = tmp_path / "teacher.safetensors"
    save_model(path, build_teacher(config.model_copy(update={"image_size": 128})), {})
    assert teacher_tasks.load_weights(path, config).geometry == config.geometry
    with pytest.raises(InputError, match=r"expected a teacher of Geometry\(.*'padded', .*\), found .*'square'"):
        teacher_tasks.load_weights(path, config.model_copy(update={"frame": "padded"}))


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Install a package with one entry point, `other`."""
    (folder / "other_encoders.py").write_text(
        "from medsam_core.models.encoders.registry import EncoderSpec\n"
        'OTHER = EncoderSpec(name="other", builder="other_encoders:NONE", stride=4, input_kind="min_max")\n'
        'NONE = "no encoder"\n'
    )
    metadata = folder / "other_encoders-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other_encoders\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nother = {value}\n")
    monkeypatch.syspath_prepend(str(folder))


def test_an_installed_package_adds_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "other_encoders:OTHER")
    config = TeacherConfig(kind="other", image_size=256)
    assert (config.geometry.embedding_side, config.geometry.logit_side) == (64, 256)
    with pytest.raises(
        ValueError, match="encoders repvit_m0_9, repvit_m1_1, stand_in, medsam_vit_b, lite_medsam, other, found 'x'"
    ):
        encoder_spec("x")
    with pytest.raises(TypeError, match="expected the Encoder of 'other', found str"):
        load_encoder(config.encoder)


def test_an_entry_point_that_is_no_encoder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "other_encoders:NONE")
    with pytest.raises(
        ValueError, match="other_encoders:NONE: expected the EncoderSpec of 'other', found 'no encoder'"
    ):
        encoder_spec("other")


def test_student_and_teacher_see_images_resampled_alike(tmp_path: Path) -> None:
    assert encoder_spec("lite_medsam").geometry(256).resampling == "area"
    assert encoder_spec("repvit_m1_1").geometry(256).resampling == "bilinear"
    found = problems_of(tmp_path, "{extends: real, student: {resampling: bilinear}}")
    assert "teacher.resampling: expected student.resampling bilinear, found area; set both" in found
    assert "has 1 problem(s)" in found


def test_resampling_is_dumped_where_it_is_set() -> None:
    assert "resampling" not in StudentConfig().model_dump()
    assert StudentConfig(resampling="area").model_dump()["resampling"] == "area"
    with pytest.raises(ValueError, match="resampling: expected one of bilinear, area, found 'cubic'"):
        StudentConfig(resampling="cubic")
