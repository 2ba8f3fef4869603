"""The raw manifest: what is found, what is taken over, where data set and patient come from, what the counts say."""

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from storage.base.atomic import write_parquet
from storage.base.errors import StorageError
from storage.sources import npz_folder, npz_source, raw_manifest
from storage.sources.manifest_table import COLUMNS, counts_by_modality, manifest_fingerprint, rejected
from storage.sources.npz_folder import NpzFolder
from storage.sources.raw_manifest import ReadLimits
from storage.sources.raw_manifest import scan as scan_source
from storage.sources.source import SourceConfig

pytestmark = pytest.mark.timeout(120, method="thread")
"""A thread that waits for memory for ever is not woken by a signal."""

CONFIG = SourceConfig()
IMAGE = np.arange(20, dtype=np.uint8).reshape(4, 5)
VOLUME = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)


def save(root: Path, name: str, **arrays: Any) -> Path:
    path = root / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "npz"
    gts = np.where(IMAGE > 9, 2, 0)
    save(folder, "US/BUSI/case_1", imgs=IMAGE, gts=gts)
    save(folder, "US/2DBox_US_2", imgs=IMAGE, boxes=np.array([[0, 0, 1, 1]]))
    save(folder, "CT/CT_Abdomen/part/CT_3", imgs=VOLUME, gts=VOLUME * 5, spacing=np.array([3.0, 1.0, 0.5]))
    save(folder, "MR_4", imgs=IMAGE)
    save(folder, "various/case_5", imgs=IMAGE)
    (folder / "CT" / "CT_6.npz").write_bytes(b"no archive")
    (folder / "notes.txt").write_text("not a case")
    return folder


def scan(
    root: Path,
    config: SourceConfig,
    groups_csv: Path | None = None,
    previous: pd.DataFrame | None = None,
    *,
    workers: int = 1,
    memory_bytes: int = 4 * 2**30,
    **more: Any,
) -> pd.DataFrame:
    """Return the table of a folder."""
    limits = ReadLimits(workers, memory_bytes)
    return scan_source(NpzFolder(root, config), groups_csv, previous, limits=limits, **more).table


def rows_of(table: pd.DataFrame) -> dict[str, Any]:
    return {str(row.case_id): row for row in table.itertuples()}


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that fills with the case ids whose files are opened from now on."""
    names: list[str] = []
    original = npz_source.read_case

    def recorder(path: Path, name: str, *arguments: Any) -> Any:
        names.append(name)
        return original(path, name, *arguments)

    monkeypatch.setattr(npz_folder, "read_case", recorder)
    return names


class TestScan:
    def test_rows(self, root: Path) -> None:
        table = scan(root, CONFIG)
        assert list(table.columns) == list(COLUMNS)
        assert table["case_id"].tolist() == sorted(table["case_id"])
        rows = rows_of(table)
        assert set(rows) == {
            "US/BUSI/case_1", "US/2DBox_US_2", "CT/CT_Abdomen/part/CT_3", "MR_4", "various/case_5", "CT/CT_6",
        }  # fmt: skip
        volume = rows["CT/CT_Abdomen/part/CT_3"]
        assert (volume.is_3d, volume.depth, volume.height, volume.width, volume.channels) == (True, 3, 4, 5, 1)
        assert (volume.spacing_z, volume.spacing_y, volume.spacing_x) == (3.0, 1.0, 0.5)
        assert (volume.has_gts, volume.gt_dtype, volume.has_boxes) == (True, "uint8", False)
        image = rows["US/2DBox_US_2"]
        assert (image.has_gts, image.gt_dtype, image.has_boxes, image.n_labels) == (False, "", True, 0)
        assert np.isnan(image.spacing_z)
        assert image.n_bytes == (root / "US/2DBox_US_2.npz").stat().st_size

    def test_labels_are_counted_not_bounded(self, root: Path) -> None:
        assert rows_of(scan(root, CONFIG))["US/BUSI/case_1"].n_labels == 1

    def test_modality_of_the_folder_and_none(self, root: Path) -> None:
        rows = rows_of(scan(root, CONFIG))
        assert (rows["US/BUSI/case_1"].modality, rows["US/BUSI/case_1"].status) == ("US", "accepted")
        unknown = rows["various/case_5"]
        assert (unknown.modality, unknown.status, unknown.reason_code) == ("", "rejected", "no_modality")
        assert unknown.dataset == ""

    def test_a_bad_file_is_a_row(self, root: Path) -> None:
        bad = rows_of(scan(root, CONFIG))["CT/CT_6"]
        assert (bad.status, bad.reason_code, bad.content_hash, bad.depth) == ("rejected", "not_npz", "", 0)
        assert "no a" in bad.reason

    def test_default_data_sets_and_patients(self, root: Path) -> None:
        table = scan(root, CONFIG)
        data_sets = dict(zip(table["case_id"], table["dataset"], strict=True))
        assert data_sets["US/BUSI/case_1"] == "BUSI"
        assert data_sets["US/2DBox_US_2"] == "US"
        assert data_sets["CT/CT_Abdomen/part/CT_3"] == "CT_Abdomen/part"
        assert data_sets["MR_4"] == "MR"
        assert table["group"].tolist() == table["case_id"].tolist()

    def test_empty_folder(self, tmp_path: Path) -> None:
        table = scan(tmp_path, CONFIG)
        assert len(table) == 0
        assert {name: str(dtype) for name, dtype in table.dtypes.items()} == COLUMNS
        assert len(manifest_fingerprint(table)) == 64
        assert len(counts_by_modality(table)) == 0

    def test_all_unchanged_keeps_types(self, root: Path) -> None:
        first = scan(root, CONFIG)
        assert {name: str(dtype) for name, dtype in first.dtypes.items()} == COLUMNS
        pd.testing.assert_frame_equal(scan(root, CONFIG, previous=first), first)

    def test_absent_folder(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="expected a readable folder"):
            scan(tmp_path / "absent", CONFIG)

    def test_threads_and_batches_change_nothing(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = scan(root, CONFIG)
        monkeypatch.setattr(raw_manifest, "_BATCH", 2)
        pd.testing.assert_frame_equal(scan(root, CONFIG, workers=3), whole)

    def test_progress(self, root: Path) -> None:
        calls: list[tuple[int, int]] = []
        scan(root, CONFIG, progress=lambda done, total: calls.append((done, total)))
        assert calls == [(n, 6) for n in range(1, 7)]

    def test_links(self, root: Path) -> None:
        (root / "US" / "loop").symlink_to(root, target_is_directory=True)
        (root / "US" / "US_broken.npz").symlink_to(root / "absent.npz")
        (root / "US" / "US_linked.npz").symlink_to(root / "MR_4.npz")
        os.mkfifo(root / "US" / "US_pipe.npz")
        rows = rows_of(scan(root, CONFIG))
        assert len(rows) == 8
        assert rows["US/US_broken"].reason_code == "unreadable"
        assert rows["US/US_linked"].content_hash == rows["MR_4"].content_hash

    def test_a_name_that_is_not_utf8_is_a_row(self, root: Path, tmp_path: Path) -> None:
        with open(os.fsencode(root / "US") + b"/US_\xff.npz", "wb"):  # noqa: PTH123
            pass
        table = scan(root, CONFIG)
        row = rows_of(table)["US/US_\\udcff"]
        assert row.reason_code == "unreadable"
        assert "expected a name in UTF-8" in row.reason
        assert "rename" in row.reason
        write_parquet(tmp_path / "manifest.parquet", table)


class TestSkipped:
    """What is not taken is counted, with the reason; a folder or file that cannot be looked at costs itself alone."""

    def skipped(self, root: Path) -> dict[str, tuple[int, str]]:
        table = NpzFolder(root, CONFIG).list().skipped
        return {row["reason"]: (row["count"], row["examples"]) for row in table.to_dict("records")}

    def test_reasons_and_counts(self, root: Path) -> None:
        (root / "US" / "._2DBox_US_2.npz").write_bytes(b"\0\5\x16\7")
        (root / ".DS_Store").write_bytes(b"Bud1")
        (root / "US" / "image.PNG").touch()
        (root / "1.2.840.113").touch()
        os.mkfifo(root / "US" / "US_pipe.npz")
        (root / "US" / "US_round.npz").symlink_to(root / "US" / "US_round.npz")
        found = self.skipped(root)
        assert found == {
            "hidden file, as systems and editors leave them": (1, "US/._2DBox_US_2.npz"),
            "no npz file": (2, ".DS_Store, 1.2.840.113"),
            "no npz file: *.PNG": (1, "US/image.PNG"),
            "no npz file: *.txt": (1, "notes.txt"),
            "no ordinary file": (1, "US/US_pipe.npz"),
            "cannot be looked at: Too many levels of symbolic links": (1, "US/US_round.npz"),
        }
        assert len(scan(root, CONFIG)) == 6

    def test_hidden_folders_are_skipped_and_named_but_the_root_may_be_hidden(self, root: Path) -> None:
        for folder in (".Trash", "US/.snapshot", "US/..data", "@eaDir"):
            (root / folder / "below").mkdir(parents=True)
            shutil.copy(root / "MR_4.npz", root / folder / "MR_5.npz")
            shutil.copy(root / "MR_4.npz", root / folder / "below" / "MR_6.npz")
        hidden = root.rename(root.parent / ".hidden")
        reason = "hidden folder, as systems keep deleted or earlier files in"
        assert self.skipped(hidden)[reason] == (3, ".Trash/, US/..data/, US/.snapshot/")
        found = set(NpzFolder(hidden, CONFIG).list().files["case_id"])
        assert {name for name in found if "MR_5" in name or "MR_6" in name} == {"@eaDir/MR_5", "@eaDir/below/MR_6"}
        assert len(found) == 8

    @pytest.mark.parametrize("ending", [".NPZ", ".Npz", ".npZ"])
    def test_an_ending_in_upper_case_is_taken_and_read(self, root: Path, ending: str) -> None:
        (root / "MR_4.npz").rename(root / f"MR_4{ending}")
        rows = rows_of(scan(root, CONFIG))
        assert (len(rows), rows["MR_4"].status) == (6, "accepted")

    def test_files_that_differ_in_the_endings_case_are_one_case(self, root: Path) -> None:
        for ending, value in ((".NPZ", 1), (".nPZ", 2)):
            np.savez(root / "other", imgs=IMAGE + value)
            (root / "other.npz").rename(root / f"MR_4{ending}")
        reason = "its name differs from a file that is taken in the ending's case alone"
        assert self.skipped(root)[reason] == (2, "MR_4.NPZ, MR_4.nPZ")
        usual = rows_of(scan(root, CONFIG))["MR_4"].content_hash
        (root / "MR_4.npz").unlink()
        assert self.skipped(root)[reason][0] == 1
        assert rows_of(scan(root, CONFIG))["MR_4"].content_hash != usual

    def test_a_folder_that_cannot_be_listed_is_named_and_the_others_are_scanned(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (root / "US" / "lost+found").mkdir()
        scandir = os.scandir

        def refusing(path: str) -> Any:
            if path.endswith("lost+found"):
                raise PermissionError(13, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refusing)
        assert self.skipped(root)["folder that cannot be listed: Permission denied"] == (1, "US/lost+found/")
        assert len(scan(root, CONFIG)) == 6

    def test_files_that_vanish_while_they_are_listed_stop_nothing(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scandir = os.scandir

        class Vanishing:
            """A folder whose files are gone once they have been named."""

            def __init__(self, path: str) -> None:
                self._entries, self._path = scandir(path), path

            def __enter__(self) -> Any:
                found = list(self._entries)
                if self._path.endswith("BUSI"):
                    (root / "US" / "BUSI" / "case_1.npz").unlink()
                return found

            def __exit__(self, *_: object) -> None:
                self._entries.close()

        monkeypatch.setattr(os, "scandir", Vanishing)
        assert self.skipped(root)["cannot be looked at: No such file or directory"] == (1, "US/BUSI/case_1.npz")

    def test_a_modality_that_the_root_alone_states(self, root: Path) -> None:
        np.savez(root / "CT" / "amos_1.npz", imgs=VOLUME, gts=VOLUME)
        found = rows_of(scan(root / "CT", CONFIG))["amos_1"]
        assert (found.modality, found.status, found.is_3d) == ("CT", "accepted", True)


class TestTakingOver:
    def test_what_an_earlier_reader_accepted_is_taken_over_and_what_it_rejected_is_judged_again(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Boxes that are not used were a reason to reject a file before."""
        save(root, "US/flat", imgs=IMAGE, gts=IMAGE, boxes=np.zeros(4, int))
        now = scan(root, CONFIG)
        (earlier,) = NpzFolder(root, CONFIG).reading.accepted_alike
        before = now.assign(reader=earlier)
        before.loc[before["case_id"] == "US/flat", ["status", "reason_code"]] = ["rejected", "boxes_shape"]
        names = opened(monkeypatch)
        pd.testing.assert_frame_equal(scan(root, CONFIG, previous=before), now)
        assert set(names) == {"US/flat", "CT/CT_6"}

    def test_only_changed_files_are_opened(self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = scan(root, CONFIG)
        write_parquet(tmp_path / "scan.parquet", first)
        save(root, "MR_4", imgs=IMAGE + 1)
        save(root, "MR_7", imgs=IMAGE)
        (root / "US/2DBox_US_2.npz").unlink()
        names = opened(monkeypatch)
        second = scan(root, CONFIG, previous=pd.read_parquet(tmp_path / "scan.parquet"))
        assert sorted(names) == ["MR_4", "MR_7"]
        monkeypatch.undo()
        pd.testing.assert_frame_equal(second, scan(root, CONFIG))

    def test_same_size_and_mtime_but_other_bytes(self, root: Path) -> None:
        path = root / "MR_4.npz"
        np.savez(path, imgs=IMAGE)
        first, clocks = scan(root, CONFIG), path.stat()
        np.savez(path, imgs=IMAGE + 1)
        os.utime(path, ns=(clocks.st_atime_ns, clocks.st_mtime_ns))
        assert path.stat().st_size == clocks.st_size
        second = scan(root, CONFIG, previous=first)
        assert rows_of(first)["MR_4"].content_hash != rows_of(second)["MR_4"].content_hash

    def test_another_way_of_reading_opens_everything(self, root: Path) -> None:
        first = scan(root, CONFIG)
        second = scan(root, SourceConfig(spacing_order="xyz"), previous=first)
        assert rows_of(second)["CT/CT_Abdomen/part/CT_3"].spacing_x == 3.0

    def test_unreadable_files_are_tried_again(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = scan(root, CONFIG)
        first.loc[first["case_id"] == "MR_4", ["status", "reason_code"]] = ["rejected", "unreadable"]
        names = opened(monkeypatch)
        assert rows_of(scan(root, CONFIG, previous=first))["MR_4"].status == "accepted"
        assert names == ["MR_4"]

    def test_a_table_of_other_columns_is_not_used(self, root: Path) -> None:
        first = scan(root, CONFIG)
        pd.testing.assert_frame_equal(scan(root, CONFIG, previous=first.drop(columns="reader")), first)

    def test_checkpoints_make_a_killed_scan_cheaper(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(raw_manifest, "_BATCH", 2)
        monkeypatch.setattr(raw_manifest, "_CHECKPOINT_BATCHES", 1)
        saved: list[pd.DataFrame] = []

        def stop(done: int, _total: int) -> None:
            if done == 5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            scan(root, CONFIG, progress=stop, checkpoint=saved.append)
        assert [len(table) for table in saved] == [2, 4]
        names = opened(monkeypatch)
        resumed = scan(root, CONFIG, previous=saved[-1])
        assert len(names) <= 2
        monkeypatch.undo()
        pd.testing.assert_frame_equal(resumed, scan(root, CONFIG))


class TestPatientMap:
    HEAD = "file,dataset,group\n"

    def write(self, root: Path, text: str) -> Path:
        path = root.parent / "groups.csv"
        path.write_text(text)
        return path

    def test_rows_are_used(self, root: Path) -> None:
        path = self.write(root, self.HEAD + "MR_4.npz,LGG,patient 1\nUS/2DBox_US_2.npz,NA,patient 1\n")
        rows = rows_of(scan(root, CONFIG, path))
        assert (rows["MR_4"].dataset, rows["MR_4"].group) == ("LGG", "patient 1")
        assert (rows["US/2DBox_US_2"].dataset, rows["US/2DBox_US_2"].group) == ("NA", "patient 1")
        assert (rows["US/BUSI/case_1"].dataset, rows["US/BUSI/case_1"].group) == ("BUSI", "US/BUSI/case_1")

    def test_a_changed_map_opens_nothing(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = scan(root, CONFIG, self.write(root, self.HEAD + "MR_4.npz,LGG,patient 1\n"))
        names = opened(monkeypatch)
        second = scan(root, CONFIG, self.write(root, self.HEAD + "MR_4.npz,LGG,patient 2\n"), first)
        assert names == []
        assert rows_of(second)["MR_4"].group == "patient 2"

    def test_unknown_files_and_lone_files_are_reported(self, root: Path) -> None:
        path = self.write(root, self.HEAD + "absent.npz,A,B\nMR_4.npz,A,C\n")
        patients = scan_source(NpzFolder(root, CONFIG), path).patients
        assert patients is not None
        assert patients.without_file == ("absent.npz",)
        assert len(patients.without_row) == 5

    def test_all_problems_at_once(self, root: Path) -> None:
        text = self.HEAD + "MR_4.npz,A,B\nMR_4.npz,A,C\nUS/x.npz,,B\nUS/y.npz,A,\n ,A,B\n"
        with pytest.raises(StorageError) as caught:
            scan(root, CONFIG, self.write(root, text))
        message = str(caught.value)
        for problem in (
            "MR_4.npz: listed twice",
            "US/x.npz: empty dataset",
            "US/y.npz: empty group",
            "row 6: empty file",
        ):
            assert problem in message

    @pytest.mark.parametrize("text", ["file,group\nMR_4.npz,A\n", "", 'file,dataset,group\n"a,b\n'])
    def test_not_such_a_table(self, root: Path, text: str) -> None:
        with pytest.raises(StorageError, match=r"groups\.csv: expected"):
            scan(root, CONFIG, self.write(root, text))

    def test_absent_map(self, root: Path) -> None:
        with pytest.raises(StorageError, match="expected a CSV table"):
            scan(root, CONFIG, root / "absent.csv")


class TestFingerprint:
    def test_ignores_sizes_clocks_packing_and_order(self, root: Path) -> None:
        first = scan(root, CONFIG)
        np.savez(root / "MR_4.npz", imgs=IMAGE)
        os.utime(root / "US/BUSI/case_1.npz", (1, 1))
        second = scan(root, CONFIG)
        assert not first.equals(second)
        assert manifest_fingerprint(first) == manifest_fingerprint(second.iloc[::-1])

    @pytest.mark.parametrize(
        "column", ["content_hash", "modality", "dataset", "group", "status", "reason_code", "case_id"]
    )
    def test_covers(self, root: Path, column: str) -> None:
        table = scan(root, CONFIG)
        other = table.assign(**{column: [f"{table[column].iloc[0]}x", *table[column].iloc[1:]]})
        assert manifest_fingerprint(other) != manifest_fingerprint(table)


def test_rejected_and_counts(root: Path) -> None:
    table = scan(root, CONFIG)
    assert rejected(table)[["case_id", "reason_code"]].to_numpy().tolist() == [
        ["CT/CT_6", "not_npz"],
        ["various/case_5", "no_modality"],
    ]
    counts = counts_by_modality(table)
    assert counts["modality"].tolist() == ["CT", "MR", "US", "unknown"]
    numbers = counts.drop(columns=["modality", "n_bytes"]).to_numpy().tolist()
    # accepted, rejected, volumes, slices, labelled, groups
    assert numbers == [[1, 1, 1, 3, 1, 2], [1, 0, 0, 1, 0, 1], [2, 0, 0, 2, 1, 2], [0, 1, 0, 0, 0, 1]]
    assert counts["n_bytes"].sum() == table["n_bytes"].sum()


class TestMemory:
    @pytest.mark.parametrize(("cases_at_once", "most"), [(0.5, 1), (1.0, 1), (2.5, 2), (100.0, 4)])
    def test_files_read_at_once_keep_to_the_limit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cases_at_once: float, most: int
    ) -> None:
        """A case that alone is above the limit is read alone; readers wait for one another, up to the most allowed."""
        for number in range(12):
            np.savez(tmp_path / f"2DBox_US_{number}.npz", imgs=np.zeros((300, 300), np.uint8))
        reading, seen, lock, together = [0], [0], threading.Lock(), threading.Barrier(most)
        read_case = npz_folder.read_case

        def counted(*arguments: Any) -> Any:
            with lock:
                reading[0] += 1
                seen[0] = max(seen[0], reading[0])
            together.wait(60)
            case = read_case(*arguments)
            with lock:
                reading[0] -= 1
            return case

        monkeypatch.setattr(npz_folder, "read_case", counted)
        limit = int(cases_at_once * 2 * 300 * 300)
        table = scan(tmp_path, CONFIG, workers=4, memory_bytes=limit)
        assert (table["status"] == "accepted").sum() == 12
        assert seen[0] == most

    def test_a_bad_file_gives_its_room_back(self, tmp_path: Path) -> None:
        for number in range(6):
            np.savez(
                tmp_path / f"2DBox_US_{number}.npz", imgs=np.zeros((300, 300), np.float32 if number % 2 else np.uint8)
            )
        (tmp_path / "2DBox_US_9.npz").write_bytes(b"PK no archive" * 1000)
        table = scan(tmp_path, CONFIG, workers=3, memory_bytes=1000)
        assert table["status"].value_counts().to_dict() == {"accepted": 3, "rejected": 4}
