"""Settings of one deployment: addresses, the profile, the executor. What belongs here: values from the environment.

Not here: any number that changes a result; those are in `pipelines.base.profile`.

| variable | meaning | default |
|---|---|---|
| MEDSAM_HOME | folder of all state | `.medsam` |
| MEDSAM_PROFILE | `sample`, `real`, `paper`, or the path of a YAML profile | `sample` |
| MEDSAM_DATA | folder of npz files, for runs of profiles whose source is a folder; or several, `/a:train=/b` | none |
| MEDSAM_GROUPS | CSV file,dataset,group: the patient of each file; or one a folder | `groups.csv` beside or in each |
| MEDSAM_STORES | path or `s3://bucket/prefix` of the slice stores | `stores` of the profile's state |
| MEDSAM_TEACHER | path or http(s) URL of the teacher's weights | the shipped stand-in |
| MEDSAM_TEACHER_SHA256 | expected SHA-256 of these weights | not checked, only recorded |
| MEDSAM_SEED | seed of both the plan and the initialisation | the profile's |
| MEDSAM_EXECUTOR | `multiprocess` or `in_process` | `multiprocess` |
| MEDSAM_WORKERS | processes and threads that read and write files in one step | the machine's cores |
| MEDSAM_MEMORY | bytes of cases that one step holds at once, in all its processes | 4294967296 |
| MEDSAM_ACCEPT_LOSS | `1`, for one run: go on although half or more of the cases, or all of a folder, are gone | `0` |
| MLFLOW_TRACKING_URI | MLflow server or store | sqlite file under MEDSAM_HOME |
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pipelines.base.data_folders import DataFolder, folders_text, maps_text, parse_folders, parse_maps
from pipelines.base.profile import InferenceSettings, Profile, ProfileError, load_profile
from pipelines.base.variables import Variables, read_variables


class InputError(ValueError):
    """The input of a command cannot be used; the message says what was expected, what was found and what to do."""


@dataclass(frozen=True)
class Settings:
    """The settings from the environment, checked, with absolute paths."""

    home: Path
    profile_name: str
    profile: Profile
    seed: str | None
    given_data: tuple[DataFolder, ...] | None
    given_groups: tuple[Path | None, ...] | None
    given_stores: str | None
    teacher: str | None
    teacher_sha256: str | None
    executor: str
    workers: int
    memory_bytes: int
    accept_loss: bool
    tracking_uri: str

    @property
    def state(self) -> Path:
        """Folder of this profile's stores, caches, checkpoints and reports."""
        return self.home / self.profile.name

    @property
    def data(self) -> Path:
        """Folder of the npz files; the first of several.

        Raises:
            ProfileError: If it was not set; only commands that are given a folder themselves start without it.
        """
        return self.folders[0].path

    @property
    def folders(self) -> tuple[DataFolder, ...]:
        """The folders of the npz files, in the order given.

        Raises:
            ProfileError: If none was set; only commands that are given a folder themselves start without it.
        """
        if self.given_data is None:
            raise ProfileError(_no_data(self.profile))
        return self.given_data

    @property
    def groups_csv(self) -> Path | None:
        """The map of files to patients, of the first folder."""
        return self.maps[0]

    @property
    def maps(self) -> tuple[Path | None, ...]:
        """The map of each folder: MEDSAM_GROUPS, else `groups.csv` in the folder or beside it, else None."""
        return self.given_groups or tuple(_found_map(folder.path) for folder in self.folders)

    @property
    def stores(self) -> str:
        """URL or path of the slice stores."""
        return self.given_stores or str(self.state / "stores")

    @property
    def mlflow_folder(self) -> Path:
        """Folder of MLflow's sqlite file and artefacts."""
        return self.home / "mlflow"

    def reading_spacing_as(self, order: Literal["zyx", "xyz"] | None) -> "Settings":
        """Return these settings with another axis order of `spacing` in the files; None keeps the profile's order."""
        if order is None:
            return self
        source = self.profile.source.model_copy(update={"spacing_order": order})
        return replace(self, profile=self.profile.model_copy(update={"source": source}))

    def predicting_by(self, **rules: str | None) -> "Settings":
        """Return these settings with other rules of prediction; None keeps the profile's."""
        changes = {name: rule for name, rule in rules.items() if rule is not None}
        inference = InferenceSettings(**{**self.profile.inference.model_dump(), **changes})
        return replace(self, profile=self.profile.model_copy(update={"inference": inference}))

    def as_environment(self) -> dict[str, str]:
        """Return the environment variables that give a child process the same settings."""
        variables = {
            "MEDSAM_HOME": str(self.home),
            "MEDSAM_PROFILE": self.profile_name,
            "MEDSAM_EXECUTOR": self.executor,
            "MEDSAM_WORKERS": str(self.workers),
            "MEDSAM_MEMORY": str(self.memory_bytes),
            "MEDSAM_ACCEPT_LOSS": str(int(self.accept_loss)),
            "MLFLOW_TRACKING_URI": self.tracking_uri,
        }
        optional = {
            "MEDSAM_DATA": self.given_data and folders_text(self.given_data),
            "MEDSAM_GROUPS": self.given_groups and maps_text(self.given_groups),
            "MEDSAM_STORES": self.given_stores,
            "MEDSAM_TEACHER": self.teacher,
            "MEDSAM_TEACHER_SHA256": self.teacher_sha256,
            "MEDSAM_SEED": self.seed,
        }
        return variables | {name: str(value) for name, value in optional.items() if value is not None}


def _sqlite_url(file: Path) -> str:
    """Return the URL of a database file; characters that would end or change its path are encoded."""
    return f"sqlite:///{str(file).replace('%', '%25').replace('?', '%3F')}"


def _found_map(folder: Path) -> Path | None:
    candidates = (folder / "groups.csv", folder.parent / "groups.csv")
    return next((path for path in candidates if path.is_file()), None)


def _other_count(folders: tuple[DataFolder, ...] | None, maps: tuple[Path | None, ...] | None) -> list[str]:
    if folders is None or maps is None or len(folders) == len(maps):
        return []
    return [
        f"MEDSAM_GROUPS: expected one map for each of the {len(folders)} folders of MEDSAM_DATA, in order, found "
        f"{len(maps)}; separate them by {os.pathsep!r}, and leave an entry empty for a folder without a map"
    ]


def _no_data(profile: Profile) -> str:
    return f"MEDSAM_DATA: profile {profile.name!r} reads a folder of npz files; expected its path, found nothing set"


def _profile_changes(seed: str | None) -> dict[str, dict[str, int]]:
    return {} if seed is None else {"seeds": {"plan": int(seed), "init": int(seed)}}


def _profile(variables: Variables, problems: list[str]) -> Profile | None:
    try:
        return load_profile(variables.profile, _profile_changes(variables.seed))
    except ProfileError as error:
        problems.append(str(error))
        return None


def read_settings(environment: Mapping[str, str] | None = None, *, needs_data: bool = True) -> Settings:
    """Read the settings from the environment.

    Args:
        environment: Variables; None: those of the process.
        needs_data: Whether a profile that reads a folder must be given one now.

    Raises:
        ProfileError: If the profile or variables are wrong; it lists every problem at once.
    """
    variables, problems = read_variables(os.environ if environment is None else environment)
    profile = _profile(variables, problems)
    home, data = variables.home, parse_folders(variables.data) if variables.data else None
    maps = parse_maps(variables.groups) if variables.groups else None
    if profile is not None and profile.source.kind == "synthetic":
        data = (DataFolder(home / profile.name / "raw"),)
    problems += _other_count(data, maps)
    unset = data is None and not any(line.startswith("MEDSAM_DATA:") for line in problems)
    if needs_data and unset and profile is not None:
        problems.append(_no_data(profile))
    if problems or profile is None:
        raise ProfileError("\n".join(problems))
    return Settings(
        home=home,
        profile_name=variables.profile,
        profile=profile,
        seed=variables.seed,
        given_data=data,
        given_groups=maps,
        given_stores=variables.stores,
        teacher=variables.teacher,
        teacher_sha256=variables.teacher_sha256,
        executor=variables.executor,
        workers=variables.workers,
        memory_bytes=variables.memory,
        accept_loss=variables.accept_loss,
        tracking_uri=variables.tracking_uri or _sqlite_url(home / "mlflow" / "mlflow.db"),
    )
