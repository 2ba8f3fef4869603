"""The model of a command line. What belongs here: loading a model from a path or an MLflow URI, and errors of that.

Not here: reading model files (`medsam_core.models.checkpoints`), predicting.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.base.settings import InputError, Settings
from pipelines.teacher.provenance import recorded_facts, told

if TYPE_CHECKING:
    from medsam_core.models.segmenter import Segmenter


def model_file(model: str, settings: Settings, scratch: Path) -> Path:
    """Return the local file of a model named by path or MLflow URI.

    Raises:
        FileNotFoundError: If the model does not exist.
    """
    path = Path(model)
    if ":/" in model and not path.exists():
        from pipelines.tracking.tracker import download_model

        return download_model(model, settings.tracking_uri, scratch)
    wanted = "--model: expected a safetensors file or an MLflow model URI"
    if path.is_dir():
        raise FileNotFoundError(f"{wanted}, found the folder {model}; give the file model.safetensors in it")
    if not path.is_file():
        raise FileNotFoundError(f"{wanted}, found no file {model}")
    return path


def load_given(file: Path) -> "Segmenter":
    """Load the model of a file.

    Raises:
        InputError: If the file cannot be used.
    """
    from medsam_core.models.checkpoints import load_model
    from medsam_core.models.weights import CheckpointError

    try:
        return load_model(file)
    except CheckpointError as error:
        raise InputError(f"--model: {error}") from error


def origin_of_given(file: Path, log: Callable[[str], None]) -> dict[str, str]:
    """Return where the weights of a model file come from, and say it; empty for a model that does not state it.

    Raises:
        CheckpointError: If the file is no model file.
    """
    from medsam_core.models.checkpoints import read_metadata

    facts = recorded_facts(read_metadata(file))
    if facts:
        log(f"The model: {told(facts)}")
    return facts
