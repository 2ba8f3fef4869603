"""Files that torch wrote. What belongs here: published checkpoints and training checkpoints of their architectures.

Not here: the project's own model files (`checkpoints`), or key maps (`encoders`). Nothing that is read can run code.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from medsam_core.models.config import TeacherConfig
from medsam_core.models.encoders.base import load_encoder
from medsam_core.models.file_kinds import FileKind, file_kind
from medsam_core.models.segmenter import Segmenter, build_teacher
from medsam_core.models.weights import CheckpointError, load_strictly


def kind_of(path: Path, wanted: str) -> FileKind:
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
    """Return what `torch.save` wrote; opened here, as torch chooses the format by the ending of a path."""
    with path.open("rb") as file:
        content: object = torch.load(file, map_location="cpu", weights_only=True)
    return content


def torch_entries(path: Path) -> str:
    """Return what a torch checkpoint holds beside weights, fit for a message; nothing where that cannot be told."""
    try:
        content = _torch_content(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError):
        return ""
    if isinstance(content, dict) and not _is_state(content):
        return f" of a training run ({', '.join(str(key) for key in list(content)[:6])})"
    return ""


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
    kind, wanted = kind_of(path, "a SAM or MedSAM checkpoint"), "a torch checkpoint of tensors and plain values"
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
        kind = kind_of(path, "a model file")
        remedy = "give such a file, or configure the encoder of this checkpoint" if kind.is_torch else kind.remedy
        raise CheckpointError(
            f"{path}: expected a safetensors file written by save_model (no checkpoints are published for "
            f"{spec.name}), found {kind.name}; {remedy}"
        )
    segmenter = build_teacher(config.model_copy(update={"image_size": spec.published_side}))
    load_strictly(segmenter, load_encoder(spec).from_published(read_sam_state(path)), str(path))
    return (segmenter if config.image_size == spec.published_side else segmenter.resized(config.image_size)).eval()
