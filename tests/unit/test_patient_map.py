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


def test_a_map_that_leaves_most_rows_and_most_cases_alone_is_refused(tmp_path: Path) -> None:
    files = [f"US_{number}.npz" for number in range(9)]
    cases = tuple(f"US_{number}" for number in range(9))
    wrong = [f"patient_{number}.npz" for number in range(9)]
    with pytest.raises(
        StorageError, match=r"found 4 of 9 that do, for 9 files: 'patient_4\.npz' names none, and 'US_4'"
    ):
        read(tmp_path, *files[:4], *wrong[4:], cases=cases)


@pytest.mark.parametrize(("n_right", "n_wrong", "n_cases"), [(5, 4, 9), (2, 90, 3), (2, 0, 90)])
def test_a_map_that_fits_on_one_side_is_taken(tmp_path: Path, n_right: int, n_wrong: int, n_cases: int) -> None:
    files = [f"US_{number}.npz" for number in range(n_right)] + [f"p_{number}.npz" for number in range(n_wrong)]
    found = read(tmp_path, *files, cases=tuple(f"US_{number}" for number in range(n_cases)))
    assert (len(found.by_case), len(found.without_file), len(found.without_row)) == (
        n_right,
        n_wrong,
        n_cases - n_right,
    )


def test_patients_that_differ_in_blanks_alone_are_refused(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("file,dataset,group\nUS/a,s,p1\nd,s, p1 \nUS/b.c,s, p2\n")
    with pytest.raises(StorageError, match="group 'p1' and ' p1 ' differ in blanks alone") as caught:
        read_patient_map(tmp_path / "groups.csv", CASES, PLACE)
    assert "p2" not in str(caught.value)


def test_columns_of_other_names_are_told(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("file;dataset;group\nUS/a;s;p\n")
    with pytest.raises(StorageError, match=r"found \['file;dataset;group'\]"):
        read_patient_map(tmp_path / "groups.csv", CASES, PLACE)


def test_an_empty_source_says_nothing_of_its_map(tmp_path: Path) -> None:
    assert read(tmp_path, "d.npz", cases=()).without_file == ("d.npz",)
