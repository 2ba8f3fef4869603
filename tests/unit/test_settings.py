"""Settings of a deployment, read from variables given to them."""

from pathlib import Path

import pytest

from pipelines.base.profile import ProfileError, load_profile
from pipelines.base.settings import read_settings


def test_defaults_are_the_sample_profile_below_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = read_settings({})
    home = tmp_path / ".medsam"
    assert settings.profile == load_profile("sample")
    assert (settings.home, settings.state, settings.data) == (home, home / "sample", home / "sample" / "raw")
    assert settings.executor == "multiprocess"
    assert settings.tracking_uri == f"sqlite:///{home / 'mlflow' / 'mlflow.db'}"
    assert settings.seed is settings.teacher is settings.groups_csv is None
    assert not home.exists(), "reading settings makes nothing"


def test_the_process_environment_is_read_where_none_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSAM_HOME", str(tmp_path / "there"))
    assert read_settings().home == tmp_path / "there"


def test_relative_paths_are_made_absolute_and_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    settings = read_settings(
        {"MEDSAM_PROFILE": "real", "MEDSAM_HOME": "state", "MEDSAM_DATA": "~/npz", "MEDSAM_TEACHER": "t.pth"}
    )
    assert settings.home == tmp_path / "state"
    assert settings.data == tmp_path / "user" / "npz"
    assert settings.teacher == str(tmp_path / "t.pth")


def test_one_seed_sets_plan_and_initialisation_but_not_the_split() -> None:
    settings = read_settings({"MEDSAM_SEED": "41"})
    assert (settings.profile.seeds.plan, settings.profile.seeds.init) == (41, 41)
    assert settings.profile.split == load_profile("sample").split


@pytest.mark.parametrize("seed", ["-1", "1.5", "x", "²"])
def test_a_seed_that_is_no_whole_number_is_refused(seed: str) -> None:
    with pytest.raises(ProfileError, match="MEDSAM_SEED: expected a whole number"):
        read_settings({"MEDSAM_SEED": seed})


def test_an_empty_variable_counts_as_unset(tmp_path: Path) -> None:
    names = ("MEDSAM_PROFILE", "MEDSAM_SEED", "MEDSAM_TEACHER", "MEDSAM_GROUPS", "MEDSAM_EXECUTOR", "MEDSAM_DATA")
    home = {"MEDSAM_HOME": str(tmp_path)}
    assert read_settings({**home, **dict.fromkeys(names, "")}) == read_settings(home)


@pytest.mark.parametrize("profile", ["real", "paper"])
def test_a_profile_that_reads_a_folder_needs_one(profile: str) -> None:
    with pytest.raises(ProfileError, match=r"MEDSAM_DATA.*expected its path, found nothing"):
        read_settings({"MEDSAM_PROFILE": profile})


@pytest.mark.parametrize("profile", ["real", "paper"])
def test_without_a_need_for_the_folder_it_is_missed_only_where_it_is_used(profile: str) -> None:
    settings = read_settings({"MEDSAM_PROFILE": profile}, needs_data=False)
    assert settings.given_data is None
    assert read_settings(settings.as_environment(), needs_data=False) == settings
    for use in ("data", "groups_csv"):
        with pytest.raises(ProfileError, match=r"MEDSAM_DATA.*expected its path, found nothing"):
            getattr(settings, use)


def test_other_problems_are_told_without_a_need_for_the_folder() -> None:
    with pytest.raises(ProfileError, match="MEDSAM_SEED") as caught:
        read_settings({"MEDSAM_PROFILE": "real", "MEDSAM_SEED": "x"}, needs_data=False)
    assert "MEDSAM_DATA" not in str(caught.value)


def test_synthetic_data_never_goes_to_the_users_folder(tmp_path: Path) -> None:
    settings = read_settings({"MEDSAM_HOME": str(tmp_path / "home"), "MEDSAM_DATA": str(tmp_path / "precious")})
    assert settings.data == tmp_path / "home" / "sample" / "raw"


@pytest.mark.parametrize("name", ["MEDSAM_WORKERS", "MEDSAM_MEMORY"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_counts_below_one_are_refused(name: str, value: str) -> None:
    with pytest.raises(ProfileError, match=f"{name}: expected a whole number from 1 on, found '{value}'"):
        read_settings({name: value})


@pytest.mark.parametrize(("value", "accepted"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_a_loss_is_accepted_only_when_told(value: str | None, accepted: bool) -> None:
    assert read_settings({} if value is None else {"MEDSAM_ACCEPT_LOSS": value}).accept_loss is accepted


def test_a_switch_is_0_or_1() -> None:
    with pytest.raises(ProfileError, match="MEDSAM_ACCEPT_LOSS: expected 0 or 1, found 'yes'"):
        read_settings({"MEDSAM_ACCEPT_LOSS": "yes"})


def test_stores_lie_with_the_state_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = {"MEDSAM_HOME": str(tmp_path / "home")}
    assert read_settings(home).stores == str(tmp_path / "home" / "sample" / "stores")
    assert read_settings({**home, "MEDSAM_STORES": "disk"}).stores == str(tmp_path / "disk")
    assert read_settings({**home, "MEDSAM_STORES": "s3://bucket/a"}).stores == "s3://bucket/a"


def test_an_unknown_executor_is_refused() -> None:
    with pytest.raises(ProfileError, match="MEDSAM_EXECUTOR: expected multiprocess or in_process, found 'dask'"):
        read_settings({"MEDSAM_EXECUTOR": "dask"})


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {
            "MEDSAM_PROFILE": "real",
            "MEDSAM_DATA": "npz",
            "MEDSAM_GROUPS": "map.csv",
            "MEDSAM_TEACHER": "teacher.safetensors",
            "MEDSAM_SEED": "3",
            "MEDSAM_EXECUTOR": "in_process",
            "MEDSAM_STORES": "s3://bucket/stores",
            "MEDSAM_WORKERS": "3",
            "MEDSAM_MEMORY": "1000000",
            "MEDSAM_ACCEPT_LOSS": "1",
            "MLFLOW_TRACKING_URI": "http://tracker:5000",
        },
    ],
)
def test_a_child_process_gets_these_same_settings_wherever_it_starts(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = read_settings({"MEDSAM_HOME": "state", **environment})
    monkeypatch.chdir(tmp_path)
    child = settings.as_environment()
    assert all(isinstance(value, str) for value in child.values())
    assert read_settings(child) == settings


def folder_settings(data: Path, **more: str) -> dict[str, str]:
    return {"MEDSAM_PROFILE": "real", "MEDSAM_DATA": str(data), **more}


def test_groups_are_the_given_map_else_in_the_data_else_beside_it(tmp_path: Path) -> None:
    data = tmp_path / "npz"
    data.mkdir()
    assert read_settings(folder_settings(data)).groups_csv is None
    beside = tmp_path / "groups.csv"
    beside.write_text("file,dataset,group\n")
    assert read_settings(folder_settings(data)).groups_csv == beside
    inside = data / "groups.csv"
    inside.write_text("file,dataset,group\n")
    assert read_settings(folder_settings(data)).groups_csv == inside
    given = tmp_path / "given.csv"
    assert read_settings(folder_settings(data, MEDSAM_GROUPS=str(given))).groups_csv == given


def test_every_problem_is_listed_at_once() -> None:
    wrong = {
        "MEDSAM_PROFILE": "real",
        "MEDSAM_SEED": "x",
        "MEDSAM_WORKERS": "many",
        "MEDSAM_EXECUTOR": "dask",
        "MEDSAM_ACCEPT_LOSS": "yes",
    }
    with pytest.raises(ProfileError) as error:
        read_settings(wrong)
    lines = str(error.value).splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == sorted({*wrong, "MEDSAM_DATA"} - {"MEDSAM_PROFILE"})


def test_an_unknown_variable_is_named_with_the_nearest_known_one(caplog: pytest.LogCaptureFixture) -> None:
    name = "MEDSAM_PROFLE"
    read_settings({name: "real", "MEDSAM_GOLDEN_DATA": "/data", "MEDSAM_LITE_MEDSAM": "a.pth", "OTHERS": "x"})
    read_settings({name: "real"})
    assert caplog.messages == [f"{name}: expected a variable of this project, found an unknown one; MEDSAM_PROFILE?"]


def test_variables_of_the_process_do_not_leak_into_given_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSAM_SEED", "7")
    monkeypatch.setenv("MEDSAM_WORKERS", "none")
    assert read_settings({"MEDSAM_HOME": str(tmp_path)}).seed is None
