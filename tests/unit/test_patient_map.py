"""The map of patients: which case a row names however it is written, and when a map is refused."""

from pathlib import Path

import pytest

from storage.base.errors import StorageError
from storage.sources.patient_map import PatientMap, read_patient_map

CASES = ("US/a", "US/b.c", "CT/deep/a", "d")
PLACE = "/mnt/store/data"


def read(folder: Path, *files: str, cases: tuple[str, ...] = CASES, place: str = PLACE) -> PatientMap:
    """Read a map with a patient of its own for each row."""
    path = folder / "groups.csv"
    rows = [f'"{file}",set,patient {number}' for number, file in enumerate(files)]
    path.write_text("\n".join(["file,dataset,group", *rows]) + "\n")
    return read_patient_map(path, cases, place)


@pytest.mark.parametrize(
    "spelling",
    [
        "{}.npz",
        "{}",
        "{}.NPZ",
        "./{}.npz",
        "/{}.npz",
        " {}.npz ",
        "data/{}.npz",
        "./data/{}.npz",
        "/mnt/store/data/{}.npz",
        "another/folder/{}.npz",
        "C:\\\\users\\\\{}.npz",
        "{}.nii",
    ],
)
@pytest.mark.parametrize("slash", ["/", "\\"])
def test_a_row_names_its_case_however_it_is_written(tmp_path: Path, spelling: str, slash: str) -> None:
    files = [spelling.format(case).replace("/", slash) for case in CASES]
    found = read(tmp_path, *files)
    assert found.by_case["group"].to_dict() == {case: f"patient {number}" for number, case in enumerate(CASES)}
    assert (found.without_file, found.without_row) == ((), ())


def test_folders_in_front_of_some_rows_alone_are_left_out_where_the_source_lies_in_them(tmp_path: Path) -> None:
    found = read(tmp_path, "US/a.npz", "data/d.npz", "store/data/CT/deep/a.npz", "other/d.npz")
    assert found.by_case["group"].to_dict() == {"US/a": "patient 0", "d": "patient 1", "CT/deep/a": "patient 2"}
    assert found.without_file == ("other/d.npz",)
    assert found.without_row == ("US/b.c",)


def test_a_path_is_taken_as_written_before_folders_are_left_out(tmp_path: Path) -> None:
    found = read(tmp_path, "data/a.npz", "a.npz", cases=("data/a", "a"))
    assert found.by_case["group"].to_dict() == {"data/a": "patient 0", "a": "patient 1"}


def test_what_follows_a_dot_is_an_ending_only_if_it_looks_like_one(tmp_path: Path) -> None:
    found = read(tmp_path, "x.1_2", "y", cases=("x", "y"))
    assert found.by_case["group"].to_dict() == {"y": "patient 1"}
    assert found.without_file == ("x.1_2",)


def test_the_folder_of_another_case_is_not_left_out(tmp_path: Path) -> None:
    """`MR/a` is no file, and `a` of another folder is not meant by it."""
    assert set(read(tmp_path, "MR/a.npz", "d.npz").by_case.index) == {"d"}


def test_two_spellings_of_one_case_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="listed twice, as d") as caught:
        read(tmp_path, "d.npz", "US/a.npz", "./d.npz")
    assert "US/a" not in str(caught.value)


@pytest.mark.parametrize(
    "files",
    [(), ("e.npz",), ("US/e.npz", "CT/a.npz"), ("MR/d.npz", "MR/e.npz", "MR/f.npz")],
    ids=["no rows", "one", "another data set", "another folder of it"],
)
def test_a_map_of_which_no_row_fits_is_refused_with_an_example_of_both(tmp_path: Path, files: tuple[str, ...]) -> None:
    with pytest.raises(StorageError, match="expected rows that name files in /mnt/store/data, found none") as caught:
        read(tmp_path, *files)
    assert "'CT/deep/a'" in str(caught.value)
    assert all(file in str(caught.value) for file in files[:1])


def test_an_empty_source_says_nothing_of_its_map(tmp_path: Path) -> None:
    assert read(tmp_path, "d.npz", cases=()).without_file == ("d.npz",)
