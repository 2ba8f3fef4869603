"""Profiles: the numbers that differ between `sample`, `real` and `paper`.

What belongs here: the validated description of a whole run, and reading it from YAML. Not here: addresses,
executors and other settings of one deployment (`pipelines.base.settings`).
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, model_validator

from medsam_core.base.config import Config, Positive, PrecisionSetting, StageConfig, with_present_names
from medsam_core.inference.overlaps import Overlap
from medsam_core.inference.volume_prompts import VolumePrompts
from medsam_core.models.config import StudentConfig, TeacherConfig
from medsam_core.models.encoders.registry import PLAIN
from storage.base.modalities import MODALITIES
from storage.sources.kinds import is_source_kind, source_kinds

PROFILE_FOLDER = Path(__file__).parents[1] / "profiles"

MAX_LZ4_LEVEL = 9
"""As in `storage.shards.codec`; repeated here because that module imports the codecs, which a profile does not need."""

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]


class ProfileError(ValueError):
    """A profile cannot be read; the message lists every problem at once."""


def _known_kind(kind: str) -> str:
    if not is_source_kind(kind):
        raise ValueError(f"expected one of {', '.join(source_kinds())}")
    return kind


class SourceSettings(Config):
    """The source of cases and the reading of its files."""

    later_settings: ClassVar[tuple[str, ...]] = ("unlabelled",)

    kind: Annotated[str, AfterValidator(_known_kind)] = "folder"
    """`synthetic`: cases that the project makes; `folder`: the npz files below `MEDSAM_DATA`; or a registered kind."""
    spacing_order: Literal["zyx", "xyz"] = "zyx"
    """Axis order of `spacing` in the files. It is stated, never guessed: the challenge's converter writes xyz."""
    max_case_bytes: Positive = 8 * 2**30
    """Most array bytes of a file; a file whose headers state more is rejected without being read."""
    unlabelled: bool = False
    """Whether distillation also draws images of files without `gts`."""
    synthetic_seed: int = 7
    synthetic_cases: Positive = 18
    """Two-dimensional cases of each modality that the synthetic source makes."""
    synthetic_volumes: Positive = 5
    """Volumes of CT, MR and PET that the synthetic source makes."""


class StoreSettings(Config):
    """Layout of the slice stores."""

    chunk_bytes: Positive = 262_144
    chunks_per_shard: Positive = 256
    codec: Literal["zstd", "lz4"] = "zstd"
    """`lz4` reads about twice as fast as `zstd` and takes about 1.3 times the space."""
    level: Positive = 4
    """Compression level of images; for lz4, levels 2 to 9 are its high compression mode."""
    levels: dict[str, Positive] = Field(default={"CT": 1})
    """Modality -> its own level. CT is most of the data: level 1 gives the size of its npz files in half the time;
    other images take up to 1.3 times the size of their npz files at level 1."""
    part_shards: Positive = 8
    parts_per_step: Positive = 8
    """Parts written by one step."""


class SplitSettings(Config):
    """How patients are divided into splits."""

    validation: Fraction = 0.1
    test: Fraction = 0.2
    seed: int = 0


class CacheSettings(Config):
    """The teacher's cached answers."""

    mode: Literal["cached", "online", "prefer_cached"] = "cached"
    """`online`: every step asks the teacher. `prefer_cached`: the same, unless the whole cache exists already."""
    encoding: Literal["int8_per_channel", "float16"] = "int8_per_channel"
    """Encoding of cached embeddings (`storage.answers.encodings`)."""
    max_bytes: Positive | None = None
    """Most bytes of one cache; None: the free space of the disk."""
    slots_per_chunk: Positive = 1
    slots_per_shard: Positive = 64
    shards_per_part: Positive = 1
    parts_per_step: Positive = 8


class InferenceSettings(Config):
    """The rules by which cases are predicted."""

    volume_prompts: VolumePrompts = "sections"
    """With what each slice of a volume is prompted."""
    overlap: Overlap = "last"
    """Who gets a pixel that several boxes claim; the challenge's contract says `last`."""


class SeedSettings(Config):
    """Independent seeds of plan and initialisation; the split has its own seed."""

    plan: int = 0
    init: int = 0


class TrainingSettings(Config):
    """The use of the machine in training; these settings change results only by rounding, `precision` by more."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    mixed_precision: bool = False
    """On CUDA only: bfloat16 where the device has it, else float16; for teacher and student."""
    precision: PrecisionSetting = "float32"
    """Number format in which students are trained, on a CPU too. `auto`: bfloat16 where the processor has units for it
    and a measurement at the start of a training finds it faster, else float32. Models always predict in float32."""
    processes: Positive = 1
    """Processes of torchrun, one for each GPU."""
    checkpoint_steps: Positive = 50


class Profile(Config):
    """A whole run."""

    later_settings: ClassVar[tuple[str, ...]] = ("teacher_adaptation", "inference")

    name: str
    source: SourceSettings = SourceSettings()
    store: StoreSettings = StoreSettings()
    split: SplitSettings = SplitSettings()
    release: str = "latest"
    """`latest`, or the fingerprint of the recorded release that training and evaluation use."""
    student: StudentConfig = StudentConfig()
    teacher: TeacherConfig = TeacherConfig()
    teacher_pretraining: StageConfig | None = None
    """For the stand-in teacher only: further training on the training patients; None keeps the given weights."""
    teacher_adaptation: StageConfig | None = None
    """Tunes the teacher's prompt encoder and mask decoder on the training patients, its encoder frozen; None: not."""
    distillation: StageConfig
    finetuning: StageConfig
    ablation_epochs: Positive = 4
    """Fine-tuning epoch after which ablations stop and at which they are compared [P]."""
    cache: CacheSettings = CacheSettings()
    training: TrainingSettings = TrainingSettings()
    inference: InferenceSettings = InferenceSettings()
    seeds: SeedSettings = SeedSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = self.contradictions()
        if problems:
            raise ValueError("\n  ".join(problems))
        return self

    def contradictions(self) -> list[str]:
        """Return the contradictions between settings that are each valid alone."""
        problems = []
        if self.student.image_size != self.teacher.image_size:
            problems.append(
                f"teacher.image_size: expected student.image_size {self.student.image_size}, "
                f"found {self.teacher.image_size}"
            )
        problems += self._different_grids()
        if self.ablation_epochs > self.finetuning.epochs:
            problems.append(
                f"ablation_epochs: expected at most finetuning.epochs {self.finetuning.epochs}, "
                f"found {self.ablation_epochs}"
            )
        if self.teacher_pretraining and self.teacher.encoder.published_side is not None:
            problems.append(
                f"teacher_pretraining: expected none with teacher.kind {self.teacher.kind!r}, whose published weights "
                "are used as they are; remove it"
            )
        for name, stage in (("finetuning", self.finetuning), ("teacher_adaptation", self.teacher_adaptation)):
            if stage is not None and stage.augmentation.mixing != ("none",):
                problems.append(f"{name}.augmentation.mixing: expected ('none',): masks are not mixed")
        if not set(self.store.levels) <= set(MODALITIES):
            problems.append(f"store.levels: expected modalities ({', '.join(MODALITIES)}), found {self.store.levels}")
        if self.store.codec == "lz4" and max([self.store.level, *self.store.levels.values()]) > MAX_LZ4_LEVEL:
            problems.append(f"store.level: expected at most {MAX_LZ4_LEVEL} with lz4, found more")
        if self.split.validation + self.split.test >= 1:
            problems.append("split: expected validation + test below 1")
        return problems

    def _different_grids(self) -> list[str]:
        """Return the differences of grid and frame that prevent the student from learning the teacher's answers."""
        problems = []
        stride, found_stride = self.student.encoder_stride, self.teacher.encoder_stride
        if stride != found_stride:
            neck = "" if self.student.neck == PLAIN else f" with neck {self.student.neck}"
            problems.append(
                f"teacher.kind: expected an encoder of stride {stride} like student.backbone {self.student.backbone}"
                f"{neck}, found {self.teacher.kind} of stride {found_stride}; answers of another grid cannot be learnt"
            )
        student, teacher = self.student.geometry, self.teacher.geometry
        for name, wanted, found in (
            ("frame", student.frame, teacher.frame),
            ("resampling", student.resampling, teacher.resampling),
        ):
            if wanted != found:
                problems.append(
                    f"teacher.{name}: expected student.{name} {wanted}, found {found}; set both to the one the teacher "
                    "was trained on"
                )
        return problems


def _contradictions_beside_errors(content: dict[str, Any]) -> list[str]:
    """Return the contradictions between the sections that are valid alone."""
    right: dict[str, Any] = {"distillation": StageConfig(), "finetuning": StageConfig()}
    wrong = {"distillation", "finetuning"} - set(content)
    for name, field in Profile.model_fields.items():
        if name in content:
            try:
                right[name] = TypeAdapter[Any](field.annotation or Any).validate_python(content[name])
            except ValidationError:
                wrong.add(name)
    found = Profile.model_construct(**right).contradictions()
    return [line for line in found if not any(name in line for name in wrong)]


def _merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in change.items():
        both_nested = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both_nested else value
    return result


def _with_present_names(content: dict[str, Any]) -> dict[str, Any]:
    """Rename the settings of stages, before they are merged, as the profile they extend may have the other name."""
    stages = ("teacher_pretraining", "teacher_adaptation", "distillation", "finetuning")
    return content | {name: with_present_names(content[name]) for name in stages if isinstance(content.get(name), dict)}


def _read(name: str, extending: tuple[str, ...] = ()) -> dict[str, Any]:
    if name in extending:
        raise ProfileError(f"extends: expected a chain with an end, found a circle: {' -> '.join([*extending, name])}")
    path = PROFILE_FOLDER / f"{name}.yaml"
    if not path.is_file():
        path = Path(name).expanduser()
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILE_FOLDER.glob("*.yaml")))
        raise ProfileError(f"profile: expected one of {known} or the path of a YAML file, found {name!r}")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ProfileError(f"{path}: expected YAML, found: {error}; correct the file") from error
    if not isinstance(content, dict):
        raise ProfileError(f"{path}: expected a mapping of settings, found {type(content).__name__}")
    base, content = content.pop("extends", None), _with_present_names(content)
    return _merged(_read(str(base), (*extending, name)), content) if base else content


def load_profile(name: str, changes: dict[str, Any] | None = None) -> Profile:
    """Read a profile by name (`sample`, `real`, `paper`) or path; a file may say `extends: NAME`.

    Args:
        name: Profile name, or path of a YAML file.
        changes: Nested settings that replace the file's, for example from the environment.

    Raises:
        ProfileError: If settings are wrong; the message lists each one with its name, the expected and the found value.
    """
    content = _merged(_read(name), _with_present_names(changes or {}))
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in item['loc']) or 'profile'}: {item['msg']} (found {item['input']!r})"
            if item["loc"]
            else str(item["msg"])
            for item in error.errors()
        ]
        if any(item["loc"] for item in error.errors()):
            lines += _contradictions_beside_errors(content)
        raise ProfileError(f"profile {name!r} has {len(lines)} problem(s):\n  " + "\n  ".join(lines)) from error
