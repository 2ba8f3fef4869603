"""Several folders as one source: ids, patients, splits, losses."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.base.settings import read_settings
from pipelines.base.workspace import Workspace
from pipelines.ingest import assets, store_care
from pipelines.ingest.scanning import scan_source
from storage.base.errors import StorageError
from storage.base.references import ArtefactRef
from storage.releases.release import Release, load_release
from storage.sources.folders import SAME_ID
from storage.sources.losses import LossError
from tests.unit.test_scanning import quiet, released, save

N_SPLIT = 10
N_TRAIN = 5

pytestmark = pytest.mark.timeout(120, method="thread")


def case(number: int) -> str:
    return f"US/2DBox_US_{number:02}"


def workspace(tmp_path: Path, *folders: str, **more: str) -> Workspace:
    """A workspace of some folders below `tmp_path`, such as `train=pool`."""
    data = os.pathsep.join(f"train={tmp_path / name[6:]}" if "=" in name else str(tmp_path / name) for name in folders)
    variables = {"MEDSAM_PROFILE": "real", "MEDSAM_HOME": str(tmp_path / "home"), "MEDSAM_DATA": data, **more}
    return Workspace(read_settings(variables))


@pytest.fixture
def both(tmp_path: Path) -> Workspace:
    """A workspace of ten US cases to be divided, and of five that only train."""
    for number in range(N_SPLIT):
        save(tmp_path / "own" / f"{case(number)}.npz", number)
    for number in range(20, 20 + N_TRAIN):
        save(tmp_path / "pool" / f"{case(number)}.npz", number)
    return workspace(tmp_path, "own", "train=pool")


def release(space: Workspace, reference: ArtefactRef) -> Release:
    return load_release(space.artefacts.get(reference).path)


def splits(frozen: Release) -> dict[str, str]:
    """Return case -> split."""
    cases = frozen.table.drop_duplicates("case_id")
    return dict(zip(cases["case_id"], cases["split"], strict=True))


def held_out(space: Workspace) -> str:
    """Return a case of the first folder that tests."""
    return next(name for name, split in splits(release(space, released(space).value)).items() if split == "test")


def write_map(folder: Path, rows: list[str]) -> None:
    (folder / "groups.csv").write_text("\n".join(["file,dataset,group", *rows, ""]))


class TestScan:
    def test_counts_are_told_by_folder_and_by_role(self, both: Workspace, tmp_path: Path) -> None:
        (tmp_path / "pool" / "US" / "2DBox_US_bad.npz").write_bytes(b"")
        (tmp_path / "own" / "readme.txt").write_text("")
        said: list[str] = []
        result = scan_source(both, said.append)
        assert result.notes["files"] == "17 files found: 15 accepted, 1 skipped, 1 rejected"
        table = result.notes["by folder"]
        assert isinstance(table, pd.DataFrame)
        assert table.to_numpy().tolist() == [
            [str(tmp_path / "own"), "split", 11, 10, 1, 0],
            [str(tmp_path / "pool"), "train", 6, 5, 0, 1],
        ]
        assert "accepted by role: split 10, train 5" in said
        assert any(line.startswith(f"skipped in {tmp_path / 'own'}, no npz file: *.txt: 1") for line in said)

    def test_one_folder_has_the_manifest_that_it_always_had(self, both: Workspace, tmp_path: Path) -> None:
        alone = scan_source(workspace(tmp_path, "own", MEDSAM_HOME=str(tmp_path / "one")), quiet)
        assert "by folder" not in alone.notes
        divided = workspace(tmp_path, "own", "pool", MEDSAM_HOME=str(tmp_path / "two"))
        whole = scan_source(divided, quiet)
        assert whole.fingerprint != scan_source(both, quiet).fingerprint
        shutil.copytree(tmp_path / "pool", tmp_path / "own", dirs_exist_ok=True)
        merged = workspace(tmp_path, "own", MEDSAM_HOME=str(tmp_path / "three"))
        assert scan_source(merged, quiet).fingerprint == whole.fingerprint

    def test_an_id_that_two_folders_have_is_the_divided_ones(self, both: Workspace, tmp_path: Path) -> None:
        save(tmp_path / "pool" / f"{case(0)}.npz", 99)
        for space in (both, workspace(tmp_path, "train=pool", "own")):
            result = scan_source(space, quiet)
            table = pd.read_parquet(space.scan_file).set_index("case_id")
            assert (len(table), table.loc[case(0), "role"]) == (15, "split")
            skipped = result.notes["skipped"]
            assert isinstance(skipped, pd.DataFrame)
            assert skipped[["reason", "examples", "folder"]].to_numpy().tolist() == [
                [SAME_ID, case(0), str(tmp_path / "pool")]
            ]

    def test_unchanged_files_are_not_read_again(self, both: Workspace) -> None:
        scan_source(both, quiet)
        said: list[str] = []
        scan_source(both, said.append)
        assert not any("scanned" in line for line in said)

    def test_a_manifest_of_an_earlier_version_is_taken_over(self, both: Workspace, tmp_path: Path) -> None:
        one = workspace(tmp_path, "own")
        fingerprint = scan_source(one, quiet).fingerprint
        table = pd.read_parquet(one.scan_file)
        table.drop(columns=["folder", "role"]).to_parquet(one.scan_file)
        said: list[str] = []
        assert scan_source(one, said.append).fingerprint == fingerprint
        assert not any("scanned" in line for line in said)
        scan_source(both, said.append)
        assert "scanned 5 of 5 files" in said

    @pytest.mark.parametrize("nested", ["own", "own/US"])
    def test_a_folder_in_another_is_refused(self, both: Workspace, tmp_path: Path, nested: str) -> None:
        assert both.settings.folders
        with pytest.raises(StorageError, match="expected folders beside each other"):
            scan_source(workspace(tmp_path, "own", f"train={nested}"), quiet)

    def test_a_folder_that_is_not_there_is_named(self, both: Workspace, tmp_path: Path) -> None:
        shutil.rmtree(tmp_path / "pool")
        with pytest.raises(FileNotFoundError, match=f"none at {tmp_path / 'pool'};.*no path may hold ':'"):
            scan_source(both, quiet)


class TestLosses:
    def test_a_folder_without_its_mount_is_named(self, both: Workspace, tmp_path: Path) -> None:
        scan_source(both, quiet)
        shutil.rmtree(tmp_path / "pool")
        (tmp_path / "pool").mkdir()
        with pytest.raises(LossError, match=f"hold none now: {tmp_path / 'pool'}/ \\(5 cases\\)"):
            scan_source(both, quiet)
        accepting = workspace(tmp_path, "own", "train=pool", MEDSAM_ACCEPT_LOSS="1")
        assert scan_source(accepting, quiet).notes["accepted"] == N_SPLIT

    def test_a_folder_that_is_no_longer_given_is_a_loss(self, both: Workspace, tmp_path: Path) -> None:
        scan_source(both, quiet)
        with pytest.raises(LossError, match=str(tmp_path / "pool")):
            scan_source(workspace(tmp_path, "own"), quiet)

    def test_a_folder_in_one_of_them_is_named_with_it(self, both: Workspace, tmp_path: Path) -> None:
        for number in range(30, 33):
            save(tmp_path / "pool" / "site" / f"2DBox_US_{number}.npz", number)
            save(tmp_path / "own" / "site" / f"2DBox_US_{number + 10}.npz", number + 10)
        scan_source(both, quiet)
        shutil.rmtree(tmp_path / "pool" / "site")
        with pytest.raises(LossError, match=f"{tmp_path / 'pool'}/site/ \\(3 cases\\)"):
            scan_source(both, quiet)

    def test_cases_that_move_to_another_folder_are_not_lost(self, both: Workspace, tmp_path: Path) -> None:
        scan_source(both, quiet)
        (tmp_path / "pool").rename(tmp_path / "more")
        moved = workspace(tmp_path, "own", "train=more")
        assert scan_source(moved, quiet).notes["accepted"] == N_SPLIT + N_TRAIN

    def test_a_second_folder_is_no_loss_of_the_first(self, both: Workspace, tmp_path: Path) -> None:
        scan_source(workspace(tmp_path, "own"), quiet)
        assert scan_source(both, quiet).notes["accepted"] == N_SPLIT + N_TRAIN


class TestRelease:
    def test_patients_of_a_train_folder_train_and_those_held_out_stay(self, both: Workspace, tmp_path: Path) -> None:
        alone = workspace(tmp_path, "own", MEDSAM_HOME=str(tmp_path / "alone"))
        before = released(alone).value.info["fingerprints"]
        result = released(both)
        found = splits(release(both, result.value))
        assert {found[case(number)] for number in range(20, 20 + N_TRAIN)} == {"train"}
        for split in ("validation", "test"):
            assert result.value.info["fingerprints"][split] == before[split]
        counts = result.notes["cases by role and split"]
        assert isinstance(counts, pd.DataFrame)
        assert counts[counts["role"] == "train"].to_numpy().tolist() == [["train", "train", N_TRAIN]]

    def test_roles_alone_decide(self, both: Workspace, tmp_path: Path) -> None:
        """Divided, patients of the same files come into validation and test."""
        divided = workspace(tmp_path, "pool", "train=own", MEDSAM_HOME=str(tmp_path / "other"))
        found = splits(release(divided, released(divided).value))
        assert {found[case(number)] for number in range(N_SPLIT)} == {"train"}
        assert {found[case(number)] for number in range(20, 20 + N_TRAIN)} == {"train", "validation", "test"}
        assert both.settings.data != divided.settings.data

    def test_a_copy_of_a_test_image_is_left_out(self, both: Workspace, tmp_path: Path) -> None:
        shutil.copy(tmp_path / "own" / f"{held_out(both)}.npz", tmp_path / "pool" / f"{case(30)}.npz")
        self.check_left_out(both, {case(30)})

    def test_a_copy_that_came_first_is_left_out_when_it_turns_out_to_be_one(
        self, both: Workspace, tmp_path: Path
    ) -> None:
        """Its patient is recorded in training by then."""
        tested = held_out(both)
        save(tmp_path / "pool" / f"{case(30)}.npz", 30)
        assert splits(release(both, released(both).value))[case(30)] == "train"
        shutil.copy(tmp_path / "own" / f"{tested}.npz", tmp_path / "pool" / f"{case(30)}.npz")
        frozen = release(both, released(both).value)
        assert frozen.left_out.to_numpy().tolist() == [[case(30), "train", "test"]]
        assert splits(frozen)[tested] == "test"

    def test_other_images_of_a_test_patient_are_left_out(self, both: Workspace, tmp_path: Path) -> None:
        tested = held_out(both)
        write_map(tmp_path / "own", [f"{case(n)}.npz,D,{case(n)}" for n in range(N_SPLIT)])
        write_map(tmp_path / "pool", [f"{case(20)}.npz,D,{tested}", *(f"{case(n)}.npz,D,p{n}" for n in range(21, 25))])
        self.check_left_out(both, {case(20)})

    def test_a_patient_of_another_data_set_is_another(self, both: Workspace, tmp_path: Path) -> None:
        tested = held_out(both)
        write_map(tmp_path / "own", [f"{case(n)}.npz,D,{case(n)}" for n in range(N_SPLIT)])
        write_map(tmp_path / "pool", [f"{case(20)}.npz,E,{tested}", *(f"{case(n)}.npz,E,p{n}" for n in range(21, 25))])
        frozen = release(both, released(both).value)
        assert splits(frozen)[case(20)] == "train"
        assert frozen.splits[f"E/{tested}"] == "train"

    def check_left_out(self, space: Workspace, expected: set[str]) -> None:
        recorded = space.splits.read() or {}
        result = released(space)
        frozen = release(space, result.value)
        assert dict(zip(frozen.left_out["case_id"], frozen.left_out["split"], strict=True)) == dict.fromkeys(
            expected, "test"
        )
        assert not expected & set(frozen.table["case_id"])
        told = result.notes["left out, for their folder only trains and their patient is held out"]
        assert isinstance(told, pd.DataFrame)
        assert set(told["case_id"]) == expected
        assert recorded.items() <= (space.splits.read() or {}).items()

    def test_a_folder_that_is_to_train_alone_from_now_on_leaves_the_test(self, both: Workspace, tmp_path: Path) -> None:
        divided = workspace(tmp_path, "own", "pool")
        before = splits(release(divided, released(divided).value))
        gone = {name for name, split in before.items() if split != "train" and int(name[-2:]) >= 20}
        frozen = release(both, released(both).value)
        assert set(frozen.left_out["case_id"]) == gone
        assert all(split == before[name] for name, split in splits(frozen).items())

    def test_the_check_refuses_a_pinned_release_that_tests_on_such_a_folder(
        self, both: Workspace, tmp_path: Path
    ) -> None:
        pool = workspace(tmp_path, "pool", "train=own")
        result = released(pool)
        assert assets.train_folders_only_train(result.value).passed
        profile = tmp_path / "pinned.yaml"
        profile.write_text(f"extends: real\nrelease: {result.fingerprint}\n")
        pinned = workspace(tmp_path, "own", "train=pool", MEDSAM_PROFILE=str(profile))
        answer = assets.train_folders_only_train(released(pinned).value)
        assert not answer.passed
        assert both.profile.name == pinned.profile.name

    def test_too_few_patients_to_divide_are_told(self, both: Workspace, tmp_path: Path) -> None:
        for number in range(2, N_SPLIT):
            (tmp_path / "own" / f"{case(number)}.npz").unlink()
        with pytest.raises(StorageError, match="found none for validation, test: 7 in all"):
            released(both)
        assert not both.splits.path.exists()


def test_damage_is_repaired_from_the_folder_that_holds_the_case(both: Workspace) -> None:
    released(both)
    for shard in (Path(both.settings.stores) / "US" / "imgs" / "c").glob("*"):
        shard.unlink()
    found = store_care.verify_and_repair(both, ["US"], quiet, repair=True)
    assert found
    assert all(damage.mended for damage in found)


def test_cases_of_any_folder_can_be_withdrawn(both: Workspace) -> None:
    released(both)
    store_care.erase_cases(both, [case(20)], quiet)
    table = pd.read_parquet(both.scan_file).set_index("case_id")
    assert table.loc[case(20), "reason_code"] == "withdrawn"
    assert np.count_nonzero(table["status"] == "accepted") == N_SPLIT + N_TRAIN - 1
