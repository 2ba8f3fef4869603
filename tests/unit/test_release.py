"""Releases: who goes into which split, what is frozen, what a fingerprint covers, what leaks."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.base.asset_keys import recomputed
from storage.base.errors import FingerprintMismatchError, StorageError
from storage.releases.release import (
    duplicates,
    leakage,
    load_release,
    make_release,
    open_split,
    release_difference,
    save_release,
)
from storage.releases.splits import (
    SPLITS,
    SplitFractions,
    assign_splits,
    families,
    labelled_patients,
    patients_by_split,
    require_all_splits,
)

FRACTIONS = SplitFractions(validation=0.2, test=0.1)


def pairs(**patients: list[str]) -> pd.DataFrame:
    return pd.DataFrame([(modality, patient) for modality, names in patients.items() for patient in names]).set_axis(
        ["modality", "group"], axis=1
    )


def names(n: int, prefix: str = "g") -> list[str]:
    return [f"{prefix}{number}" for number in range(n)]


def sizes(splits: dict[str, str], patients: list[str]) -> tuple[int, int, int]:
    """Return the numbers of train, validation and test patients."""
    found = [splits[patient] for patient in patients]
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
    def test_every_split_has_a_patient_from_three_on(self, n: int) -> None:
        splits = assign_splits(pairs(CT=names(n)), {}, SplitFractions(0.49, 0.5), seed=0)
        assert min(sizes(splits, names(n))) >= 1

    def test_each_modality_has_its_own(self) -> None:
        patients = {modality: names(10, modality) for modality in ("US", "CT", "XRay")}
        splits = assign_splits(pairs(**patients), {}, FRACTIONS, seed=0)
        assert all(sizes(splits, members) == (7, 2, 1) for members in patients.values())

    def test_depends_on_names_and_seed_only(self) -> None:
        patients = pairs(CT=names(30), US=names(20, "u"))
        first = assign_splits(patients, {}, FRACTIONS, seed=1)
        assert (
            assign_splits(pd.concat([patients, patients]).sample(frac=1, random_state=3), {}, FRACTIONS, seed=1)
            == first
        )
        assert assign_splits(patients, {}, FRACTIONS, seed=2) != first

    def test_known_assignment(self) -> None:
        """SHA-256 of `7:g<n>`, by sha256sum, orders the patients g2 g1 g3 g0 g4."""
        splits = assign_splits(pairs(CT=names(5)), {}, SplitFractions(0.2, 0.2), seed=7)
        assert splits == {"g2": "test", "g1": "validation", "g3": "train", "g0": "train", "g4": "train"}

    def test_a_patient_of_two_modalities_has_one_split(self) -> None:
        patients = pairs(MR=[*names(3), *names(5, "m")], CT=[*names(3), *names(2, "c")])
        splits = assign_splits(patients, {}, FRACTIONS, seed=0)
        assert len(splits) == 10
        # CT comes first: its shared patients count towards what MR still needs
        assert sizes(splits, [*names(3), *names(2, "c")]) == (3, 1, 1)
        n_train, n_validation, n_test = sizes(splits, [*names(3), *names(5, "m")])
        assert n_train + n_validation + n_test == 8
        assert n_validation >= 1
        assert n_test >= 1

    def test_shared_patients_fill_the_other_modalitys_splits(self) -> None:
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

    def test_recorded_patients_that_are_gone_are_kept(self) -> None:
        splits = assign_splits(pairs(CT=names(3)), {"gone": "test"}, FRACTIONS, seed=0)
        assert splits["gone"] == "test"
        assert sizes(splits, names(3)) == (1, 1, 1)

    def test_another_seed_leaves_recorded_patients(self) -> None:
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


class TestEnoughPatients:
    def require(self, patients: pd.DataFrame, recorded: dict[str, str], tied: dict[str, str]) -> None:
        require_all_splits(patients, assign_splits(patients, recorded, FRACTIONS, 0, tied), tied)

    @pytest.mark.parametrize("patients", [{"CT": names(3)}, {"CT": names(3), "US": names(1, "u")}])
    def test_three_in_one_modality_are_enough(self, patients: dict[str, list[str]]) -> None:
        self.require(pairs(**patients), {}, {})

    @pytest.mark.parametrize(
        ("patients", "found"),
        [
            ({"CT": names(1)}, "1 in all (CT 1)"),
            ({"CT": names(2)}, "2 in all (CT 2)"),
            ({"CT": names(2), "US": names(2, "u"), "MR": names(1, "m")}, "5 in all (CT 2, MR 1, US 2)"),
            ({"CT": names(1), "US": names(1)}, "1 in all (CT 1, US 1)"),
        ],
    )
    def test_fewer_are_refused_with_the_numbers(self, patients: dict[str, list[str]], found: str) -> None:
        with pytest.raises(
            StorageError, match="one modality needs at least 3, found none for validation, test"
        ) as caught:
            self.require(pairs(**patients), {}, {})
        assert found in str(caught.value)

    def test_none_at_all(self) -> None:
        nothing = pairs(CT=["a"]).iloc[:0]
        with pytest.raises(StorageError, match=r"found none for train, validation, test: 0 in all \(none\)"):
            self.require(nothing, {}, {})

    def test_many_that_are_one(self) -> None:
        with pytest.raises(StorageError, match=r"9 in all .*1 when those that share identical cases count as one"):
            self.require(pairs(CT=names(9)), {}, dict.fromkeys(names(9), "g0"))

    def test_many_of_which_all_are_recorded_in_one_split(self) -> None:
        with pytest.raises(StorageError, match="found none for validation, test: 4 in all"):
            self.require(pairs(CT=names(4)), dict.fromkeys(names(4), "train"), {})

    def test_counts_of_patients(self) -> None:
        splits = {"a": "train", "b": "test", "c": "validation", "unused": "test"}
        table = patients_by_split(pairs(US=["a", "b", "a"], CT=["c"]), splits)
        assert table.to_dict("list") == {
            "modality": ["CT", "US"], "train": [0, 1], "validation": [1, 0], "test": [0, 1]
        }  # fmt: skip


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

    def test_a_patient_without_a_split(self, index: pd.DataFrame) -> None:
        with pytest.raises(StorageError, match="found none for \\['shared'\\]"):
            make_release(index, {"US_2": "test", "CT_1": "train"})

    def test_a_slice_twice(self, index: pd.DataFrame) -> None:
        with pytest.raises(StorageError, match="CT_1"):
            make_release(pd.concat([index, index.iloc[[1]]]), SPLIT_OF)

    def test_the_index_is_left_alone(self, index: pd.DataFrame) -> None:
        before = index.copy(deep=True)
        make_release(index, SPLIT_OF)
        pd.testing.assert_frame_equal(index, before)

    def test_labelled_patients(self, index: pd.DataFrame) -> None:
        found = labelled_patients(index).to_numpy().tolist()
        assert found == [["US", "US_2"], ["CT", "CT_1"], ["MR", "shared"]]


class TestDuplicates:
    """Content that several cases share is met in one split only, whatever was recorded before it was known."""

    def test_families_are_tied_through_each_other_and_unlabelled_cases_tie_nothing(self) -> None:
        rows = [("CT_1", "x"), ("CT_2", "x"), ("CT_3", "y"), ("MR_4", "z")]
        table = index_of(*[index_row(case_id, content_hash=content) for case_id, content in rows])
        third = index_row("CT_2b", group="CT_2", content_hash="y")
        unlabelled = index_row("US_9", content_hash="z", gt_array="")
        assert families(pd.concat([table, index_of(third, unlabelled)])) == {
            "CT_1": "CT_1",
            "CT_2": "CT_1",
            "CT_3": "CT_1",
        }

    def test_two_cases_of_one_patient_are_no_family(self) -> None:
        table = index_of(*[index_row(name, group="g", content_hash="x") for name in ("CT_1", "CT_2")])
        assert families(table) == {}

    @pytest.mark.parametrize("seed", range(5))
    def test_a_family_shares_its_split_also_across_modalities(self, seed: int) -> None:
        tied = {"g3": "a", "h1": "a", "g7": "b", "g8": "b"}
        patients = pairs(CT=names(12), MR=names(6, "h"))
        splits = assign_splits(patients, {}, SplitFractions(0.25, 0.25), seed, tied)
        assert splits["g3"] == splits["h1"]
        assert splits["g7"] == splits["g8"]
        assert set(splits) == {*names(12), *names(6, "h")}
        alone = assign_splits(patients, {}, SplitFractions(0.25, 0.25), seed)
        assert set(splits.values()) == set(alone.values())

    @pytest.mark.parametrize("held_out", ["test", "validation"])
    @pytest.mark.parametrize("seed", range(3))
    def test_a_held_out_patient_takes_its_family_with_it(self, held_out: str, seed: int) -> None:
        """Whoever of a family comes first decides, though alone the others would train."""
        patients, fractions = pairs(CT=names(12), MR=names(12, "h")), SplitFractions(0.25, 0.25)
        alone = assign_splits(patients, {}, fractions, seed)
        first = next(name for name in names(12) if alone[name] == held_out)
        others = [next(name for name in own if alone[name] == "train") for own in (names(12), names(12, "h"))]
        splits = assign_splits(patients, {}, fractions, seed, dict.fromkeys([first, *others], first))
        assert {splits[name] for name in [first, *others]} == {held_out}

    def test_a_new_patient_joins_the_most_held_out_of_its_family_and_nothing_recorded_moves(self) -> None:
        recorded = {"a": "train", "b": "validation", "c": "test"}
        tied = {"a": "a", "b": "a", "new": "a"}
        splits = assign_splits(pairs(CT=["a", "b", "c", "new"]), recorded, FRACTIONS, 0, tied)
        assert splits == {**recorded, "new": "validation"}

    def test_without_families_nothing_changes(self) -> None:
        patients = pairs(CT=names(30), PET=names(9, "p"))
        assert assign_splits(patients, {}, FRACTIONS, 4, {}) == assign_splits(patients, {}, FRACTIONS, 4)

    def test_content_recorded_in_two_splits_stays_in_the_more_held_out_one(self, index: pd.DataFrame) -> None:
        index.loc[index["case_id"].isin(["US_2", "MR_3", "CT_1"]), "content_hash"] = "same"
        release = make_release(index, SPLIT_OF)
        assert leakage(release) == []
        assert set(release.table["case_id"]) == {"US_2", "MR_4"}
        assert release.left_out.sort_values("case_id").to_numpy().tolist() == [
            ["CT_1", "train", "test"],
            ["MR_3", "validation", "test"],
        ]
        assert release.splits == {"US_2": "test", "shared": "validation"}

    def test_what_is_left_out_is_saved(self, index: pd.DataFrame, tmp_path: Path) -> None:
        index.loc[index["case_id"].isin(["US_2", "MR_3"]), "content_hash"] = "same"
        release = make_release(index, SPLIT_OF)
        save_release(tmp_path, release)
        pd.testing.assert_frame_equal(load_release(tmp_path).left_out, release.left_out, check_dtype=False)

    def test_duplicates_are_listed(self, index: pd.DataFrame) -> None:
        index.loc[index["case_id"].isin(["MR_3", "MR_4", "CT_1"]), "content_hash"] = "same"
        (found,) = duplicates(index).to_dict("records")
        assert (found["cases"], found["groups"]) == (3, 2)
        assert set(found["case_ids"].split(", ")) == {"MR_3", "MR_4", "CT_1"}


def test_what_moving_to_another_release_makes_anew() -> None:
    old = {"train": "a", "validation": "b", "test": "c"}
    assert recomputed(old, dict(old)) == []
    scores = recomputed(old, {**old, "test": "x"})
    assert any("evaluation_report" in line for line in scores)
    assert not any("student" in line for line in scores), "training stays as it is"
    assert any("student_finetuned" in line for line in recomputed(old, {**old, "train": "x"}))


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

    def test_a_moved_patient_changes_both_splits(self, index: pd.DataFrame) -> None:
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

    def test_columns_of_a_split_are_its_rows(self, index: pd.DataFrame, tmp_path: Path) -> None:
        release = make_release(index, SPLIT_OF)
        save_release(tmp_path, release)
        for name in SPLITS:
            columns, rows = open_split(tmp_path, name), release.split(name)
            found = columns.frame(["case_id", "z", "content_hash", "group"])
            assert found.to_numpy().tolist() == rows[list(found)].to_numpy().tolist()
            assert columns.lists("boxes")[1].tolist() == [value for boxes in rows["boxes"] for value in boxes]

    def test_altered_columns(self, index: pd.DataFrame, tmp_path: Path) -> None:
        save_release(tmp_path, make_release(index, SPLIT_OF))
        path = tmp_path / "train.arrow"
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(FingerprintMismatchError, match=r"sha256\.train\.arrow: expected"):
            open_split(tmp_path, "train")
        assert len(open_split(tmp_path, "test")) == len(load_release(tmp_path).split("test"))

    def test_no_columns(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match=r"found no train\.arrow, release\.json; freeze it again"):
            open_split(tmp_path, "train")

    def test_no_release(self, tmp_path: Path) -> None:
        with pytest.raises(
            StorageError, match=r"found no release\.parquet, splits\.json, left_out\.json, release\.json"
        ):
            load_release(tmp_path)

    def test_altered_table(self, index: pd.DataFrame, tmp_path: Path) -> None:
        save_release(tmp_path, make_release(index, SPLIT_OF))
        table = pd.read_parquet(tmp_path / "release.parquet")
        table.loc[0, "z"] = 7
        table.to_parquet(tmp_path / "release.parquet", index=False)
        with pytest.raises(FingerprintMismatchError, match=r"sha256\.release\.parquet: expected"):
            load_release(tmp_path)

    def test_altered_splits(self, index: pd.DataFrame, tmp_path: Path) -> None:
        save_release(tmp_path, make_release(index, SPLIT_OF))
        path = tmp_path / "splits.json"
        path.write_text(path.read_text().replace("validation", "test"))
        with pytest.raises(FingerprintMismatchError, match=r"sha256\.splits\.json: expected"):
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
        with pytest.raises(FingerprintMismatchError, match=r"sha256\.release\.parquet: expected"):
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
        release = make_release(index, SPLIT_OF)
        release.table.loc[release.table["case_id"].isin(["US_2", "MR_3"]), "content_hash"] = "same"
        assert leakage(release) == ["content same: MR_3 in validation, US_2 in test"]

    def test_equal_content_in_one_split_is_none(self, index: pd.DataFrame) -> None:
        index.loc[index["case_id"].isin(["MR_3", "MR_4"]), "content_hash"] = "same"
        assert leakage(make_release(index, SPLIT_OF)) == []

    def test_a_patient_in_two_splits(self, index: pd.DataFrame) -> None:
        release = make_release(index, SPLIT_OF)
        release.table.loc[release.table["case_id"] == "MR_4", "split"] = "train"
        assert leakage(release) == ["patient shared: MR_3 in validation, MR_4 in train"]
