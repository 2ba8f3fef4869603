"""Environment variables, each read and validated by its type. What belongs here: one field for each variable.

Not here: settings that depend on several variables (`pipelines.base.settings`).
"""

import difflib
import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from pipelines.base.data_folders import folders_text, parse_folders

logger = logging.getLogger(__name__)

_ELSEWHERE = (
    "MEDSAM_MLFLOW_PAGE",
    "MEDSAM_PARENT_PID",
    "MEDSAM_GOLDEN_DATA",
    "MEDSAM_LITE_MEDSAM",
    "MEDSAM_LITE_MEDSAM_SEGS",
)
"""Variables that other modules and the tests read themselves."""


def _absolute(value: object) -> object:
    return Path(value).expanduser().absolute() if isinstance(value, str) else value


def _place(value: object) -> object:
    """Return a URL unchanged, and a path as an absolute path."""
    return value if not isinstance(value, str) or "://" in value else str(_absolute(value))


def _folders(value: str) -> str:
    return folders_text(parse_folders(value))


def _seed(value: str) -> str:
    if not value.isdecimal():
        raise ValueError(f"expected a whole number from 0 on, found {value!r}")
    return value


def _count(value: object) -> object:
    if isinstance(value, str) and (not value.isdecimal() or int(value) < 1):
        raise ValueError(f"expected a whole number from 1 on, found {value!r}")
    return value


def _executor(value: str) -> str:
    if value not in {"multiprocess", "in_process"}:
        raise ValueError(f"expected multiprocess or in_process, found {value!r}")
    return value


def _switch(value: object) -> object:
    if isinstance(value, str) and value not in {"0", "1"}:
        raise ValueError(f"expected 0 or 1, found {value!r}")
    return value


_Folder = Annotated[Path, BeforeValidator(_absolute)]
_Folders = Annotated[str, BeforeValidator(_folders)]
_Place = Annotated[str, BeforeValidator(_place)]
_Count = Annotated[int, BeforeValidator(_count)]


class Variables(BaseSettings):
    """The variables of this project; an empty variable counts as unset."""

    model_config = SettingsConfigDict(case_sensitive=True, env_ignore_empty=True, extra="ignore", frozen=True)

    home: _Folder = Field(default_factory=lambda: Path(".medsam").absolute(), validation_alias="MEDSAM_HOME")
    profile: str = Field("sample", validation_alias="MEDSAM_PROFILE")
    data: _Folders | None = Field(None, validation_alias="MEDSAM_DATA")
    groups: str | None = Field(None, validation_alias="MEDSAM_GROUPS")
    stores: _Place | None = Field(None, validation_alias="MEDSAM_STORES")
    teacher: _Place | None = Field(None, validation_alias="MEDSAM_TEACHER")
    teacher_sha256: Annotated[str, BeforeValidator(str.lower)] | None = Field(
        None, validation_alias="MEDSAM_TEACHER_SHA256"
    )
    seed: Annotated[str, BeforeValidator(_seed)] | None = Field(None, validation_alias="MEDSAM_SEED")
    executor: Annotated[str, BeforeValidator(_executor)] = Field("multiprocess", validation_alias="MEDSAM_EXECUTOR")
    workers: _Count = Field(default_factory=lambda: os.cpu_count() or 1, validation_alias="MEDSAM_WORKERS")
    memory: _Count = Field(4 * 2**30, validation_alias="MEDSAM_MEMORY")
    accept_loss: Annotated[bool, BeforeValidator(_switch)] = Field(False, validation_alias="MEDSAM_ACCEPT_LOSS")
    tracking_uri: str | None = Field(None, validation_alias="MLFLOW_TRACKING_URI")


class _Given(EnvSettingsSource):
    """Variables from a caller, instead of those of the process."""

    def __init__(self, settings_class: type[BaseSettings], given: Mapping[str, str]) -> None:
        super().__init__(settings_class)
        self.env_vars = {name: value for name, value in given.items() if value}


def _read(given: Mapping[str, str]) -> Variables:
    class Given(Variables):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - named by the library
            env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (_Given(settings_cls, given),)

    return Given()


def read_variables(environment: Mapping[str, str]) -> tuple[Variables, list[str]]:
    """Read the variables of this project.

    Args:
        environment: All variables, with those of other programs.

    Returns:
        The variables, with the default for each wrong one, and a message for each wrong one.
    """
    known = {str(field.validation_alias) for field in Variables.model_fields.values()}
    given = {name: value for name, value in environment.items() if name in known}
    for name in sorted(environment):
        if name.startswith("MEDSAM_") and name not in known and name not in _ELSEWHERE:
            _warn_unknown(name)
    try:
        return _read(given), []
    except ValidationError as error:
        wrong = {str(item["loc"][0]): item["msg"].removeprefix("Value error, ") for item in error.errors()}
    right = {name: value for name, value in given.items() if name not in wrong}
    return _read(right), [f"{name}: {message}" for name, message in wrong.items()]


@cache
def _warn_unknown(name: str) -> None:
    """Warn of an unknown variable, once in each process."""
    known = [str(field.validation_alias) for field in Variables.model_fields.values()]
    near = [f"; {close}?" for close in difflib.get_close_matches(name, known, n=1)]
    logger.warning("%s: expected a variable of this project, found an unknown one%s", name, "".join(near))
