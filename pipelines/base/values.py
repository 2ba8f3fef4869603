"""What travels between steps, and to the trainer: frozen values, written as JSON and read back strictly.

What belongs here: these types and their JSON. Not here: where the JSON lies (`pipelines.base.json_io`), the things
themselves; an asset's value names its artefact, store or cache and states a few facts of it.

The JSON of a value is an object of its fields, without a type's name: who reads it says what it expects.
"""

import json
from dataclasses import dataclass, field, is_dataclass
from typing import Literal, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from medsam_core.base.config import StageConfig
from medsam_core.learning.questions import AnswerKind
from medsam_core.learning.stages import StageName
from storage.base.errors import IntegrityError
from storage.base.references import ArtefactRef

T = TypeVar("T")


@dataclass(frozen=True)
class TeacherRef(ArtefactRef):
    """Names the teacher's model.

    Attributes:
        teacher: Kind of its encoder, as the profile calls it.
    """

    teacher: str


@dataclass(frozen=True)
class StoreRef:
    """Names a published slice store.

    Attributes:
        modality: Its modality.
        fingerprint: Of its manifest.
        made: Ids of the parts that the run wrote which published it.
        lost: Case id -> why, of the manifest's cases that it does not hold.
    """

    modality: str
    fingerprint: str
    made: tuple[str, ...]
    lost: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CacheRef:
    """Names a teacher's answers to a plan.

    Attributes:
        mode: `cached`, or `online` where the teacher is asked while training.
        answers: Which answers.
        cache: Digest that names the cache; empty where the teacher is asked online.
        fingerprint: Of the published answers.
        teacher: Fingerprint of the teacher that answers.
        plan: Fingerprint of the plan whose slots are answered.
    """

    mode: Literal["cached", "online"]
    answers: AnswerKind
    cache: str
    fingerprint: str
    teacher: str
    plan: str


@dataclass(frozen=True)
class PartsMade:
    """Ids of the parts that one step of an asset wrote."""

    made: tuple[str, ...]


@dataclass(frozen=True)
class StorePartsMade(PartsMade):
    """What one step of a slice store wrote, and what it could not.

    Attributes:
        lost: Case id -> why, of cases whose files are no longer those of the manifest; their parts are not written.
    """

    lost: dict[str, str]


@dataclass(frozen=True)
class TrainerJob:
    """Everything that the trainer process is told.

    Attributes:
        stage: Which stage.
        config: Its settings.
        release: The release to train on.
        statistics: Pixel statistics for a new student; None where none is built.
        plan: The stage's plan.
        teacher: Who answers online and gives the decoder; None for a stage without a teacher.
        cache: The teacher's answers; None where the stage asks nobody.
        starts_from: The model to go on from; None for a new student.
        keep_epochs: Epochs after which weights are kept.
        settings: Environment variables of the deployment.
        fingerprint: Of what the result is made from.
        out: Folder of the result.
    """

    stage: StageName
    config: StageConfig
    release: ArtefactRef
    statistics: ArtefactRef | None
    plan: ArtefactRef
    teacher: TeacherRef | None
    cache: CacheRef | None
    starts_from: ArtefactRef | None
    keep_epochs: tuple[int, ...]
    settings: dict[str, str]
    fingerprint: str
    out: str


def travelling(annotation: object) -> type | None:
    """Return the type of value that an annotation names, alone, as `list[...]` or as `... | None`; None if none."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind)), None)


def to_json(value: object) -> object:
    """Return the plain content of a value; what is none of these types is returned as it is."""
    return TypeAdapter(type(value)).dump_python(value) if travelling(type(value)) else value


def from_json(kind: type[T], content: object, name: str, remedy: str = "") -> T:
    """Return the value that JSON holds.

    Args:
        kind: Which of these types is expected.
        content: Parsed JSON.
        name: Of the asset whose value it is, or of the file.
        remedy: What to do where it cannot be read; by default to materialise the asset again.

    Raises:
        IntegrityError: Naming every field that is missing, unknown or of another type.
    """
    problems = [f"{field}: unknown" for field in _unknown(kind, content)]
    try:
        # As text: strict reading of Python objects would want tuples and nested values ready made.
        value = TypeAdapter(kind).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        problems += [f"{'.'.join(map(str, item['loc'])) or 'value'}: {item['msg']}" for item in error.errors()]
    if problems:
        expected = ", ".join(get_type_hints(kind))
        raise IntegrityError(
            f"value of {name}: expected {kind.__name__} ({expected}), found {'; '.join(problems)}; "
            f"{remedy or f'materialise {name} again'}"
        )
    return value


def _unknown(kind: type, content: object, prefix: str = "") -> list[str]:
    """Return the fields of JSON that a type has not, also those of values within it."""
    if not isinstance(content, dict):
        return []
    hints = get_type_hints(kind)
    found = [f"{prefix}{key}" for key in content if key not in hints]
    for key, hint in hints.items():
        inner = travelling(hint)
        if inner is not None:
            found += _unknown(inner, content.get(key), f"{prefix}{key}.")
    return found
