"""Weights and the modules they belong to. What belongs here: strict loading, counting, and the error of model files.

Not here: files (`checkpoints`, `published`).
"""

from collections.abc import Mapping

from torch import Tensor, nn

from medsam_core.models.segmenter import Segmenter

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
