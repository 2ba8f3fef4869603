"""Model files. What belongs here: own safetensors files, published SAM and MedSAM checkpoints, strict loading.

Not here: training checkpoints with their optimiser state (`training.checkpoint`), or the architectures.
A model file rebuilds its model from its own header; nothing that is read can run code.
"""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from medsam_core.config import Architecture, StudentConfig, TeacherConfig
from medsam_core.files import atomic_file
from medsam_core.models.encoders.base import load_encoder
from medsam_core.models.file_kinds import FileKind, file_kind
from medsam_core.models.segmenter import Segmenter, build_teacher

ARCHITECTURE = "architecture"
"""Metadata key under which a model file says what to rebuild."""

_HEADER = "repvit_medsam"
"""The one entry of the safetensors header: a JSON object of all metadata.

safetensors writes several entries in a random order, and equal models must give equal bytes.
"""

_ROLES: dict[str, type[Architecture]] = {"student": StudentConfig, "teacher": TeacherConfig}

_LISTED = 20
"""Keys of each kind that an error message names before it only counts."""


class CheckpointError(RuntimeError):
    """A model file cannot be used; the message says what was expected, what was found and what to do."""


def parameter_counts(segmenter: Segmenter) -> dict[str, int]:
    """Count parameters (not buffers) of `image_encoder`, `prompt_encoder`, `mask_decoder` and in `total`."""
    counts = {
        name: sum(parameter.numel() for parameter in part.parameters()) for name, part in segmenter.named_children()
    }
    return {**counts, "total": sum(counts.values())}


def _listing(kind: str, lines: list[str]) -> str:
    if not lines:
        return ""
    more = f", and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    return f"\n  {kind} ({len(lines)}): {', '.join(lines[:_LISTED])}{more}"


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into a module, each key exactly once and in its shape.

    Args:
        module: What to load into; its dtype and device stay.
        state: Weights by key.
        source: Where they come from, for the message.

    Raises:
        CheckpointError: Listing every missing, unexpected and misshaped key; the module is then unchanged.
    """
    wanted = module.state_dict()
    misshaped = [
        f"{key} expected {tuple(wanted[key].shape)} found {tuple(state[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    problems = (
        _listing("missing", [key for key in wanted if key not in state])
        + _listing("unexpected", [key for key in state if key not in wanted])
        + _listing("misshaped", misshaped)
    )
    if problems:
        raise CheckpointError(
            f"{source} does not fit {type(module).__name__}:{problems}\nGive a checkpoint of this architecture, or "
            "configure the architecture of this checkpoint"
        )
    module.load_state_dict(state)


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


def _kind(path: Path, wanted: str) -> FileKind:
    """Tell what a file is by its first bytes.

    Raises:
        CheckpointError: If it is not there or cannot be read.
    """
    try:
        return file_kind(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: expected {wanted}, found none; give its path, or make it first") from None
    except OSError as error:
        raise CheckpointError(
            f"{path}: expected {wanted} that can be read, found: {error.strerror}; correct its access rights"
        ) from None


def _torch_content(path: Path) -> object:
    """Return what `torch.save` wrote; opened here, for torch takes a path's ending at its word."""
    with path.open("rb") as file:
        content: object = torch.load(file, map_location="cpu", weights_only=True)
    return content


def _torch_entries(path: Path) -> str:
    """Return what a torch checkpoint holds beside weights, fit for a message; nothing where that cannot be told."""
    try:
        content = _torch_content(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError):
        return ""
    if isinstance(content, dict) and not _is_state(content):
        return f" of a training run ({', '.join(str(key) for key in list(content)[:6])})"
    return ""


def _require_safetensors(path: Path) -> None:
    kind = _kind(path, "a model file")
    if not kind.is_safetensors:
        entries = _torch_entries(path) if kind.is_torch else ""
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


def _is_state(content: Mapping[object, object]) -> bool:
    named_tensors = (isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    return bool(content) and all(named_tensors)


def read_sam_state(path: Path) -> dict[str, Tensor]:
    """Read the weights of a SAM or MedSAM checkpoint file (.pth), by their published keys.

    Args:
        path: A plain state dict, or a training checkpoint that holds one under "model"; a "module." that distributed
            training put before every key is dropped.

    Raises:
        CheckpointError: If the file is missing, holds anything but plain tensors and values, or is no state dict.
    """
    kind, wanted = _kind(path, "a SAM or MedSAM checkpoint"), "a torch checkpoint of tensors and plain values"
    if not kind.is_torch:
        raise CheckpointError(f"{path}: expected {wanted}, found {kind.name}; {kind.remedy}")
    try:
        content = _torch_content(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: expected {wanted}, found something else in it ({error}); download it again, or save its state "
            "dict alone"
        ) from error
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not _is_state(state):
        raise CheckpointError(
            f"{path}: expected a state dict of tensors, found another {type(state).__name__}; save the model's alone"
        )
    if all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): value for key, value in state.items()}
    return state


def load_published(path: Path, config: TeacherConfig) -> Segmenter:
    """Load a published checkpoint, or a training checkpoint of its architecture, under the keys of its publisher.

    Args:
        path: The file, such as `medsam_vit_b.pth` or SAM's `sam_vit_b_01ec64.pth`.
        config: The architecture; position embeddings are resized where its image side is not the published one.

    Returns:
        The teacher in evaluation mode, float32, on the CPU.

    Raises:
        CheckpointError: If nothing is published for the architecture, or the file cannot be read or does not fit it,
            listing every key at fault.
    """
    spec = config.encoder
    if spec.published_side is None:
        kind = _kind(path, "a model file")
        remedy = "give such a file, or configure the encoder of this checkpoint" if kind.is_torch else kind.remedy
        raise CheckpointError(
            f"{path}: expected a safetensors file written by save_model (no checkpoints are published for "
            f"{spec.name}), found {kind.name}; {remedy}"
        )
    segmenter = build_teacher(config.model_copy(update={"image_size": spec.published_side}))
    load_strictly(segmenter, load_encoder(spec).from_published(read_sam_state(path)), str(path))
    return (segmenter if config.image_size == spec.published_side else segmenter.resized(config.image_size)).eval()
