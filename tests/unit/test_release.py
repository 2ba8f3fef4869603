"""Releases: who goes into which split, what is frozen, what a fingerprint covers, what leaks."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from storage.errors import FingerprintMismatchError, IntegrityError, StorageError
from storage.release import (
    SPLITS,
    SplitFractions,
    assign_splits,
    labelled_groups,
    leakage,
    load_release,
    make_release,
    release_difference,
    save_release,
)

FRACTIONS = SplitFractions(validation=0.2, test=0.1)


def pairs(**groups: list[str]) -> pd.DataFrame:
    return pd.DataFrame([(modality, group) for modality, names in groups.items() for group in names]).set_axis(
        ["modality", "group"], axis=1
    )


def names(n: int, prefix: str = "g") -> list[str]:
    return [f"{prefix}{number}" for number in range(n)]


def sizes(splits: dict[str, str], groups: list[str]) -> tuple[int, int, int]:
    """Return the numbers of train, validation and test groups."""
    found = [splits[group] for group in groups]
    return found.count("train"), found.count("validation"), found.count("test")


def index_row(case_id: str, z: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "case_id": case_id,
        "z": z,
        "modality": case_id.split("_")[0],
        "dataset": "D",
        "group": case_id,
        "content_hash": f"hash of {case_id}",
        "part_id": "part-00000-aa",
        "img_offset": 1000 * z,
        "gt_array": "gts_u8",
        "gt_offset": 1000 * z,
        "labels": [1, 4],
        "areas": [3, 5],
        "boxes": [0, 0, 2, 2, 1, 1, 4, 4],
        "fg_px": 8,
        **changes,
    }


def index_of(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(list(rows))


@pytest.fixture
def index() -> pd.DataFrame:
    return index_of(
        index_row("US_2"),
        index_row("CT_1", 1, labels=[], areas=[], boxes=[], fg_px=0),
        index_row("CT_1", 0),
        index_row("MR_3", group="shared"),
        index_row("MR_4", group="shared"),
        index_row("US_9", gt_array="", gt_offset=-1),
    )


SPLIT_OF = {"US_2": "test", "CT_1": "train", "shared": "validation", "not used": "train"}


class TestAssignSplits:
    @pytest.mark.parametrize(
        ("n", "expected"),
        [(1, (1, 0, 0)), (2, (2, 0, 0)), (3, (1, 1, 1)), (4, (2, 1, 1)), (10, (7, 2, 1)), (100, (70, 20, 10))],
    )
    def test_sizes(self, n: int, expected: tuple[int, int, int]) -> None:
        splits = assign_splits(pairs(CT=names(n)), {}, FRACTIONS, seed=0)
        assert sizes(splits, names(n)) == expected

    @pytest.mark.parametrize("n", range(3, 40))
    def test_every_split_has_a_group_from_three_on(self, n: int) -> None:
        splits = assign_splits(pairs(CT=names(n)), {}, SplitFractions(0.49, 0.5), seed=0)
        assert min(sizes(splits, names(n))) >= 1

    def test_each_modality_has_its_own(self) -> None:
        groups = {modality: names(10, modality) for modality in ("US", "CT", "XRay")}
        splits = assign_splits(pairs(**groups), {}, FRACTIONS, seed=0)
        assert all(sizes(splits, members) == (7, 2, 1) for members in groups.values())

    def test_depends_on_names_and_seed_only(self) -> None:
        groups = pairs(CT=names(30), US=names(20, "u"))
        first = assign_splits(groups, {}, FRACTIONS, seed=1)
        assert assign_splits(pd.concat([groups, groups]).sample(frac=1, random_state=3), {}, FRACTIONS, seed=1) == first
        assert assign_splits(groups, {}, FRACTIONS, seed=2) != first

    def test_known_assignment(self) -> None:
        """SHA-256 of `7:g<n>`, by sha256sum, orders the groups g2 g1 g3 g0 g4."""
        splits = assign_splits(pairs(CT=names(5)), {}, SplitFractions(0.2, 0.2), seed=7)
        assert splits == {"g2": "test", "g1": "validation", "g3": "train", "g0": "train", "g4": "train"}

    def test_a_group_of_two_modalities_has_one_split(self) -> None:
        groups = pairs(MR=[*names(3), *names(5, "m")], CT=[*names(3), *names(2, "c")])
        splits = assign_splits(groups, {}, FRACTIONS, seed=0)
        assert len(splits) == 10
        # CT comes first: its shared groups count towards what MR still needs
        assert sizes(splits, [*names(3), *names(2, "c")]) == (3, 1, 1)
        n_train, n_validation, n_test = sizes(splits, [*names(3), *names(5, "m")])
        assert n_train + n_validation + n_test == 8
        assert n_validation >= 1
        assert n_test >= 1

    def test_shared_groups_fill_the_other_modalitys_splits(self) -> None:
        recorded = {"a": "test", "b": "validation"}
        splits = assign_splits(pairs(PET=["a", "b", "c", "d"]), recorded, FRACTIONS, seed=0)
        assert splits == {**recorded, "c": "train", "d": "train"}

    def test_recorded_never_changes_as_data_grows(self) -> None:
        recorded: dict[str, str] = {}
        for n in (1, 2, 3, 7, 30, 31, 200):
            grown = assign_splits(pairs(CT=names(n)), recorded, FRACTIONS, seed=0)
            assert recorded.items() <= grown.items()
            recorded = grown
        assert sizes(recorded, names(200)) == (140, 40, 20)

    def test_recorded_groups_that_are_gone_are_kept(self) -> None:
        splits = assign_splits(pairs(CT=names(3)), {"gone": "test"}, FRACTIONS, seed=0)
        assert splits["gone"] == "test"
        assert sizes(splits, names(3)) == (1, 1, 1)

    def test_another_seed_leaves_recorded_groups(self) -> None:
        first = assign_splits(pairs(CT=names(20)), {}, FRACTIONS, seed=0)
        assert assign_splits(pairs(CT=names(20)), first, FRACTIONS, seed=9) == first

    def test_unknown_names(self) -> None:
        with pytest.raises(StorageError, match="expected train, validation, test, found held-out"):
            assign_splits(pairs(CT=["a"]), {"a": "held-out"}, FRACTIONS, seed=0)
        with pytest.raises(StorageError, match="found SPECT"):
            assign_splits(pairs(SPECT=["a"]), {}, FRACTIONS, seed=0)

    @pytest.mark.parametrize(("validation", "test"), [(0.0, 0.1), (0.1, 0.0), (0.5, 0.5), (-0.1, 0.1), (0.1, 1.0)])
    def test_fractions(self, validation: float, test: float) -> None:
        with pytest.raises(ValueError, match="expected both above 0"):
            SplitFractions(validation, test)


class TestMakeRelease:
    def test_rows(self, index: pd.DataFrame) -> None:
        release = make_release(index, SPLIT_OF)
        listed = release.table[["modality", "case_id", "z", "split"]].to_numpy().tolist()
        assert listed == [
            ["CT", "CT_1", 0, "train"],
            ["CT", "CT_1", 1, "train"],
            ["MR", "MR_3", 0, "validation"],
            ["MR", "MR_4", 0, "validation"],
            ["US", "US_2", 0, "test"],
        ]
        assert release.splits == {"US_2": "test", "CT_1": "train", "shared": "validation"}

    def test_split(self, index: pd.DataFrame) -> None:
        rows = make_release(index, SPLIT_OF).split("validation")
        assert rows["case_id"].tolist() == ["MR_3", "MR_4"]
        assert rows.index.tolist() == [0, 1]
        with pytest.raises(StorageError, match="found dev"):
            make_release(index, SPLIT_OF).split("dev")

    def test_a_group_without_a_split(self, index: pd.DataFrame) -> None:
        with pytest.raises(StorageError, match="found none for \\['shared'\\]"):
            make_release(index, {"US_2": "test", "CT_1": "train"})

    def test_a_slice_twice(self, index: pd.DataFrame) -> None:
        with pytest.raises(StorageError, match="CT_1"):
            make_release(pd.concat([index, index.iloc[[1]]]), SPLIT_OF)

    def test_the_index_is_left_alone(self, index: pd.DataFrame) -> None:
        before = index.copy(deep=True)
        make_release(index, SPLIT_OF)
        pd.testing.assert_frame_equal(index, before)

    def test_labelled_groups(self, index: pd.DataFrame) -> None:
        found = labelled_groups(index).to_numpy().tolist()
        assert found == [["US", "US_2"], ["CT", "CT_1"], ["MR", "shared"]]


class TestFingerprints:
    def test_independent_of_order_addresses_and_unlabelled_cases(self, index: pd.DataFrame) -> None:
        moved = index.assign(part_id="part-00007-bb", img_offset=5, gt_offset=6)[index["gt_array"] != ""]
        other = make_release(moved.iloc[::-1], SPLIT_OF)
        assert other.fingerprints == make_release(index, SPLIT_OF).fingerprints

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("case_id", "US_3"),
            ("content_hash", "other"),
            ("z", 1),
            ("group", "CT_1"),
            ("modality", "XRay"),
            ("labels", [1, 5]),
            ("boxes", [0, 0, 2, 2, 1, 1, 4, 5]),
        ],
    )
    def test_covers(self, index: pd.DataFrame, column: str, value: Any) -> None:
        splits = {**SPLIT_OF, "CT_1": "test"}
        changed = index.astype(object)
        changed.at[0, column] = value
        old, new = make_release(index, splits), make_release(changed, splits)
        assert {name for name in old.fingerprints if old.fingerprints[name] != new.fingerprints[name]} == {
            "test",
            "all",
        }

    def test_labels_cut_elsewhere_differ(self) -> None:
        rows = [index_row("CT_1", 0, labels=[1, 2], boxes=[]), index_row("CT_1", 1, labels=[3], boxes=[])]
        other = [index_row("CT_1", 0, labels=[1], boxes=[]), index_row("CT_1", 1, labels=[2, 3], boxes=[])]
        first, second = (make_release(index_of(*table), SPLIT_OF) for table in (rows, other))
        assert first.fingerprints["train"] != second.fingerprints["train"]

    def test_a_moved_group_changes_both_splits(self, index: pd.DataFrame) -> None:
        old, new = make_release(index, SPLIT_OF), make_release(index, {**SPLIT_OF, "shared": "train"})
        assert old.fingerprints["test"] == new.fingerprints["test"]
        assert all(old.fingerprints[name] != new.fingerprints[name] for name in ("train", "validation", "all"))

    def test_an_empty_split_has_one(self, index: pd.DataFrame) -> None:
        release = make_release(index, dict.fromkeys(SPLIT_OF, "train"))
        assert release.fingerprints["test"] == release.fingerprints["validation"]
        assert set(release.fingerprints) == {*SPLITS, "all"}


class TestSaved:
    def test_round_trip(self, index: pd.DataFrame, tmp_path: Path) -> None:
        release = make_release(index, SPLIT_OF)
        save_release(tmp_path, release)
        loaded = load_release(tmp_path)
        assert loaded.fingerprints == release.fingerprints
        assert loaded.splits == release.splits
        pd.testing.assert_frame_equal(
            loaded.table.map(lambda value: value.tolist() if isinstance(value, np.ndarray) else value), release.table
        )
        assert make_release(loaded.table.drop(columns="split"), loaded.splits).fingerprints == release.fingerprints

    def test_no_release(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match=r"found no release\.parquet, splits\.json, release\.json"):
            load_release(tmp_path)

    def test_altered_table(self, index: pd.DataFrame, tmp_path: Path) -> None:
        save_release(tmp_path, make_release(index, SPLIT_OF))
        table = pd.read_parquet(tmp_path / "release.parquet")
        table.loc[0, "z"] = 7
        table.to_parquet(tmp_path / "release.parquet", index=False)
        with pytest.raises(FingerprintMismatchError, match=r"fingerprints\.train"):
            load_release(tmp_path)

    def test_altered_splits(self, index: pd.DataFrame, tmp_path: Path) -> None:
        save_release(tmp_path, make_release(index, SPLIT_OF))
        path = tmp_path / "splits.json"
        path.write_text(path.read_text().replace("validation", "test"))
        with pytest.raises(FingerprintMismatchError, match=r"splits\.shared"):
            load_release(tmp_path)

    def test_another_format(self, index: pd.DataFrame, tmp_path: Path) -> None:
        save_release(tmp_path, make_release(index, SPLIT_OF))
        path = tmp_path / "release.json"
        path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
        with pytest.raises(FingerprintMismatchError, match="format: expected 1, found 99"):
            load_release(tmp_path)

    def test_cut_table(self, index: pd.DataFrame, tmp_path: Path) -> None:
        save_release(tmp_path, make_release(index, SPLIT_OF))
        path = tmp_path / "release.parquet"
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(IntegrityError, match="expected a parquet table"):
            load_release(tmp_path)


def test_release_difference(index: pd.DataFrame) -> None:
    old = make_release(index, SPLIT_OF)
    changed = index[index["case_id"] != "US_2"].copy()
    changed.loc[changed["case_id"] == "CT_1", "content_hash"] = "other"
    new = make_release(pd.concat([changed, index_of(index_row("XRay_8"))]), {**SPLIT_OF, "XRay_8": "train"})
    assert release_difference(old, new) == {"added": ["XRay_8"], "removed": ["US_2"], "changed": ["CT_1"]}
    moved = make_release(index, {**SPLIT_OF, "shared": "test"})
    assert release_difference(old, moved) == {"added": [], "removed": [], "changed": ["MR_3", "MR_4"]}
    assert release_difference(old, old) == {"added": [], "removed": [], "changed": []}


class TestLeakage:
    def test_none(self, index: pd.DataFrame) -> None:
        assert leakage(make_release(index, SPLIT_OF)) == []

    def test_equal_content_in_two_splits(self, index: pd.DataFrame) -> None:
        index.loc[index["case_id"].isin(["US_2", "MR_3"]), "content_hash"] = "same"
        assert leakage(make_release(index, SPLIT_OF)) == ["content_hash same: MR_3 in validation, US_2 in test"]

    def test_equal_content_in_one_split_is_none(self, index: pd.DataFrame) -> None:
        index.loc[index["case_id"].isin(["MR_3", "MR_4"]), "content_hash"] = "same"
        assert leakage(make_release(index, SPLIT_OF)) == []

    def test_a_group_in_two_splits(self, index: pd.DataFrame) -> None:
        release = make_release(index, SPLIT_OF)
        release.table.loc[release.table["case_id"] == "MR_4", "split"] = "train"
        assert leakage(release) == ["group shared: MR_3 in validation, MR_4 in train"]
