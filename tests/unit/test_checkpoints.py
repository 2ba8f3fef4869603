"""Model files: what is written comes back, equal models give equal bytes, a wrong file is refused with its faults."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from medsam_core.base.files import atomic_file
from medsam_core.models.checkpoints import load_model, read_metadata, save_model
from medsam_core.models.config import StudentConfig, TeacherConfig
from medsam_core.models.encoders.sam_vit import from_sam_keys
from medsam_core.models.published import load_published, read_sam_state
from medsam_core.models.segmenter import Segmenter, build_student, build_teacher
from medsam_core.models.weights import CheckpointError, load_strictly, parameter_counts
from tests.inverses import to_sam_keys

VIT_B = TeacherConfig(kind="medsam_vit_b", image_size=1024)
METADATA = {f"key {i}": f"value {i}" for i in range(8)}


@pytest.fixture(scope="module")
def student() -> Segmenter:
    config = StudentConfig(backbone="repvit_m0_9", image_size=64)
    return build_student(config, [0.2, 0.3, 0.4], [0.1, 0.2, 0.3], seed=1)


@pytest.fixture(scope="module")
def stand_in() -> Segmenter:
    return build_teacher(TeacherConfig(kind="stand_in", image_size=128), seed=1)


@pytest.fixture(params=["student", "stand_in"])
def model(request: pytest.FixtureRequest) -> Segmenter:
    segmenter: Segmenter = request.getfixturevalue(request.param)
    return segmenter


def test_round_trip_is_exact(model: Segmenter, tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", model, METADATA)
    loaded = load_model(tmp_path / "model.safetensors")
    expected = model.state_dict()
    assert loaded.architecture == model.architecture
    assert loaded.input_kind == model.input_kind
    assert not loaded.training
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())


def test_metadata_is_read_without_the_weights(student: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, student, METADATA)
    metadata = read_metadata(path)
    architecture = json.loads(metadata.pop("architecture"))
    assert metadata == METADATA
    assert architecture == {"role": "student", "config": student.architecture.model_dump()}


def test_equal_models_give_equal_bytes(stand_in: Segmenter, tmp_path: Path) -> None:
    contents = set()
    for i in range(4):
        save_model(tmp_path / f"{i}.safetensors", stand_in, METADATA if i % 2 else dict(reversed(METADATA.items())))
        contents.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(contents) == 1


def test_half_precision_is_half_the_size_close_and_loads_as_float32(stand_in: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_model(path, stand_in, {}, dtype=torch.float16)
    loaded = load_model(path)
    assert path.stat().st_size <= 16 * 1000 * 1000
    for key, value in loaded.state_dict().items():
        assert value.dtype == stand_in.state_dict()[key].dtype
        torch.testing.assert_close(value, stand_in.state_dict()[key], atol=1e-6, rtol=1e-3)


def test_half_precision_leaves_buffers_exact(student: Segmenter, tmp_path: Path) -> None:
    save_model(tmp_path / "half.safetensors", student, {}, dtype=torch.float16)
    loaded = dict(load_model(tmp_path / "half.safetensors").named_buffers())
    assert "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix" in loaded
    assert all(torch.equal(value, loaded[key]) for key, value in student.named_buffers())


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), torch.float32), (1e6, torch.float16)])
def test_a_weight_that_is_not_finite_is_not_saved(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    model = build_teacher(TeacherConfig(kind="stand_in", image_size=64, embed_dim=32, depth=1, num_heads=2))
    with torch.no_grad():
        model.mask_decoder.iou_token.weight[0, 0] = value
    with pytest.raises(CheckpointError, match=r"mask_decoder\.iou_token\.weight: expected finite"):
        save_model(tmp_path / "model.safetensors", model, {}, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_architecture_is_not_the_callers_to_write(student: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="any key but 'architecture'"):
        save_model(tmp_path / "model.safetensors", student, {"architecture": "mine"})


def test_missing_model_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a model file, found none"):
        load_model(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 1000, -100])
def test_truncated_model_file_is_refused(student: Segmenter, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, student, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="found damage"):
        load_model(path)


def test_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(safetensors.torch.save({"weight": torch.ones(2)}, {"format": "pt"}))
    with pytest.raises(CheckpointError, match="expected a model written by save_model"):
        read_metadata(path)


@pytest.mark.parametrize(
    "architecture",
    [{"role": "pupil", "config": {}}, {"role": "student", "config": {"backbone": "resnet"}}, {"role": "student"}],
)
def test_unknown_architecture_is_refused(tmp_path: Path, architecture: dict[str, Any]) -> None:
    path = tmp_path / "model.safetensors"
    header = {"repvit_medsam": json.dumps({"architecture": json.dumps(architecture)})}
    path.write_bytes(safetensors.torch.save({"weight": torch.ones(2)}, header))
    with pytest.raises(CheckpointError, match="expected an architecture this version knows"):
        load_model(path)


def test_strict_loading_lists_every_fault_and_changes_nothing() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state = {
        "0.weight": torch.ones(3, 2),
        "0.bias": torch.ones(4),
        "1.weight": torch.ones(1, 3),
        "2.bias": torch.ones(1),
    }
    with pytest.raises(CheckpointError) as caught:
        load_strictly(module, state, "a.pth")
    message = str(caught.value)
    assert "missing (1): 1.bias" in message
    assert "unexpected (1): 2.bias" in message
    assert "misshaped (1): 0.bias expected (3,) found (4,)" in message
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_strict_loading_counts_what_it_does_not_list() -> None:
    state = {f"key {i}": torch.ones(1) for i in range(25)}
    with pytest.raises(CheckpointError, match=r"unexpected \(25\).*key 19, and 5 more"):
        load_strictly(torch.nn.Identity(), state, "a.pth")


@pytest.mark.parametrize("form", ["plain", "training", "distributed"])
def test_sam_checkpoints_load_in_every_published_form(stand_in: Segmenter, tmp_path: Path, form: str) -> None:
    sam_state = to_sam_keys(stand_in.state_dict())
    assert "image_encoder.blocks.0.mlp.lin1.weight" in sam_state
    content: dict[str, Any] = dict(sam_state)
    if form == "training":
        content = {"model": sam_state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3}
    if form == "distributed":
        content = {"model": {f"module.{key}": value for key, value in sam_state.items()}, "epoch": 3}
    torch.save(content, tmp_path / "sam.pth")
    fresh = build_teacher(TeacherConfig(kind="stand_in", image_size=128), seed=2)
    load_strictly(fresh, from_sam_keys(read_sam_state(tmp_path / "sam.pth")), "sam.pth")
    assert all(torch.equal(value, stand_in.state_dict()[key]) for key, value in fresh.state_dict().items())


class Attack:
    """Pickles to a call of `os.mkdir`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"model": Attack(tmp_path / "attacked")}, tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Attack(tmp_path / "attacked"), protocol=2))
    for name in ("evil.pth", "evil.pkl"):
        with pytest.raises(CheckpointError, match="expected a torch checkpoint of tensors and plain values"):
            read_sam_state(tmp_path / name)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, {"model": {1: torch.ones(1)}}])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match="expected a state dict"):
        read_sam_state(tmp_path / "odd.pth")


@pytest.mark.parametrize("data", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_damaged_checkpoint_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match="expected a torch checkpoint"):
        read_sam_state(tmp_path / "bad.pth")


def test_missing_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a SAM or MedSAM checkpoint, found none"):
        read_sam_state(tmp_path / "none.pth")


@pytest.mark.slow
def test_medsam_checkpoint_loads_whole_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "medsam_vit_b.pth"
    teacher = build_teacher(TeacherConfig(), seed=3)
    state = to_sam_keys(teacher.state_dict())
    torch.save(state, path)
    loaded = load_published(path, VIT_B)
    assert all(torch.equal(value, teacher.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert parameter_counts(loaded)["image_encoder"] == 89_670_912
    smaller = load_published(path, VIT_B.model_copy(update={"image_size": 256}))
    assert smaller(torch.rand(1, 3, 256, 256) * 255, torch.tensor([[[8.0, 8.0, 90.0, 90.0]]]))[0].shape == (
        1,
        1,
        64,
        64,
    )
    del state["image_encoder.blocks.3.mlp.lin2.bias"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"missing \(1\): image_encoder\.vit\.blocks\.3\.mlp\.fc2\.bias"):
        load_published(path, VIT_B)


def test_a_writer_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    with atomic_file(path) as file:
        file.write(b"old")

    def fail_half_way() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]
