"""Synthetic data: the npz contract, determinism, what a box is worth, visibility, files."""

import csv
import hashlib
import os
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from medsam_core.synthetic import MODALITIES, VOLUMETRIC, Case, make_case, sample_cases, write_sample
from medsam_core.synthetic.shapes import FAMILIES, crop_to_content, draw_shape, ellipse_score
from storage.base import modalities
from storage.sources import npz_source
from storage.sources.source import SourceConfig

SEED, CASES, VOLUMES = 7, 9, 2
COLOUR = {"Dermoscopy", "Endoscopy", "Fundus", "Microscopy"}

Cases = dict[str, list[Case]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample")
    assert write_sample(path, SEED, CASES, VOLUMES) == CASES * len(MODALITIES) + VOLUMES * len(VOLUMETRIC)
    return path


@pytest.fixture(scope="module")
def cases(folder: Path) -> Cases:
    found: Cases = {modality: [] for modality in MODALITIES}
    for path in sorted(folder.rglob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            assert {"imgs", "gts"} <= set(file.files) <= {"imgs", "gts", "spacing"}
            case = Case(imgs=file["imgs"], gts=file["gts"])
            if "spacing" in file.files:
                case["spacing"] = file["spacing"]
        found[path.relative_to(folder).parts[0]].append(case)
    return found


def objects(labels: npt.NDArray[np.generic]) -> Iterator[npt.NDArray[np.bool_]]:
    for label in np.unique(labels)[1:]:
        yield labels == label


def mean_ellipse_score(found: list[Case]) -> float:
    """Mean over cases of the mean over labels."""
    return float(np.mean([np.mean([ellipse_score(mask) for mask in objects(case["gts"])]) for case in found]))


def digest(case: Case) -> str:
    return hashlib.sha256(case["imgs"].tobytes() + case["gts"].tobytes()).hexdigest()


def test_modalities_are_those_of_the_challenge() -> None:
    assert MODALITIES == modalities.MODALITIES
    assert VOLUMETRIC == modalities.VOLUMETRIC


def test_the_ellipse_in_a_box_scores_what_geometry_says() -> None:
    rows, columns = np.indices((81, 121)) - np.array([40, 60]).reshape(2, 1, 1)
    disc = np.hypot(rows / 40.5, columns / 60.5) <= 1
    assert ellipse_score(disc) == 1
    assert ellipse_score(np.pad(disc, 9)) == 1  # only the tight box counts
    assert ellipse_score(np.ones((80, 120), bool)) == pytest.approx(2 * np.pi / (4 + np.pi), abs=1e-3)
    assert ellipse_score(np.ones((60, 60, 60), bool)) == pytest.approx(2 * np.pi / (6 + np.pi), abs=1e-3)
    with pytest.raises(ValueError, match="at least one true element"):
        ellipse_score(np.zeros((4, 4), bool))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(1, 30, 42), (7, 30, 26)])
def test_shapes_are_whole_and_fill_the_box_asked_for(family: str, size: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(1)
    for _ in range(8):
        shape = draw_shape(rng, family, size)
        assert shape.shape == crop_to_content(shape).shape
        assert ndimage.label(shape)[1] == 1
        assert np.all(np.array(shape.shape) <= size)
        assert np.all(np.array(shape.shape) >= 0.7 * np.array(size) - 1)


def test_slices_of_a_solid_change_smoothly() -> None:
    rng = np.random.default_rng(2)
    for _ in range(10):
        areas = draw_shape(rng, "wavy", (9, 40, 40)).sum(axis=(1, 2)).astype(float)
        assert np.abs(np.diff(areas)).max() < 0.75 * areas.max()
        assert areas[[0, -1]].max() < areas.max()


@pytest.mark.parametrize("modality", MODALITIES)
def test_cases_keep_the_npz_contract(cases: Cases, modality: str) -> None:
    volumes = 0
    for case in cases[modality]:
        image, labels = case["imgs"], case["gts"]
        assert image.dtype == np.uint8
        assert labels.dtype in (np.uint8, np.uint16)
        solid = "spacing" in case
        volumes += solid
        assert image.shape[: labels.ndim] == labels.shape
        assert labels.ndim == (3 if solid else 2)
        if modality in COLOUR:
            assert image.ndim == 3
            assert np.ptp(image.astype(int), axis=2).max() > 20
        height, width = labels.shape[-2:]
        assert height != width
        assert 72 <= min(height, width) <= max(height, width) <= 177
        assert len(np.unique(labels)) > 1
        assert image.std() > 5
    assert volumes == (VOLUMES if modality in VOLUMETRIC else 0)
    assert len({case["gts"].shape for case in cases[modality]}) > CASES // 2


def test_volumes_have_empty_slices_spacing_and_unbroken_objects(cases: Cases) -> None:
    for modality in VOLUMETRIC:
        for case in (case for case in cases[modality] if "spacing" in case):
            filled = np.asarray(case["gts"].any(axis=(1, 2)))
            assert 10 <= len(filled) <= 16
            assert not filled.all()
            z, y, x = case["spacing"]
            assert z > y == x > 0
            for mask in objects(case["gts"]):
                z_range = np.flatnonzero(mask.any(axis=(1, 2)))
                assert len(z_range) == np.ptp(z_range) + 1 >= 3


def test_every_object_is_one_piece_and_most_are_not_tiny(cases: Cases) -> None:
    sides = []
    for case in (case for found in cases.values() for case in found):
        for mask in objects(case["gts"]):
            assert ndimage.label(mask)[1] == 1
            sides.append(min(crop_to_content(mask).shape[-2:]))
    assert np.mean(np.array(sides) >= 14) > 0.85
    assert min(sides) < 14


def test_labels_have_gaps_and_some_need_16_bits(cases: Cases) -> None:
    found = [case["gts"] for group in cases.values() for case in group]
    gaps = [labels for labels in found if labels.max() > len(np.unique(labels)) - 1]
    assert 0.05 < len(gaps) / len(found) < 0.4
    assert any(labels.dtype == np.uint16 and labels.max() > 255 for labels in found)
    counts = [len(np.unique(case["gts"])) - 1 for case in cases["Microscopy"]]
    assert max(counts) > 6


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_inscribed_ellipse_is_worth_what_it_is_on_real_cases(cases: Cases, modality: str) -> None:
    assert 0.70 < mean_ellipse_score(cases[modality]) < 0.80


@pytest.mark.slow
@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("seed", [SEED, 1234])
def test_the_ellipse_keeps_its_worth_over_many_cases(modality: str, seed: int) -> None:
    assert 0.72 < mean_ellipse_score([make_case(modality, index, seed, False) for index in range(60)]) < 0.785
    if modality in VOLUMETRIC:
        assert 0.70 < mean_ellipse_score([make_case(modality, index, seed, True) for index in range(20)]) < 0.80


def split_by_brightness(case: Case, mask: npt.NDArray[np.bool_]) -> float:
    """DSC of two-class k-means of the box's pixels, taking the class that fills the middle of the box more."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    image = case["imgs"] if case["imgs"].ndim == 3 else case["imgs"][..., None]
    pixels = ndimage.gaussian_filter(image[box].astype(float), (0.7, 0.7, 0))
    flat = pixels.reshape(-1, pixels.shape[2])
    centred = flat - flat.mean(axis=0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    value, threshold = centred @ axis, 0.0
    for _ in range(10):
        threshold = (value[value > threshold].mean() + value[value <= threshold].mean()) / 2
    chosen, truth = (value > threshold).reshape(mask[box].shape), mask[box]
    quarter = tuple(slice(size // 3, size - size // 3) for size in truth.shape)
    if chosen[quarter].mean() < 0.5:
        chosen = ~chosen
    return float(2 * (chosen & truth).sum() / (chosen.sum() + truth.sum()))


@pytest.mark.parametrize("modality", MODALITIES)
def test_outlines_are_visible(cases: Cases, modality: str) -> None:
    flat = [case for case in cases[modality] if "spacing" not in case]
    scores = [np.mean([split_by_brightness(case, mask) for mask in objects(case["gts"])]) for case in flat]
    assert np.mean(scores) > mean_ellipse_score(flat) + 0.1


def test_a_case_depends_on_its_address_alone() -> None:
    first = make_case("PET", 3, SEED, True)
    make_case("PET", 2, SEED)
    again = make_case("PET", 3, SEED, True)
    assert all(np.array_equal(first[name], again[name]) for name in ("imgs", "gts", "spacing"))
    others = [make_case("PET", 4, SEED, True), make_case("PET", 3, SEED + 1, True), make_case("PET", 3, SEED, False)]
    assert len({digest(case) for case in [first, *others]}) == 4


def test_another_process_makes_the_same_case() -> None:
    code = (
        "import hashlib; from medsam_core.synthetic import make_case; c = make_case('US', 1, 7);"
        "print(hashlib.sha256(c['imgs'].tobytes() + c['gts'].tobytes()).hexdigest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.strip() == digest(make_case("US", 1, 7))


def test_left_to_itself_a_volumetric_modality_gives_both_kinds() -> None:
    kinds = ["spacing" in make_case("PET", index, SEED) for index in range(5)]
    assert kinds == [True, False, False, False, True]
    assert "spacing" not in make_case("US", 0, SEED)


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of CT, "):
        make_case("ct", 0, 0)
    with pytest.raises(ValueError, match="found -1"):
        make_case("CT", -1, 0)
    with pytest.raises(ValueError, match="US, which has no volumes"):
        make_case("US", 0, 0, volumetric=True)


def test_files_are_accepted_by_the_source_and_listed_with_their_patients(folder: Path) -> None:
    with (folder / "groups.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.npz"))
    assert sorted(row["file"] for row in rows) == files
    for row in rows:
        modality, dataset, name = row["file"].split("/")
        assert dataset == row["dataset"]
        assert modalities.modality_of(name.removesuffix(".npz")) == modality
        case = npz_source.read_case(folder / row["file"], name, modality, SourceConfig())
        assert case.is_3d == name.startswith("3DBox_")
    patients = Counter(row["group"] for row in rows)
    assert max(patients.values()) == 3
    per_modality = Counter(group.split(":")[0] for group in patients)
    assert min(per_modality[modality] for modality in MODALITIES) >= 5


def test_a_sample_is_part_of_a_larger_one_and_its_bytes_never_differ(folder: Path, tmp_path: Path) -> None:
    assert write_sample(tmp_path, SEED, 1, 1) == len(MODALITIES) + len(VOLUMETRIC)
    for path in tmp_path.rglob("*.npz"):
        assert path.read_bytes() == (folder / path.relative_to(tmp_path)).read_bytes()
    with zipfile.ZipFile(next(tmp_path.rglob("3DBox_*.npz"))) as archive:
        assert [entry.filename for entry in archive.infolist()] == ["gts.npy", "imgs.npy", "spacing.npy"]
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_an_interrupted_sample_is_completed_and_good_files_are_kept(tmp_path: Path) -> None:
    write_sample(tmp_path, SEED, 1, 0)
    before = {path: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.rglob("*") if path.is_file()}
    missing, short = sorted(tmp_path.rglob("*.npz"))[:2]
    missing.unlink()
    short.write_bytes(short.read_bytes()[:100])
    (tmp_path / "groups.csv").unlink()
    (tmp_path / "sample.json").unlink()
    write_sample(tmp_path, SEED, 1, 0)
    after = {path: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.rglob("*") if path.is_file()}
    assert {path: data for path, (data, _) in after.items()} == {path: data for path, (data, _) in before.items()}
    untouched = before.keys() - {missing, short, tmp_path / "groups.csv", tmp_path / "sample.json"}
    assert all(after[path] == before[path] for path in untouched)


def test_a_complete_sample_is_its_users_to_change(tmp_path: Path) -> None:
    write_sample(tmp_path, SEED, 1, 0)
    changed, removed = sorted(tmp_path.rglob("*.npz"))[:2]
    changed.write_bytes(b"changed")
    removed.unlink()
    (tmp_path / "CT" / "added.npz").write_bytes(b"added")
    write_sample(tmp_path, SEED, 1, 0)
    assert changed.read_bytes() == b"changed"
    assert not removed.exists()
    assert (tmp_path / "CT" / "added.npz").read_bytes() == b"added"


def test_a_folder_of_other_files_is_refused_untouched(tmp_path: Path) -> None:
    stranger = tmp_path / "CT" / "real.npz"
    stranger.parent.mkdir()
    stranger.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"found 1 other npz files, first CT/real\.npz"):
        write_sample(tmp_path, SEED, 1, 0)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [stranger]


def test_the_iterator_yields_what_is_written(folder: Path) -> None:
    first = next(sample_cases(SEED, CASES, VOLUMES))
    assert first.path == "CT/SyntheticA/2DBox_CT_0001.npz"
    with np.load(folder / first.path, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["imgs"], first.arrays["imgs"])
        np.testing.assert_array_equal(file["gts"], first.arrays["gts"])
