"""A folder in which good files lie among bad ones: each bad one is named with its reason, no good one is lost.

What belongs here: the `ingest` job over such a folder, and the scoring of what it accepted. Not here: every way in
which a single file can be wrong (`tests/unit/test_npz_source.py`).
"""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from medsam_core.learning.stages import DISTILLATION, FINETUNING
from medsam_core.planning.plan import Plan
from pipelines.base.adapters import slice_table
from pipelines.base.variants import PROPOSED
from pipelines.evaluation.cases import cases_of_release
from pipelines.evaluation.predictors import box_predictors
from pipelines.evaluation.reports import write_report
from pipelines.evaluation.scoring import predict_and_score
from pipelines.ingest.releases import release_reader
from storage.releases.splits import SPLITS
from tests.integration.deployment import DAGSTER, Deployment, deploy

PROFILE = """\
extends: sample
name: mixed
source: {kind: folder}
"""

Arrays = dict[str, npt.NDArray[Any]]


def _npz(**arrays: npt.NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _image(seed: int, *shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _square(label: int = 1, *, side: int = 40) -> npt.NDArray[np.uint8]:
    mask = np.zeros((side, side), np.uint8)
    mask[10:20, 5:25] = label
    return mask


def _many_objects() -> npt.NDArray[np.uint16]:
    """300 single pixels on a lattice, labels 1 to 300."""
    mask = np.zeros((60, 60), np.uint16)
    mask[1::3, 1::4] = np.arange(1, 301).reshape(20, 15)
    return mask


def _volume_mask() -> npt.NDArray[np.uint8]:
    mask = np.zeros((5, 40, 32), np.uint8)
    mask[1:4, 8:30, 4:20] = 7
    return mask


GOOD: dict[str, Arrays] = {
    "CT/SetA/CT_volume": {"imgs": _image(1, 5, 40, 32), "gts": _volume_mask(), "spacing": np.array([5.0, 1.0, 1.0])},
    "Fundus/SetB/Fundus_colour": {"imgs": _image(2, 40, 40, 3), "gts": _square()},
    "Fundus/SetB/Fundus_nothing_on_it": {"imgs": _image(3, 40, 40, 3), "gts": _square(0)},
    "US/SetC/US_label_two": {"imgs": _image(4, 40, 40), "gts": _square(2)},
    "US/SetC/US_one_pixel": {"imgs": _image(5, 1, 1), "gts": np.ones((1, 1), np.uint8)},
    "Microscopy/SetD/Microscopy_cells": {"imgs": _image(6, 60, 60), "gts": _many_objects()},
    **{f"X-Ray/SetE/scan_000{n}": {"imgs": _image(20 + n, 40, 40), "gts": _square()} for n in (1, 2, 3)},
    "OCT/SetF/OCT_without_masks": {"imgs": _image(8, 40, 40), "boxes": np.array([[5, 10, 24, 19]])},
}
"""Case id -> what its file holds."""


def _zip_of_text() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", "not an array")
    return file.getvalue()


def _pickled() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, imgs=np.array([{"not": "pixels"}], dtype=object), gts=_square())
    return file.getvalue()


BAD: dict[str, tuple[str, Callable[[], bytes]]] = {
    "Fundus/bad/Fundus_cut_short": ("truncated", lambda: _npz(imgs=_image(11, 40, 40), gts=_square())[:-200]),
    "Fundus/bad/Fundus_no_bytes": ("truncated", lambda: b""),
    "Fundus/bad/Fundus_zip": ("not_npz", _zip_of_text),
    "Fundus/bad/Fundus_text": ("not_npz", lambda: b"imgs: see attachment"),
    "Fundus/bad/Fundus_objects": ("pickled", _pickled),
    "Fundus/bad/Fundus_masks_only": ("missing_imgs", lambda: _npz(gts=_square())),
    "Fundus/bad/Fundus_other_size": ("gts_shape", lambda: _npz(imgs=_image(12, 40, 40), gts=_square(side=30))),
    "Fundus/bad/Fundus_float": ("imgs_dtype", lambda: _npz(imgs=_image(13, 40, 40) / 255, gts=_square())),
    "elsewhere/case_0001": ("no_modality", lambda: _npz(imgs=_image(14, 40, 40), gts=_square())),
}
"""Case id -> the reason it is rejected for, and its bytes."""


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Run the `ingest` job over the folder."""
    folder = tmp_path_factory.mktemp("mixed")
    contents = {name: _npz(**arrays) for name, arrays in GOOD.items()}
    contents |= {name: content() for name, (_, content) in BAD.items()}
    for name, content in contents.items():
        path = folder / "data" / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    profile = folder / "mixed.yaml"
    profile.write_text(PROFILE)
    deployment = deploy(folder / "home", str(profile), MEDSAM_DATA=str(folder / "data"))
    deployment.run(DAGSTER, "job", "execute", "-j", "ingest")
    return deployment


@pytest.fixture(scope="module")
def manifest(ingested: Deployment) -> pd.DataFrame:
    return pd.read_parquet(ingested.folder("raw_manifest") / "manifest.parquet").set_index("case_id")


def test_every_bad_file_is_rejected_with_its_reason(manifest: pd.DataFrame, ingested: Deployment) -> None:
    rejected = manifest[manifest["status"] == "rejected"]
    assert rejected["reason_code"].to_dict() == {name: code for name, (code, _) in BAD.items()}
    assert rejected["reason"].str.len().gt(20).all()
    listed = pd.read_csv(ingested.folder("raw_manifest") / "rejected.csv")
    assert set(listed["case_id"]) == set(BAD)


def test_every_good_file_is_accepted(manifest: pd.DataFrame) -> None:
    accepted = manifest[manifest["status"] == "accepted"]
    assert set(accepted.index) == set(GOOD)
    assert accepted.loc["X-Ray/SetE/scan_0001", "modality"] == "XRay"
    assert accepted.loc["Microscopy/SetD/Microscopy_cells", "n_labels"] == 300
    assert accepted.loc["CT/SetA/CT_volume", "is_3d"]


def test_the_release_gives_back_every_labelled_case(ingested: Deployment) -> None:
    readers = {split: release_reader(ingested.workspace, ingested.value("dataset_release"), split) for split in SPLITS}
    cases = [case for split, reader in readers.items() for case in cases_of_release(reader, split)]
    found = {case.identity.case_id: case for case in cases}
    assert set(found) == {name for name, arrays in GOOD.items() if "gts" in arrays}
    for name, case in found.items():
        np.testing.assert_array_equal(case.imgs, GOOD[name]["imgs"])
        np.testing.assert_array_equal(case.gts, GOOD[name]["gts"])
        assert case.is_3d == ("spacing" in GOOD[name])


def test_a_case_without_foreground_is_never_drawn(ingested: Deployment) -> None:
    space = ingested.workspace
    reader = release_reader(space, ingested.value("dataset_release"), "train")
    train = reader.table
    for stage in (DISTILLATION, FINETUNING):
        config = PROPOSED.stage_config(space.profile, stage)
        plan = Plan.build(slice_table(reader.columns), config, stage, space.profile.student.image_size, seed=0)
        drawn = train.loc[np.unique(plan.slots["row"])]
        assert set(drawn["case_id"]) == set(train["case_id"]) - {"Fundus/SetB/Fundus_nothing_on_it"}
        assert drawn["fg_px"].gt(0).all()


def test_every_labelled_case_is_scored(ingested: Deployment, tmp_path: Path) -> None:
    readers = [release_reader(ingested.workspace, ingested.value("dataset_release"), split) for split in SPLITS]
    cases = (case for reader in readers for case in cases_of_release(reader, "test"))
    scores = predict_and_score(cases, box_predictors(), tmp_path, lambda _: None)
    rows, labels = scores.cases, scores.labels
    box = rows[rows["predictor"] == "filled_box"].set_index("case_id")
    assert box["n_labels"].to_dict() == {
        "CT/SetA/CT_volume": 1,
        "Fundus/SetB/Fundus_colour": 1,
        "Fundus/SetB/Fundus_nothing_on_it": 0,
        "Microscopy/SetD/Microscopy_cells": 300,
        "US/SetC/US_label_two": 1,
        "US/SetC/US_one_pixel": 1,
        "X-Ray/SetE/scan_0001": 1,
        "X-Ray/SetE/scan_0002": 1,
        "X-Ray/SetE/scan_0003": 1,
    }
    # Every object fills its box, so the filled box is right everywhere but where there is no object.
    dsc = box["dsc"].drop("Fundus/SetB/Fundus_nothing_on_it")
    assert dsc.eq(1).all()
    assert np.isnan(box["dsc"]["Fundus/SetB/Fundus_nothing_on_it"])
    assert labels.loc[labels["case_id"] == "US/SetC/US_label_two", "label"].eq(2).all()

    comparison = write_report(rows, tmp_path).set_index("modality")
    assert comparison.loc["Fundus", "DSC filled_box"] == 1
    assert comparison.loc["mean of modalities", "cases"] == len(box)
