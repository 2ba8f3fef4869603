"""The shipped teacher and the recipe that makes one."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import medsam_core
from medsam_core.base.config import StageConfig
from medsam_core.imaging.prompts import tight_boxes
from medsam_core.inference.baselines import filled_boxes
from medsam_core.inference.predictor import Predictor
from medsam_core.models.checkpoints import load_model, read_metadata
from medsam_core.models.config import StudentConfig
from medsam_core.models.segmenter import Segmenter, build_student, build_teacher, init_decoder_from
from medsam_core.scores.metrics import dsc
from medsam_core.synthetic import MODALITIES
from medsam_core.training import stand_in
from medsam_core.training.stand_in import ARCHITECTURE, make_stand_in, synthetic_slices, table_of
from pipelines.base.profile import load_profile

SHIPPED = Path(medsam_core.__file__).parent / "weights" / "stand_in_128.safetensors"

TINY = StageConfig(epochs=1, microbatch_size=2, microbatches_per_step=1, epoch_slots=4, mask_distillation=False)


def make(folder: Path) -> tuple[Path, list[str]]:
    said: list[str] = []
    output = folder / "teacher.safetensors"
    make_stand_in(output, folder / "work", said.append, recipe=TINY, cases=1, volumes=1)
    return output, said


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made"))[0]


def test_a_tiny_recipe_leaves_a_loadable_half_precision_teacher(made: Path) -> None:
    stored, teacher = safetensors.torch.load_file(made), load_model(made)
    assert {stored[name].dtype for name, _ in teacher.named_parameters()} == {torch.float16}
    assert teacher.architecture == ARCHITECTURE
    assert not teacher.training
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}
    assert read_metadata(made)["steps"] == "2"
    assert made.stat().st_size < 16e6


def test_the_teacher_has_learnt_something(made: Path) -> None:
    fresh, trained = build_teacher(ARCHITECTURE, seed=0).state_dict(), load_model(made).state_dict()
    moved = {
        part: max(float((trained[k] - fresh[k]).abs().max()) for k in fresh if k.startswith(part) and k in trained)
        for part in ("image_encoder.", "mask_decoder.")
    }
    assert min(moved.values()) > 1e-4, "more than float16 rounds away"


def test_making_it_again_from_a_finished_folder_trains_nothing_and_gives_the_same_bytes(made: Path) -> None:
    before = hashlib.sha256(made.read_bytes()).digest()
    checkpoint = (made.parent / "work" / "model.safetensors").stat().st_mtime_ns
    made.unlink()
    _, said = make(made.parent)
    assert hashlib.sha256(made.read_bytes()).digest() == before
    assert (made.parent / "work" / "model.safetensors").stat().st_mtime_ns == checkpoint
    assert any("synthetic slices" in line for line in said)


def test_synthetic_slices_cover_every_modality_and_their_table_agrees() -> None:
    slices, modality = synthetic_slices(seed=3, cases=1, volumes=1)
    assert set(modality) == set(range(len(MODALITIES)))
    table = table_of(slices, modality)
    assert len(table) == len(slices)
    for number, (image, mask) in enumerate(slices):
        own = slice(table.label_start[number], table.label_start[number + 1])
        assert (table.height[number], table.width[number]) == image.shape[:2] == mask.shape
        labels, counts = np.unique(mask[mask > 0], return_counts=True)
        np.testing.assert_array_equal(table.label_id[own], labels)
        np.testing.assert_array_equal(table.label_area[own], counts)
        for label, box in zip(labels, table.label_box[own], strict=True):
            ys, xs = np.nonzero(mask == label)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_the_teacher_does_not_learn_from_the_samples_own_cases() -> None:
    source = load_profile("sample").source
    assert source.synthetic_seed != stand_in.DATA_SEED
    own, _ = synthetic_slices(stand_in.DATA_SEED, 1, 1)
    sample, _ = synthetic_slices(source.synthetic_seed, 1, 1)
    digests = [{hashlib.sha256(image.tobytes()).digest() for image, _ in part} for part in (own, sample)]
    assert not digests[0] & digests[1]


@pytest.fixture(scope="module")
def teacher() -> Segmenter:
    """The shipped one."""
    return load_model(SHIPPED)


def test_the_shipped_teacher_fits_the_sample_profile_and_starts_its_student(teacher: Segmenter) -> None:
    assert SHIPPED.stat().st_size <= 16_000_000
    profile = load_profile("sample")
    assert teacher.architecture == ARCHITECTURE == profile.teacher
    assert all(torch.isfinite(value).all() for value in teacher.state_dict().values())
    student = build_student(StudentConfig(backbone="repvit_m0_9", image_size=128), [0.4] * 3, [0.2] * 3, seed=0)
    init_decoder_from(student, teacher)
    for name, value in teacher.mask_decoder.state_dict().items():
        assert torch.equal(student.mask_decoder.state_dict()[name], value)


def test_the_shipped_teacher_segments_unseen_synthetic_cases_better_than_their_boxes(teacher: Segmenter) -> None:
    slices, modality = synthetic_slices(seed=99, cases=1, volumes=1)
    predictor = Predictor(teacher)
    scores: dict[str, list[float]] = {"teacher": [], "box": []}
    for number in [modality.index(code) for code in range(len(MODALITIES))]:
        image, mask = slices[number]
        labels, boxes = tight_boxes(mask)
        labels, boxes = labels[:2], boxes[:2]
        for name, segs in (
            ("teacher", predictor.predict(image, boxes, is_3d=False)),
            ("box", filled_boxes(mask.shape, boxes)),
        ):
            scores[name] += [dsc(mask == label, segs == order) for order, label in enumerate(labels, start=1)]
    assert np.nanmean(scores["teacher"]) > np.nanmean(scores["box"]) + 0.02
