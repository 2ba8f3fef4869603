"""What a user gave in place of a model is told by its content, never called damage when it is whole."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from medsam_core.models.checkpoints import load_model, read_metadata
from medsam_core.models.config import TeacherConfig
from medsam_core.models.file_kinds import file_kind
from medsam_core.models.published import load_published, read_sam_state
from medsam_core.models.weights import CheckpointError
from pipelines.teacher.tasks import load_weights

STATE = {"image_encoder.x": torch.zeros(3)}
STAND_IN = TeacherConfig(kind="stand_in", image_size=128)


def torch_bytes(content: object, *, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def zip_bytes(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def tar_bytes() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"))
    return file.getvalue()


def npz_bytes() -> bytes:
    file = io.BytesIO()
    np.savez(file, imgs=np.zeros(3))
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12345\n"

# Content, what the message calls it, and a word of what it says to do.
NO_MODELS: dict[str, tuple[bytes, str, str]] = {
    "lfs pointer": (LFS, "a Git LFS pointer", "git lfs pull"),
    "login page": (b"<!DOCTYPE html><html>Sign in</html>", "an HTML page", "in a browser"),
    "page behind blanks": (b"\xef\xbb\xbf\r\n  <HTML>\n<head>", "an HTML page", "in a browser"),
    "bucket's error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML text", "format"),
    "service's error": (b'{"error": "rate limited"}', "JSON text", "fetch the file again"),
    "gzip": (gzip.compress(b"weights"), "a gzip file", "unpack it"),
    "tar": (tar_bytes(), "a tar archive", "unpack it"),
    "zip of a model": (zip_bytes(model=b"x"), "a zip archive of model", "unpack it"),
    "zip cut short": (zip_bytes(model=b"x")[:40], "cut short or damaged", "fetch the file again"),
    "npz": (npz_bytes(), "a file of NumPy arrays", "format"),
    "npy": (b"\x93NUMPY\x01\x00", "a NumPy array", "format"),
    "onnx": (b"\x08\x08\x12\x07pytorch", "an ONNX model", "format"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "format"),
    "empty": (b"", "an empty file", "fetch the file again"),
    "something": (b"\x01\x02\x03\x04", "a file of another kind", "fetch the file again"),
}


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        act()
    return str(caught.value)


@pytest.mark.parametrize(("data", "name", "remedy"), NO_MODELS.values(), ids=NO_MODELS)
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_what_is_no_model_is_called_what_it_is_wherever_a_model_is_wanted(
    data: bytes, name: str, remedy: str, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"given.{ending}"
    path.write_bytes(data)
    for act in (
        lambda: load_model(path),
        lambda: read_metadata(path),
        lambda: read_sam_state(path),
        lambda: load_published(path, STAND_IN),
        lambda: load_weights(path, STAND_IN),
    ):
        said = refusal(act)
        assert said.startswith(str(path))
        assert f", found {name}" in said or f"{name};" in said
        assert remedy in said.partition(name)[2]
        assert "\n" not in said
        if "damage" not in name + file_kind(path).name:
            assert "damage" not in said


@pytest.mark.parametrize("legacy", [False, True])
def test_a_published_checkpoint_is_told_where_it_belongs(legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "lite_medsam.safetensors"
    path.write_bytes(torch_bytes(STATE, legacy=legacy))
    said = refusal(lambda: load_model(path))
    assert "found a torch checkpoint (.pth); give the model.safetensors that this project made" in said
    assert "MEDSAM_TEACHER" in said
    assert "damage" not in said


def test_a_checkpoint_of_a_training_run_is_told_by_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(torch_bytes({"model": STATE, "optimizer": {}, "epoch": 3}))
    assert "a torch checkpoint (.pth) of a training run (model, optimizer, epoch)" in refusal(lambda: load_model(path))


def test_a_teacher_for_which_nothing_is_published_takes_no_checkpoint_whatever_its_name(tmp_path: Path) -> None:
    for name in ("weights.pth", "weights.safetensors"):
        (tmp_path / name).write_bytes(torch_bytes(STATE))
        said = refusal(lambda name=name: load_weights(tmp_path / name, STAND_IN))  # type: ignore[misc]
        assert "no checkpoints are published for stand_in), found a torch checkpoint" in said


def test_a_models_own_file_is_read_under_any_name(tmp_path: Path) -> None:
    path = tmp_path / "downloaded"
    path.write_bytes(safetensors.torch.save(STATE, {"format": "pt"}))
    assert "a safetensors file of another program" in refusal(lambda: load_weights(path, STAND_IN))


def test_a_folder_and_a_file_that_may_not_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "found a folder; give the file model.safetensors in it" in refusal(lambda: load_model(tmp_path))
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x")

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)
    for act in (lambda: load_model(path), lambda: read_sam_state(path)):
        assert "found: Permission denied; correct its access rights" in refusal(act)
