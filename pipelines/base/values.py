"""Values that are passed between steps and to the trainer: frozen types, written as JSON and validated when read.

What belongs here: these types and their JSON. Not here: the place of the JSON (`pipelines.base.json_io`), the artefact,
store or cache itself: the value of an asset only names it and holds a few facts.

The JSON of a value is an object of its fields, without the name of the type: the reader states the type it expects.
"""

import json
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from medsam_core.base.config import PrecisionSetting, StageConfig
from medsam_core.learning.questions import AnswerKind
from medsam_core.learning.stages import StageName
from medsam_core.models.config import StudentConfig
from storage.base.atomic import read_json
from storage.base.errors import IntegrityError
from storage.base.references import ArtefactRef

T = TypeVar("T")


BELIEVED = "believed"
"""Fact of a `TeacherRef`: the modalities whose masks a student may learn from it, where validation was asked."""


@dataclass(frozen=True)
class TeacherRef(ArtefactRef):
    """Names the teacher's model.

    Attributes:
        teacher: Kind of the teacher in the profile.
    """

    teacher: str


@dataclass(frozen=True)
class StoreRef:
    """Names a published slice store.

    Attributes:
        modality: Its modality.
        fingerprint: Fingerprint of its manifest.
        made: Ids of the parts that were written by the run that published the store.
        lost: Case id -> reason, for cases of the raw manifest that the store does not hold.
    """

    modality: str
    fingerprint: str
    made: tuple[str, ...]
    lost: dict[str, str] = field(default_factory=dict)


CacheMode = Literal["cached", "online", "off"]


@dataclass(frozen=True)
class CacheRef:
    """Names a teacher's answers to a plan.

    Attributes:
        mode: `cached`, `online` if the teacher is asked during training, or `off` if the profile leaves the stage out.
        answers: Kind of the answers.
        cache: Digest that names the cache; empty if nothing is cached.
        fingerprint: Fingerprint of the published answers.
        teacher: Fingerprint of the teacher.
        plan: Fingerprint of the plan.
    """

    mode: CacheMode
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
    """The parts that one step of a slice store wrote, and the cases that it could not write.

    Attributes:
        lost: Case id -> reason, for cases whose files have changed since the manifest; their parts are not written.
    """

    lost: dict[str, str]


@dataclass(frozen=True)
class TrainerJob:
    """The whole input of the trainer process.

    Attributes:
        stage: The training stage.
        config: Settings of the stage.
        release: The release to train on.
        statistics: Pixel statistics for a new student; None if the stage builds no student.
        plan: The plan of the stage.
        teacher: The teacher, which answers online and provides the decoder; None for a stage without a teacher.
        cache: The teacher's answers; None if the stage needs none.
        starts_from: The model to start from; None for a new student.
        keep_epochs: Epochs after which weights are kept.
        settings: Environment variables of the deployment.
        fingerprint: Fingerprint of the inputs of the result.
        out: Folder of the result.
        precision: Number format of the training on a CPU, as the profile states it for students.
        student: Architecture of a new student; None where the stage starts from a model.
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
    precision: PrecisionSetting = "float32"
    student: StudentConfig | None = None


def travelling(annotation: object) -> type | None:
    """Return the value type T of an annotation `T`, `list[T]` or `T | None`; None if it names no such type."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind)), None)


def to_json(value: object) -> object:
    """Return the plain content of a value; a value of another type is returned unchanged."""
    return TypeAdapter(type(value)).dump_python(value) if travelling(type(value)) else value


def from_json(kind: type[T], content: object, name: str, remedy: str = "") -> T:
    """Return the value of a type from its JSON.

    Args:
        kind: The expected type.
        content: Parsed JSON.
        name: Name of the asset or of the file, for the error message.
        remedy: What a user should do if the value cannot be read; by default, materialise the asset again.

    Raises:
        IntegrityError: If a field is missing, unknown or of another type; the message lists every such field.
    """
    problems = [f"{field}: unknown" for field in _unknown(kind, content)]
    try:
        # Validated as JSON text: in strict mode Python objects would need tuples and instances of nested types.
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


def read_content(path: Path, name: str) -> object:
    """Return the JSON in the file of an asset's value.

    Raises:
        IntegrityError: If the file is empty or cut; the message says to materialise the asset again.
    """
    try:
        content: object = read_json(path)
    except IntegrityError as error:
        found = f"a damaged file of {path.stat().st_size} bytes"
        raise IntegrityError(
            f"value of {name} in {path}: expected JSON, found {found}; materialise {name} again"
        ) from error
    return content


def read_value(kind: type[T], path: Path, name: str) -> T:
    """Return the value of an asset from its file.

    Raises:
        IntegrityError: If the file is damaged or holds something else; the message says to materialise the asset again.
    """
    return from_json(kind, read_content(path, name), name)


def _unknown(kind: type, content: object, prefix: str = "") -> list[str]:
    """Return the fields of JSON, and of nested values, that the type does not have."""
    if not isinstance(content, dict):
        return []
    hints = get_type_hints(kind)
    found = [f"{prefix}{key}" for key in content if key not in hints]
    for key, hint in hints.items():
        inner = travelling(hint)
        if inner is not None:
            found += _unknown(inner, content.get(key), f"{prefix}{key}.")
    return found
