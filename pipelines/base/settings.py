"""Settings of one deployment: addresses, the profile, the executor. What belongs here: what the environment says.

Not here: any number that changes a result; those are in `pipelines.base.profile`.

| variable | meaning | default |
|---|---|---|
| MEDSAM_HOME | folder of all state | `.medsam` |
| MEDSAM_PROFILE | `sample`, `real`, `paper`, or the path of a YAML profile | `sample` |
| MEDSAM_DATA | folder of npz files, for profiles whose source is a folder | none |
| MEDSAM_GROUPS | CSV file,dataset,group: which files share a patient | `groups.csv` beside or in the data |
| MEDSAM_STORES | path or `s3://bucket/prefix` of the slice stores | `stores` of the profile's state |
| MEDSAM_TEACHER | path or http(s) URL of the teacher's weights | the shipped stand-in |
| MEDSAM_TEACHER_SHA256 | what the SHA-256 of those weights must be | not checked, only recorded |
| MEDSAM_SEED | one number for both the plan's and the initialisation's seed | the profile's |
| MEDSAM_EXECUTOR | `multiprocess` or `in_process` | `multiprocess` |
| MEDSAM_WORKERS | processes and threads that read and write files in one step | the machine's cores |
| MEDSAM_MEMORY | bytes of cases that one step holds at once, in all its processes | 4294967296 |
| MEDSAM_ACCEPT_LOSS | `1`: go on though half or more of what the last scan found is gone; for one run | `0` |
| MLFLOW_TRACKING_URI | MLflow server or store | sqlite file under MEDSAM_HOME |
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipelines.base.profile import Profile, ProfileError, load_profile


class InputError(ValueError):
    """What a command was given cannot be used; the message says what was expected, found, and what to do."""


@dataclass(frozen=True)
class Settings:
    """What the environment says, checked and made absolute."""

    home: Path
    profile_name: str
    profile: Profile
    seed: str | None
    data: Path
    given_groups: Path | None
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
    def groups_csv(self) -> Path | None:
        """The map of files to patients: the given one, else `groups.csv` in the data or beside it, else None."""
        candidates = (self.data / "groups.csv", self.data.parent / "groups.csv")
        return self.given_groups or next((path for path in candidates if path.is_file()), None)

    @property
    def stores(self) -> str:
        """URL or path of the slice stores."""
        return self.given_stores or str(self.state / "stores")

    @property
    def mlflow_folder(self) -> Path:
        """Folder of MLflow's sqlite file and artefacts."""
        return self.home / "mlflow"

    def reading_spacing_as(self, order: Literal["zyx", "xyz"] | None) -> "Settings":
        """Return these settings with another axis order of the files' `spacing`; None leaves the profile's."""
        if order is None:
            return self
        source = self.profile.source.model_copy(update={"spacing_order": order})
        return replace(self, profile=self.profile.model_copy(update={"source": source}))

    def as_environment(self) -> dict[str, str]:
        """Return the variables that give a child process these same settings."""
        variables = {
            "MEDSAM_HOME": str(self.home),
            "MEDSAM_PROFILE": self.profile_name,
            "MEDSAM_DATA": str(self.data),
            "MEDSAM_EXECUTOR": self.executor,
            "MEDSAM_WORKERS": str(self.workers),
            "MEDSAM_MEMORY": str(self.memory_bytes),
            "MEDSAM_ACCEPT_LOSS": str(int(self.accept_loss)),
            "MLFLOW_TRACKING_URI": self.tracking_uri,
        }
        optional = {
            "MEDSAM_GROUPS": self.given_groups,
            "MEDSAM_STORES": self.given_stores,
            "MEDSAM_TEACHER": self.teacher,
            "MEDSAM_TEACHER_SHA256": self.teacher_sha256,
            "MEDSAM_SEED": self.seed,
        }
        return variables | {name: str(value) for name, value in optional.items() if value is not None}


def _path(environment: Mapping[str, str], name: str) -> Path | None:
    value = environment.get(name)
    return Path(value).expanduser().absolute() if value else None


def _url(environment: Mapping[str, str], name: str) -> str | None:
    """Return a URL as it is, a path made absolute."""
    value = environment.get(name)
    return value if value and "://" in value else str(Path(value).expanduser().absolute()) if value else None


def _sqlite_url(file: Path) -> str:
    """Return the URL of a database file, with those characters encoded that would change its path or end it."""
    return f"sqlite:///{str(file).replace('%', '%25').replace('?', '%3F')}"


def _count(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name)
    if not value:
        return default
    if not value.isdecimal() or int(value) < 1:
        raise ProfileError(f"{name}: expected a whole number from 1 on, found {value!r}")
    return int(value)


def _switch(environment: Mapping[str, str], name: str) -> bool:
    value = environment.get(name) or "0"
    if value not in {"0", "1"}:
        raise ProfileError(f"{name}: expected 0 or 1, found {value!r}")
    return value == "1"


def _profile_changes(environment: Mapping[str, str]) -> dict[str, Any]:
    seed = environment.get("MEDSAM_SEED")
    if not seed:
        return {}
    if not seed.isdecimal():
        raise ProfileError(f"MEDSAM_SEED: expected a whole number from 0 on, found {seed!r}")
    return {"seeds": {"plan": int(seed), "init": int(seed)}}


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from the environment.

    Args:
        environment: Variables; None means the process's own.

    Raises:
        ProfileError: If the profile or a variable is wrong.
    """
    env = os.environ if environment is None else environment
    home = _path(env, "MEDSAM_HOME") or Path(".medsam").absolute()
    name = env.get("MEDSAM_PROFILE") or "sample"
    profile = load_profile(name, _profile_changes(env))
    data = _path(env, "MEDSAM_DATA")
    if profile.source.kind == "synthetic":
        data = home / profile.name / "raw"
    if data is None:
        raise ProfileError(
            f"MEDSAM_DATA: profile {profile.name!r} reads a folder of npz files; expected its path, found nothing set"
        )
    executor = env.get("MEDSAM_EXECUTOR") or "multiprocess"
    if executor not in {"multiprocess", "in_process"}:
        raise ProfileError(f"MEDSAM_EXECUTOR: expected multiprocess or in_process, found {executor!r}")
    return Settings(
        home=home,
        profile_name=name,
        profile=profile,
        seed=env.get("MEDSAM_SEED") or None,
        data=data,
        given_groups=_path(env, "MEDSAM_GROUPS"),
        given_stores=_url(env, "MEDSAM_STORES"),
        teacher=_url(env, "MEDSAM_TEACHER"),
        teacher_sha256=(env.get("MEDSAM_TEACHER_SHA256") or "").lower() or None,
        executor=executor,
        workers=_count(env, "MEDSAM_WORKERS", os.cpu_count() or 1),
        memory_bytes=_count(env, "MEDSAM_MEMORY", 4 * 2**30),
        accept_loss=_switch(env, "MEDSAM_ACCEPT_LOSS"),
        tracking_uri=env.get("MLFLOW_TRACKING_URI") or _sqlite_url(home / "mlflow" / "mlflow.db"),
    )
