"""Several folders of cases: their grammar, whom they hold, and who is never held out."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.base.data_folders import DataFolder, folders_text, maps_text, parse_folders, parse_maps
from pipelines.base.profile import ProfileError
from pipelines.base.settings import read_settings
from storage.base.errors import StorageError
from storage.releases.release import held_out_of_train_folders, make_release
from storage.releases.splits import SplitFractions, assign_splits, families, patients_to_draw
from storage.sources.folders import SAME_ID, Folder, Folders, require_apart
from storage.sources.losses import require_kept
from storage.sources.manifest_table import manifest_fingerprint, roles, with_places
from storage.sources.npz_folder import NpzFolder
from storage.sources.raw_manifest import Scan, scan
from storage.sources.source import SourceConfig
from tests.unit.test_release import index_of, index_row

names = st.text("abcXYZ019_-. =", min_size=1, max_size=12).filter(lambda name: name.strip(". ") != "")


@settings(deadline=None)
@given(st.lists(st.tuples(names, st.sampled_from(["split", "train"])), min_size=1, max_size=4))
def test_folders_are_written_as_they_are_read(given_folders: list[tuple[str, str]]) -> None:
    folders = tuple(DataFolder(Path("/data") / name, role) for name, role in given_folders)  # type: ignore[arg-type]
    if all(folder.role == "train" for folder in folders):
        folders = (DataFolder(Path("/data/first")), *folders)
    assert parse_folders(folders_text(folders)) == folders


def test_a_path_that_exists_is_one_folder_whatever_is_in_its_name(tmp_path: Path) -> None:
    strange = tmp_path / f"train=a{os.pathsep}b"
    strange.mkdir()
    assert parse_folders(str(strange)) == (DataFolder(strange),)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("/a::/b", "found an empty one"),
        ("train=/a", "expected a folder whose patients select and test, found train= alone"),
        ("/a:test=/b", "expected split=PATH or train=PATH, found 'test=/b'"),
        ("/a:train=", "found 'train='"),
    ],
)
def test_what_names_no_folders_is_refused(value: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_folders(value)


def test_maps_are_written_as_they_are_read() -> None:
    maps = (Path("/a.csv"), None, Path("/c.csv"))
    assert parse_maps(maps_text(maps)) == maps


def test_settings_hold_folders_and_maps_and_pass_them_on(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "groups.csv").write_text("file,dataset,group\n")
    environment = {
        "MEDSAM_HOME": str(tmp_path / "home"),
        "MEDSAM_PROFILE": "real",
        "MEDSAM_DATA": f"{tmp_path / 'a'}{os.pathsep}train={tmp_path / 'b'}",
    }
    found = read_settings(environment)
    assert found.folders == (DataFolder(tmp_path / "a"), DataFolder(tmp_path / "b", "train"))
    assert found.maps == (tmp_path / "a" / "groups.csv", None)
    assert read_settings(found.as_environment()) == found
    with pytest.raises(ProfileError, match="MEDSAM_GROUPS: expected one map for each of the 2 folders"):
        read_settings({**environment, "MEDSAM_GROUPS": "/x.csv"})


def test_a_folder_in_another_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(StorageError, match="expected folders beside each other"):
        require_apart([tmp_path / "a", tmp_path / "a" / "b"])


def _case(folder: Path, name: str, value: int) -> None:
    path = folder / "US" / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    imgs = np.full((8, 9), value, np.uint8)
    np.savez_compressed(path, imgs=imgs, gts=(np.indices((8, 9)).sum(0) % 2).astype(np.uint8))


def _map(folder: Path, rows: dict[str, tuple[str, str]]) -> Path:
    table = pd.DataFrame([(f"US/{name}.npz", *row) for name, row in rows.items()], columns=["file", "dataset", "group"])
    path = folder.with_suffix(".csv")
    table.to_csv(path, index=False)
    return path


@pytest.fixture
def two(tmp_path: Path) -> Folders:
    """A `split` folder of three cases and a `train` folder of three, one of whose ids is taken."""
    first, second = tmp_path / "first", tmp_path / "second"
    for number, name in enumerate("abc"):
        _case(first, name, number)
    for number, name in enumerate("cde", start=10):
        _case(second, name, number)
    own = {"a": ("X", "1"), "b": ("X", "2"), "c": ("X", "3")}
    other = {"c": ("X", "9"), "d": ("X", "1"), "e": ("Y", "2")}
    return Folders(
        [
            Folder(NpzFolder(second, SourceConfig()), "train", _map(second, other)),
            Folder(NpzFolder(first, SourceConfig()), "split", _map(first, own)),
        ],
        {},
    )


def _by_case(found: Scan) -> pd.DataFrame:
    return found.table.set_index("case_id")


def test_a_scan_knows_each_cases_folder_role_and_patient(two: Folders, tmp_path: Path) -> None:
    found = scan(two)
    table = _by_case(found)
    assert table["role"].to_dict() == {
        "US/a": "split", "US/b": "split", "US/c": "split", "US/d": "train", "US/e": "train",
    }  # fmt: skip
    assert table.loc["US/d", "folder"] == str(tmp_path / "second")
    # Patient 1 of data set X is in both folders; patient 2 of data set Y only shares a name with another.
    assert table.loc["US/d", "group"] == table.loc["US/a", "group"] == "1"
    assert table.loc["US/e", "group"] == "Y/2"
    assert found.skipped.loc[found.skipped["reason"] == SAME_ID, "examples"].tolist() == ["US/c"]
    assert found.folders is not None
    assert found.folders.set_index("role")[["found", "accepted", "skipped"]].to_dict("index") == {
        "split": {"found": 3, "accepted": 3, "skipped": 0},
        "train": {"found": 3, "accepted": 2, "skipped": 1},
    }
    again = scan(two, previous=found.table)
    pd.testing.assert_frame_equal(again.table, found.table)


def test_one_folder_is_what_it_was_before_there_were_roles(two: Folders, tmp_path: Path) -> None:
    table = scan(NpzFolder(tmp_path / "first", SourceConfig()), tmp_path / "first.csv").table
    assert set(table["role"]) == {"split"}
    assert set(table["folder"]) == {""}
    earlier = table.drop(columns=["folder", "role"])
    assert manifest_fingerprint(earlier) == manifest_fingerprint(table)
    assert manifest_fingerprint(table.assign(role="train")) != manifest_fingerprint(table)
    pd.testing.assert_frame_equal(with_places(earlier)[list(table.columns)], table, check_dtype=False)


def test_the_loss_of_one_folder_of_two_is_named(two: Folders, tmp_path: Path) -> None:
    _case(tmp_path / "second", "f", 20)
    before = scan(two).table
    for path in (tmp_path / "second" / "US").glob("*.npz"):
        path.unlink()
    with pytest.raises(StorageError, match="second"):
        require_kept(before, scan(two).table, two.place, "remedy")


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["split", "train"]), st.sampled_from(["train", "validation", "test"]))))
def test_cases_of_train_folders_that_are_held_out_are_found(rows: list[tuple[str, str]]) -> None:
    table = pd.DataFrame(rows, columns=["role", "split"]).astype("str")
    table["case_id"] = [f"US/{number}" for number in range(len(rows))]
    expected = [f"US/{number}" for number, row in enumerate(rows) if row[0] == "train" and row[1] != "train"]
    assert held_out_of_train_folders(table)["case_id"].tolist() == expected


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000))
def test_whatever_the_seed_no_case_of_a_train_folder_is_held_out_and_no_held_out_content_trains(seed: int) -> None:
    own = [index_row(f"US/own{n}", modality="US", group=f"P{n}", content_hash=f"h{n}", role="split") for n in range(8)]
    pool = [
        index_row(f"US/more{n}", modality="US", group=f"P{n}", content_hash=f"m{n}", role="train") for n in range(8)
    ]
    pool += [
        index_row(f"US/copy{n}", modality="US", group=f"C{n}", content_hash=f"h{n}", role="train") for n in range(8)
    ]
    pool += [
        index_row(f"US/new{n}", modality="US", group=f"Q{n}", content_hash=f"q{n}", role="train") for n in range(8)
    ]
    index = index_of(*own, *pool)
    divided = patients_to_draw(index[roles(index) == "split"])
    splits = assign_splits(divided, {}, SplitFractions(0.2, 0.3), seed, families(index))
    splits |= {patient: "train" for patient in index["group"] if patient not in splits}
    release = make_release(index, splits)
    held_out, train = (release.table[release.table["split"].ne("train") == held] for held in (True, False))
    assert set(held_out["role"]) == {"split"}
    assert not set(held_out["group"]) & set(train["group"])
    assert not set(held_out["content_hash"]) & set(train["content_hash"])
    assert {f"US/new{n}" for n in range(8)} <= set(train["case_id"])
    left_out = 2 * held_out["case_id"].nunique()
    assert len(release.left_out) == left_out
