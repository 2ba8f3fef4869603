"""Model files. What belongs here: the project's own safetensors files.

Not here: files that torch wrote (`published`, `medsam_core.training.checkpoint`), or the architectures.
A model file rebuilds its model from its own header; nothing that is read can run code.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from medsam_core.base.files import atomic_file
from medsam_core.models.config import Architecture, StudentConfig, TeacherConfig
from medsam_core.models.published import kind_of, torch_entries
from medsam_core.models.segmenter import Segmenter
from medsam_core.models.weights import CheckpointError, load_strictly

ARCHITECTURE = "architecture"
"""Metadata key under which a model file says what to rebuild."""

_HEADER = "repvit_medsam"
"""The one entry of the safetensors header: a JSON object of all metadata.

safetensors writes several entries in a random order, and equal models must give equal bytes.
"""

_ROLES: dict[str, type[Architecture]] = {"student": StudentConfig, "teacher": TeacherConfig}


def _stored_tensors(segmenter: Segmenter, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the state dict with parameters in `dtype`; buffers keep theirs, for statistics are not robust to rounding.

    Raises:
        CheckpointError: If a value is not finite, also where only `dtype` makes it so.
    """
    parameters = dict(segmenter.named_parameters())
    tensors: dict[str, Tensor] = {}
    for key, value in segmenter.state_dict().items():
        stored = value.to(dtype) if key in parameters else value
        if not bool(torch.isfinite(stored).all()):
            raise CheckpointError(f"{key}: expected finite values as {stored.dtype}, found NaN or infinity; not saved")
        tensors[key] = stored.cpu().contiguous()
    return tensors


def save_model(
    path: Path, segmenter: Segmenter, metadata: Mapping[str, str], *, dtype: torch.dtype = torch.float32
) -> None:
    """Write a model to a safetensors file, atomically; equal models and metadata give equal bytes.

    Args:
        path: The file.
        segmenter: The model, on any device.
        metadata: What else the header shall say, such as fingerprints of what the model was made from.
        dtype: Type of the stored parameters; float16 halves shipped weights.

    Raises:
        CheckpointError: If a weight is not finite as `dtype`.
        ValueError: If `metadata` uses the key "architecture".
    """
    if ARCHITECTURE in metadata:
        raise ValueError(f"metadata: expected any key but {ARCHITECTURE!r}, which is written from the model")
    role = next(name for name, kind in _ROLES.items() if isinstance(segmenter.architecture, kind))
    architecture = {"role": role, "config": segmenter.architecture.model_dump(mode="json")}
    header = {**metadata, ARCHITECTURE: json.dumps(architecture, sort_keys=True)}
    data = safetensors.torch.save(
        _stored_tensors(segmenter, dtype), metadata={_HEADER: json.dumps(header, sort_keys=True)}
    )
    with atomic_file(path) as file:
        file.write(data)


def _read_header(path: Path, header: Mapping[str, str] | None) -> dict[str, str]:
    if header is None or _HEADER not in header:
        raise CheckpointError(
            f"{path}: expected a model written by save_model, found a safetensors file of another program; give the "
            "model.safetensors that this project made. Published SAM and MedSAM weights are read from their .pth file"
        )
    try:
        metadata: dict[str, str] = json.loads(header[_HEADER])
    except ValueError as error:
        raise CheckpointError(f"{path}: expected JSON in its header, found damage ({error}); copy it again") from error
    return metadata


def _require_safetensors(path: Path) -> None:
    kind = kind_of(path, "a model file")
    if not kind.is_safetensors:
        entries = torch_entries(path) if kind.is_torch else ""
        raise CheckpointError(
            f"{path}: expected a safetensors file written by save_model, found {kind.name}{entries}; {kind.remedy}"
        )


def _read_safetensors(path: Path, *, tensors: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    _require_safetensors(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = _read_header(path, file.metadata())
            keys = file.keys() if tensors else []
            return metadata, {key: file.get_tensor(key) for key in keys}
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{path}: expected a whole safetensors file, found damage ({error}): it was cut short or altered; copy it "
            "again from where it is whole, or make it again"
        ) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a model file, with "architecture" as JSON, without reading its weights.

    Raises:
        CheckpointError: If the file is missing, damaged or not of `save_model`.
    """
    return _read_safetensors(path, tensors=False)[0]


def _architecture(path: Path, metadata: Mapping[str, str]) -> Architecture:
    try:
        described = json.loads(metadata[ARCHITECTURE])
        return _ROLES[described["role"]].model_validate(described["config"])
    except (KeyError, ValueError, ValidationError) as error:
        raise CheckpointError(
            f"{path}: expected an architecture this version knows, found {metadata.get(ARCHITECTURE)!r} ({error}); "
            "use the version that wrote the file"
        ) from error


def load_model(path: Path) -> Segmenter:
    """Rebuild a model from its file.

    Returns:
        The model in evaluation mode, float32, on the CPU.

    Raises:
        CheckpointError: If the file is missing, damaged or not of `save_model`, or its weights do not fit.
    """
    metadata, tensors = _read_safetensors(path, tensors=True)
    architecture = _architecture(path, metadata)
    placeholder = ((0.0,) * 3, (1.0,) * 3) if architecture.encoder.input_kind == "standardised" else None
    segmenter = Segmenter(architecture, placeholder)
    load_strictly(segmenter, tensors, str(path))
    return segmenter.eval()
