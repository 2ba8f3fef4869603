"""A scan that finds much less than the one before stops before anything is planned; what it found is told."""

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.base.results import TaskResult
from pipelines.base.settings import InputError, read_settings
from pipelines.base.values import StoreRef
from pipelines.base.workspace import Workspace
from pipelines.ingest import tasks as ingest
from pipelines.ingest.releases import freeze_release
from pipelines.ingest.scanning import scan_source
from storage.base.errors import StorageError
from storage.base.modalities import MODALITIES
from storage.base.references import ArtefactRef
from storage.sources.losses import LossError, emptied_folders, folders_told, losses

pytestmark = pytest.mark.timeout(120, method="thread")
"""A thread that waits for memory for ever is not woken by a signal."""


def save(path: Path, seed: int, **changes: object) -> None:
    """Write a labelled image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    arrays = {"imgs": rng.integers(0, 256, (20, 24), dtype=np.uint8), "gts": rng.integers(0, 2, (20, 24)), **changes}
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items() if array is not None})


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    """A workspace whose data are 4 CT and 4 US cases, not yet scanned; distillation draws none without labels."""
    for number in range(8):
        modality = "CT" if number < 4 else "US"
        save(tmp_path / "data" / modality / f"2DBox_{modality}_{number}.npz", number)
    environment = {"MEDSAM_HOME": "home", "MEDSAM_DATA": "data"}
    profile = tmp_path / "labelled.yaml"
    profile.write_text("extends: real\nsource: {unlabelled: false}\n")
    environment["MEDSAM_PROFILE"] = profile.name
    settings = read_settings({name: str(tmp_path / value) for name, value in environment.items()})
    return Workspace(settings)


def quiet(_text: str) -> None:
    """Say nothing."""


def released(space: Workspace) -> TaskResult[ArtefactRef]:
    """Ingest up to the release."""
    manifest = scan_source(space, quiet).value
    stores = []
    for modality in MODALITIES:
        made = [
            ingest.write_store_parts(space, modality, batch, quiet)
            for batch in ingest.plan_store(space, modality, manifest)
        ]
        stores.append(ingest.publish_store(space, modality, manifest, made, quiet).value)
    return freeze_release(space, ingest.make_index(space, manifest, stores).value, quiet)


def stored_us(space: Workspace, manifest: ArtefactRef) -> TaskResult[StoreRef]:
    """Store the US cases of a manifest."""
    batches = ingest.plan_store(space, "US", manifest)
    made = [ingest.write_store_parts(space, "US", batch, quiet) for batch in batches]
    return ingest.publish_store(space, "US", manifest, made, quiet)


def remove(space: Workspace, pattern: str) -> None:
    for path in space.settings.data.rglob(pattern):
        path.unlink()


class TestLoss:
    @pytest.mark.parametrize(
        ("pattern", "counts"),
        [
            ("*.npz", "CT 4, of which 4 gone and 0 rejected now, US 4, of which 4 gone"),
            ("*_US_*.npz", "US 4, of which 4 gone"),
            ("*_US_[45].npz", "US 4, of which 2 gone"),
            ("*_[04567].npz", "CT 4, of which 1 gone"),
        ],
        ids=["all", "one modality", "half of one modality", "most"],
    )
    def test_stops_and_changes_nothing_until_it_is_accepted(self, space: Workspace, pattern: str, counts: str) -> None:
        scan_source(space, quiet)
        kept = space.scan_file.read_bytes()
        remove(space, pattern)
        for _ in range(2):
            with pytest.raises(LossError, match="found half or more of them lost") as caught:
                scan_source(space, quiet)
            told = str(caught.value)
            assert counts in told
            assert ("MEDSAM_ACCEPT_LOSS=1" in told) == (pattern != "*.npz"), "nothing can be made of no files"
            assert ("mount the folder or correct MEDSAM_DATA" in told) == (pattern == "*.npz")
            assert space.scan_file.read_bytes() == kept, "what the next scan is measured by"
        save(space.settings.data / "MR" / "2DBox_MR_9.npz", 9)  # without any case the loss cannot be accepted
        accepting = Workspace(replace(space.settings, accept_loss=True))
        result = scan_source(accepting, quiet)
        assert result.notes["found"] == len(list(space.settings.data.rglob("*.npz")))
        assert scan_source(accepting, quiet).made == 0

    def test_is_over_when_the_files_are_back(self, space: Workspace, tmp_path: Path) -> None:
        first = scan_source(space, quiet)
        space.settings.data.rename(tmp_path / "unmounted")
        space.settings.data.mkdir()
        with pytest.raises(LossError):
            scan_source(space, quiet)
        space.settings.data.rmdir()
        (tmp_path / "unmounted").rename(space.settings.data)
        again = scan_source(space, quiet)
        assert (again.fingerprint, again.made) == (first.fingerprint, 0)

    @pytest.mark.parametrize("content", [b"", b"<html>Sign in</html>"])
    def test_files_that_all_went_bad_are_lost_too(self, space: Workspace, content: bytes) -> None:
        scan_source(space, quiet)
        for path in (space.settings.data / "US").iterdir():
            path.write_bytes(content)
        with pytest.raises(LossError, match="US 4, of which 0 gone and 4 rejected now"):
            scan_source(space, quiet)

    def test_another_data_set_in_its_place_is_a_loss(self, space: Workspace) -> None:
        scan_source(space, quiet)
        shutil.rmtree(space.settings.data)
        for number in range(20):
            save(space.settings.data / "MR" / f"2DBox_MR_{number}.npz", number)
        with pytest.raises(LossError, match="CT 4, of which 4 gone"):
            scan_source(space, quiet)

    def test_less_than_half_may_go_and_anything_may_come(self, space: Workspace) -> None:
        scan_source(space, quiet)
        remove(space, "*_[04].npz")
        save(space.settings.data / "MR" / "2DBox_MR_9.npz", 9)
        assert scan_source(space, quiet).notes["found"] == 7

    def test_what_was_rejected_before_is_no_loss(self, space: Workspace) -> None:
        for number in range(9):
            (space.settings.data / f"CT_bad_{number}.npz").write_bytes(b"bad")
        scan_source(space, quiet)
        remove(space, "CT_bad_*")
        assert scan_source(space, quiet).notes["found"] == 8

    def test_withdrawn_cases_are_no_loss(self, space: Workspace) -> None:
        scan_source(space, quiet)
        space.withdrawn.path.write_text('["US/2DBox_US_4", "US/2DBox_US_5", "US/2DBox_US_6"]')
        remove(space, "*_US_4.npz")
        assert scan_source(space, quiet).notes["accepted"] == 5

    def test_a_scan_that_was_stopped_does_not_hide_it(self, space: Workspace) -> None:
        """What a stopped scan has read is kept apart, so that the next is still measured by the last whole one."""
        scan_source(space, quiet)
        partial = pd.read_parquet(space.scan_file).iloc[:1]
        partial.to_parquet(space.unfinished_scan_file)
        remove(space, "*_US_*.npz")
        with pytest.raises(LossError):
            scan_source(space, quiet)

    def test_counts(self) -> None:
        rows = [("a", "CT"), ("b", "CT"), ("c", "US"), ("d", "MR")]
        before = pd.DataFrame(rows, columns=["case_id", "modality"]).assign(status="accepted")
        before.loc[3, "status"] = "rejected"
        now = pd.DataFrame({"case_id": ["a", "c"], "status": ["rejected", "accepted"]})
        assert losses(before, now).to_numpy().tolist() == [["CT", 2, 1, 1], ["US", 1, 0, 0]]


class TestEmptiedFolder:
    """All files of one folder are gone, which are few of their modality and of all."""

    @pytest.fixture
    def sites(self, space: Workspace) -> Workspace:
        """Three US cases more, each in a folder of its patient below one site's; not yet scanned."""
        for number in range(10, 13):
            save(space.settings.data / "US" / "site" / f"patient_{number}" / f"2DBox_US_{number}.npz", number)
        return space

    def test_stops_and_names_it_until_it_is_accepted(self, sites: Workspace) -> None:
        scan_source(sites, quiet)
        kept = sites.scan_file.read_bytes()
        shutil.rmtree(sites.settings.data / "US" / "site")
        with pytest.raises(LossError) as caught:
            scan_source(sites, quiet)
        assert "found folders that held cases and hold none now: US/site/ (3 cases). Nothing" in str(caught.value)
        assert "MEDSAM_ACCEPT_LOSS=1" in str(caught.value)
        assert sites.scan_file.read_bytes() == kept
        accepting = Workspace(replace(sites.settings, accept_loss=True))
        assert scan_source(accepting, quiet).notes["accepted"] == 8
        assert scan_source(sites, quiet).made == 0

    @pytest.mark.parametrize("content", [None, b"<html>Sign in</html>"])
    def test_one_good_case_is_enough(self, sites: Workspace, content: bytes | None) -> None:
        scan_source(sites, quiet)
        for path in sorted((sites.settings.data / "US" / "site").rglob("*.npz"))[1:]:
            path.write_bytes(content) if content else path.unlink()
        assert scan_source(sites, quiet).notes["accepted"] == 9

    def test_files_that_all_went_bad_empty_it_too(self, sites: Workspace) -> None:
        scan_source(sites, quiet)
        for path in (sites.settings.data / "US" / "site").rglob("*.npz"):
            path.write_bytes(b"<html>Sign in</html>")
        with pytest.raises(LossError, match="US/site/"):
            scan_source(sites, quiet)

    def test_withdrawn_and_rejected_cases_do_not_count(self, sites: Workspace) -> None:
        folder = sites.settings.data / "US" / "site"
        for number in range(5):
            save(folder / f"2DBox_US_bad_{number}.npz", number, imgs=None)
        scan_source(sites, quiet)
        sites.withdrawn.write(["US/site/patient_10/2DBox_US_10"])
        shutil.rmtree(folder)
        assert scan_source(sites, quiet).notes["accepted"] == 8

    def test_withdrawn_files_that_are_left_do_not_fill_it(self, sites: Workspace) -> None:
        save(sites.settings.data / "US" / "site" / "2DBox_US_13.npz", 13)
        scan_source(sites, quiet)
        sites.withdrawn.write(["US/site/2DBox_US_13"])
        for number in range(10, 13):
            shutil.rmtree(sites.settings.data / "US" / "site" / f"patient_{number}")
        with pytest.raises(LossError, match=r"US/site/ \(3 cases\)"):
            scan_source(sites, quiet)

    def test_a_folder_that_was_renamed_is_no_loss(self, sites: Workspace) -> None:
        scan_source(sites, quiet)
        (sites.settings.data / "US" / "site").rename(sites.settings.data / "US" / "renamed")
        assert scan_source(sites, quiet).notes["accepted"] == 11

    def test_copies_that_were_there_before_are_no_move(self, sites: Workspace) -> None:
        for number in range(10, 13):
            save(sites.settings.data / "US" / f"2DBox_US_copy_{number}.npz", number)
        scan_source(sites, quiet)
        shutil.rmtree(sites.settings.data / "US" / "site")
        with pytest.raises(LossError, match="US/site/"):
            scan_source(sites, quiet)

    def test_the_outermost_folders_are_named_and_the_place_itself_is_none(self) -> None:
        before = ["a/b/1", "a/b/2", "a/c/3", "d/4", "d/5", "d/6", "e/f/7", "e/f/8", "e/f/9", "e/10", "g/1", "g/2"]
        assert emptied_folders(before, ["d/6", "e/10"]) == {"a": 3, "e/f": 3}
        assert emptied_folders(["1", "2", "3"], []) == {}
        many = emptied_folders([f"{folder:03}/{case}" for folder in range(30) for case in range(3)], [])
        assert folders_told(many).endswith("019/ (3 cases), and 10 folders more")

    def test_between_scan_and_store_stops_too(self, sites: Workspace) -> None:
        manifest = scan_source(sites, quiet).value
        shutil.rmtree(sites.settings.data / "US" / "site")
        with pytest.raises(StorageError, match=r"hold none now: US/site/ \(3 cases\)\. Mount or restore"):
            stored_us(sites, manifest)
        accepting = Workspace(replace(sites.settings, accept_loss=True))
        assert stored_us(accepting, manifest).notes["cases"] == 4


class TestNothingUsable:
    def test_an_empty_folder(self, space: Workspace) -> None:
        shutil.rmtree(space.settings.data)
        space.settings.data.mkdir()
        with pytest.raises(InputError, match="expected cases, found none that can be used: nothing") as caught:
            scan_source(space, quiet)
        assert "mount the folder or correct MEDSAM_DATA" in str(caught.value)

    @pytest.mark.parametrize("bad", [0, 2])
    def test_an_accepted_loss_does_not_empty_the_stores(self, space: Workspace, bad: int) -> None:
        scan_source(space, quiet)
        kept = space.scan_file.read_bytes()
        remove(space, "*.npz")
        for number in range(bad):
            (space.settings.data / f"US_bad_{number}.npz").write_bytes(b"")
        accepting = Workspace(replace(space.settings, accept_loss=True))
        with pytest.raises(InputError, match="expected cases, found none that can be used"):
            scan_source(accepting, quiet)
        assert space.scan_file.read_bytes() == kept

    def test_only_rejected_files_are_told_by_reason(self, space: Workspace) -> None:
        shutil.rmtree(space.settings.data)
        for number in range(3):
            save(space.settings.data / f"case_{number}.npz", number)
        (space.settings.data / "US_bad.npz").write_bytes(b"")
        (space.settings.data / "readme.txt").write_text("")
        with pytest.raises(InputError) as caught:
            scan_source(space, quiet)
        told = str(caught.value)
        assert "rejected, no_modality: 3; rejected, truncated: 1; skipped, no npz file: *.txt: 1" in told
        assert "\n  US_bad: expected" in told
        assert not space.scan_file.is_file()


class TestTooFewPatients:
    def test_are_refused_before_a_split_is_recorded(self, space: Workspace) -> None:
        remove(space, "*_[236].npz")
        remove(space, "*_7.npz")
        with pytest.raises(StorageError, match=r"4 in all \(CT 2, US 2\)"):
            released(space)
        assert not space.splits.path.exists()
        for number in range(4):
            save(space.settings.data / f"2DBox_US_{number}.npz", 50 + number)
        notes = released(space).notes
        counts = notes["patients by modality and split"].set_index("modality")
        assert counts.loc["US"].min() >= 1
        assert notes["modalities without a test patient, and so without a score of their own"] == "CT (2 patients)"

    def test_cases_without_labels_are_no_patients(self, space: Workspace) -> None:
        for path in space.settings.data.rglob("*.npz"):
            save(path, len(path.name), gts=None)
        with pytest.raises(StorageError, match=r"0 in all \(none\); 8 more have no gts in the file of their imgs"):
            released(space)

    def test_patients_whose_labels_are_blank_count_for_nothing(self, space: Workspace) -> None:
        """Four patients with objects and four without: the four fill every split, whatever the others are called."""
        blank = np.zeros((20, 24), np.uint8)
        for number in range(8):
            (space.settings.data / "CT" / f"2DBox_CT_{number}.npz").unlink(missing_ok=True)
        for number in range(4):
            save(space.settings.data / "US" / f"2DBox_US_blank_{number}.npz", 60 + number, gts=blank)
        notes = released(space).notes
        assert notes["patients by modality and split"].to_numpy().tolist() == [["US", 2, 1, 1]]
        assert "US/2DBox_US_blank_0" in str(notes["patients whose gts are blank, and so count for no split"])
        splits = pd.read_json(space.splits.path, typ="series")
        assert set(splits[[name for name in splits.index if "blank" in name]]) == {"train"}

    def test_blank_patients_alone_or_with_two_others_are_refused_before_a_split_is_recorded(
        self, space: Workspace
    ) -> None:
        for path in sorted(space.settings.data.rglob("*.npz"))[2:]:
            save(path, len(path.name), gts=np.zeros((20, 24), np.uint8))
        with pytest.raises(StorageError, match=r"2 in all \(CT 2\); 6 more have gts that are blank"):
            released(space)
        for path in space.settings.data.rglob("*.npz"):
            save(path, len(str(path)), gts=np.zeros((20, 24), np.uint8))
        with pytest.raises(StorageError, match=r"found none for train, validation, test: 0 in all \(none\); 8 more"):
            released(space)
        assert not space.splits.path.exists()

    def test_a_map_that_makes_all_one_patient(self, space: Workspace) -> None:
        rows = [f"{path.relative_to(space.settings.data)},d,p" for path in space.settings.data.rglob("*.npz")]
        (space.settings.data / "groups.csv").write_text("\n".join(["file,dataset,group", *rows]))
        with pytest.raises(StorageError, match=r"1 in all \(CT 1, US 1\).*correct the map of patients"):
            released(space)
        assert not space.splits.path.exists()


class TestMapOfPatients:
    def test_that_fits_no_file_stops_before_a_split_is_recorded(self, space: Workspace) -> None:
        (space.settings.data / "groups.csv").write_text("file,dataset,group\nelsewhere.npz,d,p\n")
        with pytest.raises(StorageError, match=r"found none: 1 rows, such as 'elsewhere\.npz'"):
            released(space)
        assert not space.scan_file.exists()
        assert not space.splits.path.exists()

    @pytest.mark.parametrize("prefix", ["", "./", "data/"])
    def test_with_the_data_folder_in_front_keeps_each_patient_in_one_split(self, space: Workspace, prefix: str) -> None:
        paths = sorted(space.settings.data.rglob("*.npz"))
        rows = [f"{prefix}{path.relative_to(space.settings.data)},d,p{n // 2}" for n, path in enumerate(paths)]
        for number in range(8, 12):
            save(space.settings.data / "US" / f"2DBox_US_{number}.npz", number)
        (space.settings.data / "groups.csv").write_text("\n".join(["file,dataset,group", *rows]))
        released(space)
        assert {"p0", "p1", "p2", "p3"} <= set(pd.read_json(space.splits.path, typ="series").index)

    def test_that_fits_in_part_is_told_on_the_page_and_in_the_log(self, space: Workspace) -> None:
        (space.settings.data / "groups.csv").write_text("file,dataset,group\nUS/2DBox_US_4.npz,d,p\nx.npz,d,q\n")
        said: list[str] = []
        notes = scan_source(space, said.append).notes
        assert notes["map of patients: rows that name a file"] == "1"
        assert notes["map of patients: rows that name no file"] == "1, such as x.npz"
        assert str(notes["map of patients: files without a row, each its own patient"]).startswith(
            "7, such as CT/2DBox_CT_0"
        )
        assert "map of patients: rows that name no file: 1, such as x.npz" in said


class TestTold:
    """What the log and the page of raw_manifest say of a scan beyond its counts by modality."""

    def test_everything_found_is_taken_skipped_or_rejected(self, space: Workspace) -> None:
        for name in ("._2DBox_US_0.npz", "notes.txt", ".DS_Store"):
            (space.settings.data / name).write_bytes(b"x")
        (space.settings.data / "US_bad.npz").write_bytes(b"")
        said: list[str] = []
        notes = scan_source(space, said.append).notes
        assert notes["files"] == "12 files found: 8 accepted, 3 skipped, 1 rejected"
        assert notes["files"] in said
        assert notes["warnings"] == "none"

    def test_spacing_in_the_other_order(self, space: Workspace) -> None:
        for number, spacing in enumerate(([0.7, 0.7, 5], [5, 0.7, 0.7])):
            arrays = {name: np.zeros((3, 20, 24), np.uint8) for name in ("imgs", "gts")}
            save(space.settings.data / "CT" / f"3DBox_CT_{number}.npz", 0, **arrays, spacing=spacing)
        said: list[str] = []
        notes = scan_source(space, said.append).notes
        assert "spacing of 1 of 2 volumes fits the order xyz better than zyx" in str(notes["warnings"])
        assert "CT/3DBox_CT_0" in str(notes["warnings"])
        assert "set source.spacing_order: xyz in the profile" in str(notes["warnings"])
        assert notes["warnings"] in said

    @pytest.mark.parametrize(
        ("imgs", "gts", "told"),
        [
            ("imgs/2DBox_MR_{}", "gts/2DBox_MR_{}", "imgs and gts of 3 cases lie in separate files of one name"),
            (
                "MR_{}_img",
                "MR_{}_gt",
                "3 files hold imgs and no gts, 3 hold gts and no imgs, such as MR_0_img and MR_0_gt",
            ),
        ],
    )
    def test_images_and_labels_in_two_files(self, space: Workspace, imgs: str, gts: str, told: str) -> None:
        for number in range(3):
            save(space.settings.data / f"{imgs.format(number)}.npz", number, gts=None)
            save(space.settings.data / f"{gts.format(number)}.npz", number, imgs=None)
        said: list[str] = []
        notes = scan_source(space, said.append).notes
        assert told in str(notes["warnings"])
        assert "put imgs and gts of a case into one npz file" in str(notes["warnings"])
        assert notes["warnings"] in said

    @pytest.mark.parametrize("ending", ["npz", "npy"])
    def test_folders_imgs_and_gts_alone_stop_the_scan_in_one_message(self, space: Workspace, ending: str) -> None:
        """The challenge's validation data, and what MedSAM's own preparation writes."""
        data = space.settings.data
        shutil.rmtree(data)
        for number in range(3):
            for name in ("imgs", "gts"):
                path = data / name / f"2DBox_MR_{number}.{ending}"
                save(path.with_suffix(".npz"), number, **{"gts" if name == "imgs" else "imgs": None})
                path.with_suffix(".npz").rename(path)
        told = {
            "npz": "expected cases with gts, found none: imgs and gts of 3 cases lie in separate files of one name",
            "npy": "6 arrays lie in npy files of their own",
        }
        with pytest.raises(InputError, match=f"{told[ending]}.*put imgs and gts of a case into one npz file"):
            scan_source(space, quiet)


class TestTornRecords:
    @pytest.mark.parametrize("name", ["scan_file", "unfinished_scan_file"])
    @pytest.mark.parametrize("content", ["", "cut", "other", "html"])
    def test_a_torn_scan_costs_reading_again(self, space: Workspace, name: str, content: str) -> None:
        first = scan_source(space, quiet)
        whole = space.scan_file.read_bytes()
        pd.DataFrame({"other": [1]}).to_parquet(space.settings.home / "other.parquet")
        other = (space.settings.home / "other.parquet").read_bytes()
        path: Path = getattr(space, name)
        path.write_bytes({"": b"", "cut": whole[: len(whole) // 2], "other": other, "html": b"<html>"}[content])
        again = scan_source(space, quiet)
        assert (again.fingerprint, again.made) == (first.fingerprint, 0)
        pd.testing.assert_frame_equal(pd.read_parquet(space.scan_file), pd.read_parquet(io.BytesIO(whole)))

    def test_a_torn_scan_does_not_hide_a_loss(self, space: Workspace) -> None:
        scan_source(space, quiet)
        space.scan_file.write_bytes(b"")
        remove(space, "*_US_*.npz")
        with pytest.raises(LossError):
            scan_source(space, quiet)

    def test_a_cut_withdrawal_takes_nobody_back_in(self, space: Workspace) -> None:
        scan_source(space, quiet)
        space.withdrawn.write(["US/2DBox_US_4"])
        whole = space.withdrawn.path.read_bytes()
        for length in (0, 1, len(whole) // 2, len(whole) - 2):
            space.withdrawn.path.write_bytes(whole[:length])
            assert scan_source(space, quiet).notes["accepted"] == 7


def vanish(path: Path) -> None:
    path.unlink()


def change(path: Path) -> None:
    save(path, 77)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


class TestLostBetweenScanAndStore:
    """A case whose file vanished or changed costs itself alone: the others of its part and modality are stored."""

    @pytest.mark.parametrize("spoil", [vanish, change, cut])
    def test_is_left_out_and_named(self, space: Workspace, spoil: Callable[[Path], None]) -> None:
        manifest = scan_source(space, quiet).value
        spoil(space.settings.data / "US" / "2DBox_US_5.npz")
        result = stored_us(space, manifest)
        table = result.notes["left out, for their files are no longer those of the scan"]
        assert isinstance(table, pd.DataFrame)
        assert table["case_id"].tolist() == ["US/2DBox_US_5"]
        assert table["reason"].str.len().gt(20).all()
        assert list(result.value.lost) == ["US/2DBox_US_5"]
        assert result.notes["cases"] == 3
        index = ingest.make_index(space, manifest, [result.value, *self.others(space, manifest)])
        rows = pd.read_parquet(space.artefacts.get(index.value).path / "slice_index.parquet")
        assert sorted(set(rows["case_id"])) == [f"CT/2DBox_CT_{n}" for n in range(4)] + [
            f"US/2DBox_US_{n}" for n in (4, 6, 7)
        ]

    def others(self, space: Workspace, manifest: ArtefactRef) -> list[StoreRef]:
        refs = []
        for modality in MODALITIES:
            if modality != "US":
                batches = ingest.plan_store(space, modality, manifest)
                made = [ingest.write_store_parts(space, modality, batch, quiet) for batch in batches]
                refs.append(ingest.publish_store(space, modality, manifest, made, quiet).value)
        return refs

    def test_the_next_scan_sees_it_and_keeps_the_store(self, space: Workspace) -> None:
        manifest = scan_source(space, quiet).value
        vanish(space.settings.data / "US" / "2DBox_US_5.npz")
        first = stored_us(space, manifest)
        again = stored_us(space, scan_source(space, quiet).value)
        assert (again.fingerprint, again.made, again.value.lost) == (first.fingerprint, 0, {})

    def test_a_changed_file_is_stored_after_the_next_scan(self, space: Workspace) -> None:
        manifest = scan_source(space, quiet).value
        change(space.settings.data / "US" / "2DBox_US_5.npz")
        stored_us(space, manifest)
        assert stored_us(space, scan_source(space, quiet).value).notes["cases"] == 4

    def test_half_of_a_modality_is_no_single_case(self, space: Workspace) -> None:
        manifest = scan_source(space, quiet).value
        remove(space, "*_US_[45].npz")
        with pytest.raises(StorageError, match="half or more of them lost since, 2 so far") as caught:
            stored_us(space, manifest)
        assert "US/2DBox_US_4: unreadable" in str(caught.value)
        accepting = Workspace(replace(space.settings, accept_loss=True))
        assert stored_us(accepting, manifest).notes["cases"] == 2

    def test_nothing_lost_says_none(self, space: Workspace) -> None:
        notes = stored_us(space, scan_source(space, quiet).value).notes
        assert notes["left out, for their files are no longer those of the scan"] == "none"
