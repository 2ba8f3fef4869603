"""Files without labels in a whole run: distilled, counted apart, never scored; and a folder that has nothing else.

What belongs here: the literal job command over such folders. Not here: which of them a release holds
(`tests/unit/test_unlabelled.py`).
"""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medsam_core.synthetic import write_sample
from storage.base.modalities import MODALITIES
from tests.integration.deployment import FULL_PIPELINE, LEFT_OUT, TINY, Deployment, deploy
from tests.integration.test_full_pipeline import EVALUATED, RELEASED, TRAINED, made

PROFILE = """\
extends: {tiny}
name: bare
source: {{kind: folder, unlabelled: true}}
"""


def _take_labels(path: Path) -> None:
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files if name not in ("gts", "boxes")}
    np.savez_compressed(path, **arrays)


def _deployed(folder: Path) -> Deployment:
    """Return a deployment whose data are the tiny sample, with its labels in `labelled` beside them."""
    profile = folder / "bare.yaml"
    profile.write_text(PROFILE.format(tiny=TINY))
    write_sample(folder / "labelled", seed=7, cases_per_modality=4, volumes_per_modality=2)
    shutil.copytree(folder / "labelled", folder / "data")
    return deploy(folder / "home", str(profile), MEDSAM_DATA=str(folder / "data"))


def _give_labels(deployment: Deployment, case_id: str) -> None:
    data = deployment.workspace.settings.data
    shutil.copy(data.parent / "labelled" / f"{case_id}.npz", data / f"{case_id}.npz")


def _shown(deployment: Deployment) -> list[set[str]]:
    """Return the cases that each part of the cache of embeddings shows; a part of this profile is a microbatch."""
    cases = pd.read_feather(deployment.folder("dataset_release") / "distillation.arrow")["case_id"].to_numpy(object)
    rows = np.load(deployment.folder("distillation_plan") / "slots.npy", allow_pickle=False)["row"]
    return [set(cases[microbatch]) for microbatch in rows.reshape(-1, 8)]


@pytest.mark.timeout(900)
def test_a_file_is_distilled_and_costs_its_descendants_when_it_gains_labels(tmp_path: Path) -> None:
    deployment = _deployed(tmp_path)
    data = deployment.workspace.settings.data
    ids = sorted(path.relative_to(data).with_suffix("").as_posix() for path in data.rglob("*.npz"))
    bare = [next(name for name in ids if name.startswith(f"{modality}/")) for modality in MODALITIES]
    for name in bare:
        _take_labels(data / f"{name}.npz")
    ledger = deployment.run_pipeline()
    assert not set(bare) & set(deployment.release()["case_id"])
    shown = _shown(deployment)
    assert set(bare) & set().union(*shown)
    scored = deployment.rows("proposed/scores")
    assert not set(bare) & set(scored["case_id"])

    gained = next(name for name in bare if 0 < sum(name in part for part in shown) < len(shown))
    _give_labels(deployment, gained)
    again = deployment.run_pipeline().drop(index=list(LEFT_OUT))
    assert gained in set(deployment.release().query("split == 'train'")["case_id"])
    assert made(again) == {f"slice_store/{gained.split('/')[0]}"} | RELEASED | TRAINED | EVALUATED
    assert set(again.index[again["fingerprint"] != ledger["fingerprint"][again.index]]) == made(again)
    parts = [gained in part for part in shown]
    assert again.loc["teacher_embeddings", ["made", "reused"]].tolist() == [sum(parts), len(parts) - sum(parts)]


@pytest.mark.timeout(900)
def test_a_folder_of_nothing_else_is_distilled_and_goes_on_once_it_has_labels(tmp_path: Path) -> None:
    deployment = _deployed(tmp_path)
    data = deployment.workspace.settings.data
    for folder in data.iterdir():
        if folder.is_dir() and folder.name not in ("Fundus", "US"):
            shutil.rmtree(folder)
    files = sorted(data.rglob("*.npz"))
    for path in files:
        _take_labels(path)
    assert deployment.start(*FULL_PIPELINE).wait() != 0
    output = (deployment.home / "output.txt").read_text()
    reason = f"finetuning: expected training cases with gts, found none: all {len(files)} cases are without labels."
    assert reason in output
    distilled = deployment.folder("proposed/student_distilled")
    assert (distilled / "model.safetensors").is_file()
    assert not (deployment.state / "values" / "assets" / "proposed" / "student_finetuned.json").exists()
    assert "proposed/student_distilled" in deployment.medsam("summary")

    for path in files:
        _give_labels(deployment, path.relative_to(data).with_suffix("").as_posix())
    ledger = deployment.run_pipeline()
    assert ledger.loc["proposed/student_finetuned", "made"] == 1
    assert set(deployment.rows("proposed/scores")["split"]) == {"validation", "test"}
