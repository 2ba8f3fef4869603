"""Images without ground truth: what a release holds of them, and who draws them."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from medsam_core.base.config import StageConfig
from medsam_core.learning.stages import ADAPTATION, DISTILLATION, FINETUNING, Stage
from pipelines.base.asset_keys import recomputed
from pipelines.base.profile import load_profile
from pipelines.base.results import TaskResult
from pipelines.base.settings import InputError, read_settings
from pipelines.base.workspace import Workspace
from pipelines.ingest.releases import measure_pixels, release_reader, stage_reader
from pipelines.ingest.scanning import scan_source
from pipelines.training.plans import load_plan, make_plan
from pipelines.training.training_cases import read_training_cases, write_training_cases
from storage.base.errors import StorageError
from storage.base.references import ArtefactRef
from storage.releases.release import Release, leakage, load_release, release_difference
from storage.slices.index import modality_index
from tests.unit.test_scanning import quiet, released, save

pytestmark = pytest.mark.timeout(120, method="thread")

CONFIG = StageConfig(epochs=1, epoch_slots=60, microbatch_size=4, microbatches_per_step=1)


def case(number: int) -> str:
    return f"US/2DBox_US_{number:02}"


def write(space: Workspace, number: int, *, seed: int | None = None, **changes: object) -> None:
    save(space.settings.data / f"{case(number)}.npz", number if seed is None else seed, **changes)


def write_map(space: Workspace, patients: dict[int, str]) -> None:
    rows = [f"{case(number)}.npz,D,{patient}" for number, patient in patients.items()]
    (space.settings.data / "groups.csv").write_text("\n".join(["file,dataset,group", *rows, ""]))


def workspace(tmp_path: Path, *, unlabelled: bool = True) -> Workspace:
    profile = tmp_path / f"profile_{unlabelled}.yaml"
    profile.write_text(f"extends: real\nsource: {{unlabelled: {str(unlabelled).lower()}}}\n")
    home, data = str(tmp_path / f"home_{unlabelled}"), str(tmp_path / "data")
    return Workspace(read_settings({"MEDSAM_PROFILE": str(profile), "MEDSAM_HOME": home, "MEDSAM_DATA": data}))


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    """A workspace of ten labelled cases and two, 10 and 11, without labels."""
    made = workspace(tmp_path)
    for number in range(12):
        write(made, number, **({} if number < 10 else {"gts": None}))
    return made


def frozen(space: Workspace, result: TaskResult[ArtefactRef]) -> Release:
    return load_release(space.artefacts.get(result.value).path)


def without_labels(release: Release) -> list[str]:
    return [] if release.unlabelled is None else release.unlabelled["case_id"].tolist()


def splits(release: Release) -> dict[str, str]:
    return dict(zip(release.table["case_id"], release.table["split"], strict=True))


def drawn(space: Workspace, release: ArtefactRef, stage: Stage) -> npt.NDArray[np.object_]:
    """Return the case that each slot of a plan shows."""
    plan = make_plan(space, release, CONFIG, stage).value
    reader = stage_reader(space, release, stage)
    rows = load_plan(space, plan, CONFIG, stage).slots["row"][0]
    return reader.table["case_id"].to_numpy(object)[rows]


class TestRelease:
    def test_holds_them_apart_and_in_training_alone(self, space: Workspace) -> None:
        result = released(space)
        release = frozen(space, result)
        assert without_labels(release) == [case(10), case(11)]
        assert set(splits(release)) == {case(number) for number in range(10)}
        assert result.notes["without labels, in distillation alone"] == "2 cases, 2 slices"
        train = [name for name, split in splits(release).items() if split == "train"]
        assert release.split("distillation")["case_id"].tolist() == sorted([*train, case(10), case(11)])
        assert (space.splits.read() or {})[case(10)] == "train"

    def test_without_the_switch_is_what_it_was(self, space: Workspace, tmp_path: Path) -> None:
        off = workspace(tmp_path, unlabelled=False)
        with_switch, without = released(space), released(off)
        assert "unlabelled" not in off.profile.source.model_dump()
        assert space.profile.source.model_dump()["unlabelled"]
        assert frozen(off, without).unlabelled is None
        for split in ("train", "validation", "test"):
            assert without.value.info["fingerprints"][split] == with_switch.value.info["fingerprints"][split]
        assert set(without.value.info["fingerprints"]) == {"train", "validation", "test", "all"}
        assert case(10) not in (off.splits.read() or {})

    def test_the_switch_alone_changes_nothing(self, space: Workspace, tmp_path: Path) -> None:
        for number in (10, 11):
            write(space, number)
        off = workspace(tmp_path, unlabelled=False)
        assert released(space).fingerprint == released(off).fingerprint

    def test_leaves_out_those_of_held_out_patients(self, space: Workspace) -> None:
        before = splits(frozen(space, released(space)))
        tested = next(name for name, split in before.items() if split == "test")
        write_map(space, {number: case(number) for number in range(10)} | {10: tested, 11: "another"})
        result = released(space)
        assert without_labels(frozen(space, result)) == [case(11)]
        table = result.notes["without labels, left out"]
        assert isinstance(table, pd.DataFrame)
        assert table.to_numpy().tolist() == [[case(10), "its patient is held out"]]
        assert splits(frozen(space, result)) == before

    def test_leaves_out_copies_of_held_out_images(self, space: Workspace) -> None:
        before = splits(frozen(space, released(space)))
        tested = next(name for name, split in before.items() if split == "test")
        trained = next(name for name, split in before.items() if split == "train")
        write(space, 10, seed=int(tested[-2:]), gts=None)
        write(space, 11, seed=int(trained[-2:]), gts=None)
        result = released(space)
        assert without_labels(frozen(space, result)) == [case(11)]
        table = result.notes["without labels, left out"]
        assert isinstance(table, pd.DataFrame)
        assert table.to_numpy().tolist() == [[case(10), "its image is that of a held out case"]]

    def test_tells_a_leak(self, space: Workspace) -> None:
        release = frozen(space, released(space))
        assert release.unlabelled is not None
        assert leakage(release) == []
        tested = next(name for name, split in splits(release).items() if split == "test")
        release.unlabelled.loc[0, "group"] = tested
        assert [line.partition(":")[0] for line in leakage(release)] == [f"patient {tested}"]

    def test_a_changed_file_of_it_is_noticed(self, space: Workspace) -> None:
        folder = space.artefacts.get(released(space).value).path
        path = folder / "unlabelled.parquet"
        path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)
        with pytest.raises(StorageError):
            load_release(folder)

    def test_an_image_more_leaves_fine_tuning_alone(self, space: Workspace) -> None:
        before = released(space).value.info["fingerprints"]
        write(space, 12, gts=None)
        after = released(space).value.info["fingerprints"]
        assert {name for name in before if before[name] != after[name]} == {"all", "distillation"}
        told = " ".join(recomputed(before, after))
        assert "distillation_plan" in told
        assert "student_distilled" in told
        assert "teacher_logits" not in told


def test_labels_that_a_file_gains_make_it_a_labelled_one(space: Workspace) -> None:
    first = released(space)
    plans = [drawn(space, first.value, stage) for stage in (DISTILLATION, FINETUNING)]
    recorded = space.splits.read() or {}
    write(space, 11)
    second = released(space)
    release = frozen(space, second)
    assert without_labels(release) == [case(10)]
    assert splits(release)[case(11)] == "train"
    assert space.splits.read() == recorded
    before, after = (result.value.info["fingerprints"] for result in (first, second))
    assert {name for name in before if before[name] != after[name]} == {"train", "distillation", "all"}
    assert release_difference(frozen(space, first), release)["changed"] == [case(11)]
    # Its place in the plan is the same, so only what shows it is asked of the teacher again.
    assert (drawn(space, second.value, DISTILLATION) == plans[0]).all()
    assert case(11) in set(drawn(space, second.value, FINETUNING)) - set(plans[1])


def test_only_distillation_draws_them(space: Workspace) -> None:
    release = released(space).value
    assert {case(10), case(11)} <= set(drawn(space, release, DISTILLATION))
    for stage in (FINETUNING, ADAPTATION):
        assert not {case(10), case(11)} & set(drawn(space, release, stage))
    assert measure_pixels(space, release).notes["slices"] == len(release_reader(space, release, "distillation"))


def test_blank_labels_are_labels(space: Workspace) -> None:
    write(space, 12, gts=np.zeros((20, 24), np.uint8))
    result = released(space)
    assert case(12) not in without_labels(frozen(space, result))
    assert case(12) not in set(drawn(space, result.value, DISTILLATION))


def test_they_are_counted_apart(space: Workspace, tmp_path: Path) -> None:
    said: list[str] = []
    result = scan_source(space, said.append)
    assert "accepted without gts: 2, distillation alone draws them" in said
    assert result.notes["accepted without gts"] == "2, distillation alone draws them"
    off = workspace(tmp_path, unlabelled=False)
    assert "nothing uses them" in str(scan_source(off, quiet).notes["accepted without gts"])
    released(space)
    (index,) = (space.settings.state / "artefacts" / "index").glob("*/slice_index.parquet")
    assert modality_index(pd.read_parquet(index))[["slices", "unlabelled_slices"]].to_numpy().tolist() == [[12, 2]]


class TestNothingHasALabel:
    @pytest.fixture
    def bare(self, tmp_path: Path) -> Workspace:
        made = workspace(tmp_path)
        for number in range(6):
            write(made, number, gts=None)
        return made

    def test_it_can_be_distilled_and_says_why_no_more(self, bare: Workspace) -> None:
        release = released(bare).value
        assert set(drawn(bare, release, DISTILLATION)) == {case(number) for number in range(6)}
        assert measure_pixels(bare, release).notes["slices"] == 6
        for stage, section in ((FINETUNING, "finetuning"), (ADAPTATION, "teacher_adaptation")):
            with pytest.raises(InputError, match=f"^{section}: expected training cases with gts, found none: all 6"):
                make_plan(bare, release, CONFIG, stage)

    def test_labels_that_come_later_are_divided(self, bare: Workspace) -> None:
        released(bare)
        assert not bare.splits.read()
        for number in range(6):
            write(bare, number)
        assert set(splits(frozen(bare, released(bare))).values()) == {"train", "validation", "test"}

    def test_without_the_switch_the_message_names_it(self, bare: Workspace, tmp_path: Path) -> None:
        assert bare.settings.data.is_dir()
        with pytest.raises(StorageError, match=r"6 more have no gts .*source\.unlabelled"):
            released(workspace(tmp_path, unlabelled=False))


def test_a_model_knows_that_it_was_distilled_on_them(space: Workspace, tmp_path: Path) -> None:
    release = frozen(space, released(space))
    write_training_cases(tmp_path, release)
    assert release.unlabelled is not None
    known = read_training_cases(tmp_path / "model.safetensors")
    assert {known[content] for content in release.unlabelled["content_hash"]} == {"train"}


@pytest.mark.parametrize("name", ["sample", "real", "paper"])
def test_the_switch_is_off_unless_said(name: str) -> None:
    assert "unlabelled" not in load_profile(name, {"source": {"unlabelled": False}}).source.model_dump()
