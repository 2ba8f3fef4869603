"""Where a teacher's weights come from: licence, source, what they were trained on as far as known.

What belongs here: finding these facts for a file that was given, and for a teacher that was made from one. Not here:
the facts of published files (`medsam_core.models.publications`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from medsam_core.models.publications import FACTS, facts_of
from pipelines.base.workspace import Workspace
from storage.base.errors import IntegrityError
from storage.base.finished import read_origin
from storage.base.references import ArtefactRef

TRAINED_HERE: Final = "trained_here"
"""Name of the fact that lists the stages in which this deployment trained the teacher further."""

_STARTS_FROM: Final = "starts_from"
"""Input of a model that a stage of this project trained: the fingerprint of the model it began with."""


def recorded_facts(header: Mapping[str, str]) -> dict[str, str]:
    """Return the facts that the header of a model file holds; empty where it holds none."""
    return {name: header[name] for name in FACTS} if set(FACTS) <= set(header) else {}


def given_facts(file: Path, sha256: str) -> dict[str, str]:
    """Return the facts of a file of weights: those in its header if it is a model file that has some.

    Raises:
        CheckpointError: If it is a model file that is damaged.
    """
    from medsam_core.models.checkpoints import read_metadata
    from medsam_core.models.file_kinds import file_kind

    found = recorded_facts(read_metadata(file)) if file_kind(file).is_safetensors else {}
    return found or facts_of(sha256, file.name)


def teacher_facts(workspace: Workspace, fingerprint: str) -> dict[str, str]:
    """Return the facts of a teacher by its fingerprint, followed back to the weights that were given.

    Args:
        workspace: Where its models lie.
        fingerprint: Of the teacher's model.

    Returns:
        Facts by name; empty where a model on the way is gone, or says nothing.
    """
    stages: list[str] = []
    try:
        origin = read_origin(workspace.artefacts.folder("model", fingerprint))
        while _STARTS_FROM in origin:
            stages.insert(0, str(origin["stage"]))
            fingerprint = str(origin[_STARTS_FROM])
            origin = read_origin(workspace.artefacts.folder("model", fingerprint))
        info = workspace.artefacts.get(ArtefactRef("model", fingerprint, {}, reused=True)).info
    except (FileNotFoundError, IntegrityError, KeyError):
        return {}
    if "sha256" not in info:
        return {}
    # Models of earlier versions recorded only the hash.
    facts = dict(info.get("facts") or facts_of(str(info["sha256"]), str(info["source"])))
    return {**facts, TRAINED_HERE: f"{', '.join(stages)} on the training patients"} if stages else facts


def told(facts: Mapping[str, str]) -> str:
    """Return facts as one line."""
    names = [name for name in (*FACTS, TRAINED_HERE) if name in facts and name != "weights_sha256"]
    return "; ".join(f"{name.replace('_', ' ')}: {facts[name]}" for name in names)
