"""A pool of further cases beside the folder that is divided: it trains, and nothing of it selects or tests."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.integration.deployment import DAGSTER, Deployment, deploy

PROFILE = """\
extends: sample
name: pooled
source: {kind: folder}
split: {validation: 0.2, test: 0.3}
"""


def _case(folder: Path, name: str, seed: int) -> None:
    path = folder / "US" / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    imgs = np.random.default_rng(seed).integers(0, 256, (40, 40), dtype=np.uint8)
    gts = np.zeros((40, 40), np.uint8)
    gts[10:20, 5:25] = 1
    np.savez_compressed(path, imgs=imgs, gts=gts)


def _map(folder: Path, patients: dict[str, str]) -> Path:
    rows = [(f"US/{name}.npz", "Set", patient) for name, patient in patients.items()]
    path = folder.with_suffix(".csv")
    pd.DataFrame(rows, columns=["file", "dataset", "group"]).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """The job `ingest` over ten patients to divide, and a pool: a case of each of them, copies of all, ten others."""
    folder = tmp_path_factory.mktemp("pooled")
    divided, pool = folder / "divided", folder / "pool"
    of_divided, of_pool = {}, {}
    for number in range(10):
        _case(divided, f"own{number}", number)
        of_divided[f"own{number}"] = f"P{number}"
        _case(pool, f"more{number}", 100 + number)
        of_pool[f"more{number}"] = f"P{number}"
        _case(pool, f"copy{number}", number)
        of_pool[f"copy{number}"] = f"C{number}"
        _case(pool, f"other{number}", 200 + number)
        of_pool[f"other{number}"] = f"Q{number}"
    maps = [_map(divided, of_divided), _map(pool, of_pool)]
    (folder / "pooled.yaml").write_text(PROFILE)
    deployment = deploy(
        folder / "home",
        str(folder / "pooled.yaml"),
        MEDSAM_DATA=os.pathsep.join([str(divided), f"train={pool}"]),
        MEDSAM_GROUPS=os.pathsep.join(map(str, maps)),
    )
    deployment.run(DAGSTER, "job", "execute", "-j", "ingest")
    return deployment


def test_nothing_of_the_pool_selects_or_tests(pooled: Deployment) -> None:
    release = pooled.release()
    held_out = release[release["split"] != "train"]
    assert set(held_out["split"]) == {"validation", "test"}
    assert set(held_out["role"]) == {"split"}
    patients = set(held_out["group"])
    train = release[release["split"] == "train"]
    # Neither a further image of a held-out patient nor a copy of a held-out image is trained on.
    assert not patients & set(train["group"])
    held_numbers = {patient.removeprefix("P") for patient in patients}
    copies = {case.rsplit("copy", 1)[1] for case in train["case_id"] if "copy" in case}
    assert not copies & held_numbers
    assert {f"US/other{number}" for number in range(10)} <= set(train["case_id"])
    assert any("more" in case for case in train["case_id"])


def test_the_check_is_green_and_the_page_counts_by_folder(pooled: Deployment) -> None:
    output = (pooled.home / "output.txt").read_text()
    assert "(split): 10 files found: 10 accepted" in output
    assert "(train): 30 files found: 30 accepted" in output
    instance = pooled.instance
    (run,) = instance.get_runs()
    checks = {
        check.check_name: check.passed
        for event in instance.all_logs(run.run_id)
        if event.dagster_event and event.dagster_event.event_type_value == "ASSET_CHECK_EVALUATION"
        for check in [event.dagster_event.asset_check_evaluation_data]
    }
    assert checks == {"no_leakage": True, "train_folders_only_train": True}


def test_a_second_run_makes_nothing(pooled: Deployment) -> None:
    before = pooled.folder("dataset_release")
    pooled.run(DAGSTER, "job", "execute", "-j", "ingest")
    ledger = pooled.ledger()
    assert ledger["made"].sum() == 0
    assert ledger["reused"].sum() > 0
    assert pooled.folder("dataset_release") == before
