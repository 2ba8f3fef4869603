"""Verifying, repairing and erasing as the commands do it, on a small source of real files."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.base.settings import InputError, read_settings
from pipelines.base.workspace import Workspace
from pipelines.cli import main
from pipelines.ingest import tasks as ingest
from pipelines.ingest.scanning import scan_source
from pipelines.ingest.store_care import erase_cases, published_modalities, repair_store, verify_stores
from storage.base.atomic import write_json
from storage.slices.index import build_index
from storage.slices.layout import load_plan
from storage.slices.publishing import publish
from tests.unit.store_helpers import files_below


def quiet(_text: str) -> None:
    """Say nothing."""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    data = tmp_path / "npz"
    rng = np.random.default_rng(3)
    for modality, count in (("CT", 4), ("US", 3)):
        (data / modality).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 256, (40, 30), dtype=np.uint8)
            name = data / modality / f"2DBox_{modality}_{number}.npz"
            np.savez_compressed(name, imgs=image, gts=(image > 250).astype(np.uint8))
    variables = {"MEDSAM_HOME": str(tmp_path / "home"), "MEDSAM_PROFILE": "real", "MEDSAM_DATA": str(data)}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    space = Workspace(read_settings())
    ingested(space)
    return space


def ingested(space: Workspace) -> None:
    manifest = scan_source(space, quiet).value
    for modality in ("CT", "US"):
        for batch in ingest.plan_store(space, modality, manifest):
            ingest.write_store_parts(space, modality, batch, quiet)
        publish(space.stores, modality, load_plan(space.stores, modality))


def test_damage_is_told_by_the_command_and_mended_by_its_repair(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(workspace.settings.stores)
    good = files_below(folder)
    assert published_modalities(workspace) == ["CT", "US"]
    assert main(["verify"]) == 0
    (folder / "CT" / "imgs" / "c" / "0").write_bytes(b"torn")
    (folder / "US" / "manifest.json").write_bytes(good["US/manifest.json"][:-9] + b"x" + good["US/manifest.json"][-8:])
    capsys.readouterr()
    assert main(["verify"]) == 1
    told = capsys.readouterr().out
    assert "imgs/c/0: expected" in told
    assert "cases to ingest again: CT/2DBox_CT_0, CT/2DBox_CT_1" in told
    assert "US/manifest.json" in told
    assert main(["verify", "--modality", "CT"]) == 1
    assert main(["verify", "--repair"]) == 0
    assert files_below(folder) == good
    assert verify_stores(workspace, ["CT", "US"], quiet).empty


def test_only_a_repair_needs_the_source(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEDSAM_DATA")
    assert main(["verify"]) == 0
    assert main(["verify", "--modality", "CT"]) == 0
    (Path(workspace.settings.stores) / "CT" / "imgs" / "c" / "0").write_bytes(b"torn")
    assert main(["verify"]) == 1
    assert "imgs/c/0: expected" in capsys.readouterr().out
    assert main(["verify", "--repair"]) == 2
    assert "MEDSAM_DATA" in capsys.readouterr().err


def test_repair_ends_an_ingest_that_was_stopped_after_its_plan(workspace: Workspace) -> None:
    path = workspace.settings.data / "US" / "2DBox_US_9.npz"
    np.savez_compressed(path, imgs=np.ones((40, 30), np.uint8), gts=np.ones((40, 30), np.uint8))
    manifest = scan_source(workspace, quiet).value
    assert ingest.plan_store(workspace, "US", manifest)
    assert main(["verify"]) == 1
    assert main(["verify", "--repair"]) == 0
    assert main(["verify"]) == 0
    table = ingest._manifest(workspace, manifest)
    assert "US/2DBox_US_9" in set(build_index(workspace.stores, ["US"], table)["case_id"])


def test_repair_refuses_a_source_that_has_changed(workspace: Workspace) -> None:
    folder = Path(workspace.settings.stores)
    (folder / "CT" / "imgs" / "c" / "0").unlink()
    path = workspace.settings.data / "CT" / "2DBox_CT_1.npz"
    np.savez_compressed(path, imgs=np.zeros((40, 30), np.uint8), gts=np.zeros((40, 30), np.uint8))
    with pytest.raises(Exception, match="changed since the manifest was made"):
        repair_store(workspace, "CT", quiet)


def test_an_erased_case_leaves_every_byte_of_the_store(workspace: Workspace) -> None:
    """Its pixels are told by a pattern that no other case has."""
    pattern = np.tile(np.arange(30, dtype=np.uint8), (40, 1))
    path = workspace.settings.data / "CT" / "2DBox_CT_2.npz"
    np.savez_compressed(path, imgs=pattern, gts=np.ones((40, 30), np.uint8))
    ingested(workspace)
    before = workspace.stores.sizes("CT")
    erase_cases(workspace, ["CT/2DBox_CT_2"], quiet)
    scan = scan_source(workspace, quiet)
    table = ingest._manifest(workspace, scan.value).set_index("case_id")
    assert table.loc["CT/2DBox_CT_2", ["status", "reason_code"]].tolist() == ["rejected", "withdrawn"]
    rows = build_index(workspace.stores, ["CT"], table.reset_index())
    assert sorted(rows["case_id"]) == ["CT/2DBox_CT_0", "CT/2DBox_CT_1", "CT/2DBox_CT_3"]
    kept = {key for key in before if "/c/" in key} & set(workspace.stores.sizes("CT"))
    assert not kept, "the shards that held it are gone"
    assert b"2DBox_CT_2" not in b"".join(workspace.stores.read(key) for key in workspace.stores.sizes("CT"))
    ingested(workspace)
    assert "CT/2DBox_CT_2" not in set(build_index(workspace.stores, ["CT"], table.reset_index())["case_id"])


def test_erasing_a_case_that_is_not_there_is_refused(workspace: Workspace) -> None:
    with pytest.raises(InputError, match="none named CT/2DBox_CT_99"):
        erase_cases(workspace, ["CT/2DBox_CT_99"], quiet)


def test_a_lost_manifest_is_told_and_published_again(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """What a store's value names was published; a plan alone may be an ingest that has not come so far."""
    folder = Path(workspace.settings.stores)
    good = files_below(folder)
    write_json(workspace.settings.state / "values" / "assets" / "slice_store" / "CT.json", {"modality": "CT"})
    for modality in ("CT", "US"):
        (folder / modality / "manifest.json").unlink()
    assert main(["verify"]) == 1
    assert "1 damaged, 0 repaired or withdrawn, 1 left" in capsys.readouterr().out
    assert main(["verify", "--repair"]) == 0
    assert files_below(folder / "CT") == {key[3:]: data for key, data in good.items() if key.startswith("CT/")}
    assert main(["verify"]) == 0


def test_a_store_that_cannot_be_repaired_leaves_the_others_to_be(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(workspace.settings.stores)
    good = files_below(folder / "US")
    for modality in ("CT", "US"):
        (folder / modality / "imgs" / "c" / "0").unlink()
    path = workspace.settings.data / "CT" / "2DBox_CT_1.npz"
    np.savez_compressed(path, imgs=np.zeros((40, 30), np.uint8), gts=np.zeros((40, 30), np.uint8))
    assert main(["verify", "--repair"]) == 1
    told = capsys.readouterr().out
    assert "CT: not repaired: " in told
    assert "2 damaged, 1 repaired or withdrawn, 1 left" in told
    assert files_below(folder / "US") == good
