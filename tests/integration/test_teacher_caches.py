"""Teacher caches of a finished run: checked, refused when something else was asked for, budgeted, shared, cleared away.

What belongs here: `pipelines.teacher.caches`, `.cache_budget` and `.cache_care` on a real cache of the tiny profile.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from medsam_core.learning.questions import AnswerKind
from medsam_core.learning.stages import DISTILLATION, FINETUNING
from pipelines.base.values import CacheRef, TeacherRef
from pipelines.base.variants import PROPOSED
from pipelines.teacher import cache_budget, cache_care, caches
from pipelines.teacher import tasks as teacher
from pipelines.teacher.cache_budget import BudgetError
from pipelines.teacher.cache_user import variant_user
from pipelines.teacher.caches import CacheWork
from pipelines.training import plans, students
from storage.answers import cache_locks, cache_writer
from storage.answers.teacher_cache import TeacherCache
from storage.base.blobs import LocalBlobs
from storage.base.errors import BusyError, FingerprintMismatchError, IntegrityError, StorageError
from tests.integration.conftest import Finished
from tests.integration.deployment import DAGSTER, TINY, Deployment
from tests.unit.store_helpers import files_below

BOTH: tuple[AnswerKind, ...] = ("embeddings", "logits")
USERS = {stage.question.kind: variant_user(PROPOSED, stage) for stage in (DISTILLATION, FINETUNING)}
"""The proposed model's stages by what they ask."""
PLANS = {"embeddings": "distillation_plan", "logits": "finetuning_plan"}


def silent(_text: str) -> None:
    """Stand for a log."""


def never(*_arguments: Any, **_named: Any) -> Any:
    """Stand for what starts a trainer."""
    raise AssertionError("nothing is to be trained")


def inputs_of(deployment: Deployment, answers: AnswerKind) -> caches.Inputs:
    plan, release = (deployment.value(name) for name in (PLANS[answers], "dataset_release"))
    return deployment.value("teacher_checkpoint", TeacherRef), plan, release


def work_of(deployment: Deployment, answers: AnswerKind, inputs: caches.Inputs | None = None) -> CacheWork:
    return CacheWork(deployment.workspace, USERS[answers], inputs or inputs_of(deployment, answers))


def opened(work: CacheWork) -> TeacherCache:
    return TeacherCache(work.root, work.spec.made_from)


def make(deployment: Deployment, answers: AnswerKind, inputs: caches.Inputs | None = None) -> Any:
    """Do what the asset does, in one process."""
    given = inputs or inputs_of(deployment, answers)
    space = deployment.workspace
    batches = caches.plan_cache(space, USERS[answers], given, silent)
    written = [caches.write_cache_parts(space, USERS[answers], given, batch, silent) for batch in batches]
    return caches.publish_cache(space, USERS[answers], given, written)


def changed(deployment: Deployment, folder: Path, **sections: Any) -> Deployment:
    """Return the same deployment under a profile with other settings."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump({"extends": str(TINY), **sections}))
    return Deployment(deployment.home, str(path), deployment.changes)


@pytest.fixture
def own(finished: Finished, tmp_path: Path) -> Deployment:
    """A copy of the finished run's state that a test may change."""
    return finished.deployment.moved_to(tmp_path / "home")


@pytest.mark.parametrize("answers", BOTH)
def test_slots_computed_again_are_what_the_cache_holds(finished: Finished, answers: AnswerKind) -> None:
    deployment = finished.deployment
    found = caches.check_answers(deployment.workspace, USERS[answers], inputs_of(deployment, answers), 5, seed=1)
    assert len(found) == 5
    assert (found["error"] <= found["allowed"] / 5).all()


@pytest.mark.parametrize("answers", BOTH)
def test_the_check_finds_answers_to_other_images(own: Deployment, answers: AnswerKind) -> None:
    """Each microbatch's answers are put at the next microbatch's place, in a cache whose files are all sound."""
    work = work_of(own, answers)
    name = next(iter(work.spec.arrays))
    values = opened(work).read(name, 0, work.spec.n_slots)
    parts = work.parts(work.reader())
    shutil.rmtree(Path(work.root.url))
    rolled = np.roll(values, work.plan.config.microbatch_size, axis=0)
    for part in parts:
        cache_writer.write_part(work.root, work.spec, part, {name: rolled[part.start : part.stop]})
    cache_writer.publish(work.root, work.spec, parts)
    found = caches.check_answers(own.workspace, USERS[answers], inputs_of(own, answers), 6, seed=1)
    assert (found["error"] > 3 * found["allowed"]).all()


@pytest.mark.parametrize("answers", BOTH)
def test_a_slots_answer_does_not_depend_on_how_the_cache_is_cut(
    own: Deployment, answers: AnswerKind, tmp_path: Path
) -> None:
    """Parts of three slots reach over the borders of microbatches."""
    whole = work_of(own, answers)
    cut = changed(own, tmp_path / "cut", cache={"slots_per_chunk": 1, "slots_per_shard": 3, "shards_per_part": 1})
    make(cut, answers)
    other = work_of(cut, answers)
    assert other.digest != whole.digest
    name = next(iter(whole.spec.arrays))
    found = [opened(work).read(name, 0, work.spec.n_slots) for work in (whole, other)]
    np.testing.assert_array_equal(*found)


def _other_weights(deployment: Deployment, folder: Path) -> tuple[Deployment, caches.Inputs]:
    from medsam_core.models.checkpoints import load_model, save_model

    given = deployment.folder("teacher_checkpoint") / "model.safetensors"
    model = load_model(given)
    next(model.parameters()).data.mul_(1.5)
    save_model(folder / "other.safetensors", model, {"role": "teacher"})
    other = Deployment(deployment.home, deployment.profile, {"MEDSAM_TEACHER": str(folder / "other.safetensors")})
    _, plan, release = inputs_of(deployment, "embeddings")

    return other, (teacher.make_teacher(other.workspace, release, never, silent).value, plan, release)


def _other_plan_seed(deployment: Deployment, _folder: Path) -> tuple[Deployment, caches.Inputs]:
    other = Deployment(deployment.home, deployment.profile, {"MEDSAM_SEED": "9"})
    model, _, release = inputs_of(deployment, "embeddings")
    config = PROPOSED.distillation(other.workspace.profile)
    plan = plans.make_plan(other.workspace, release, config, DISTILLATION).value
    return other, (model, plan, release)


def _other_augmentation(deployment: Deployment, folder: Path) -> tuple[Deployment, caches.Inputs]:
    other = changed(deployment, folder, distillation={"augmentation": {"crop": 0.9}})
    model, _, release = inputs_of(deployment, "embeddings")
    config = PROPOSED.distillation(other.workspace.profile)
    return other, (model, plans.make_plan(other.workspace, release, config, DISTILLATION).value, release)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_other_weights, r"teacher: expected '\w+', found '\w+'"),
        (_other_plan_seed, r"plan\.seed: expected 9, found 0"),
        (_other_augmentation, r"plan\.augmentation\.crop: expected 0\.9, found 0\.3"),
    ],
)
def test_a_cache_of_something_else_is_refused_with_the_difference_and_made_anew(
    own: Deployment, tmp_path: Path, change: Callable[[Deployment, Path], tuple[Deployment, caches.Inputs]], said: str
) -> None:
    old = work_of(own, "embeddings")
    other, inputs = change(own, tmp_path / "other")
    _require_another(old, other, inputs, said)


def test_other_preprocessing_is_another_cache(own: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    old = work_of(own, "embeddings")
    monkeypatch.setattr(caches, "ANSWER_VERSION", caches.ANSWER_VERSION + 1)
    _require_another(old, own, inputs_of(own, "embeddings"), r"version: expected \d+, found \d+")


def _require_another(old: CacheWork, other: Deployment, inputs: caches.Inputs, said: str) -> None:
    """Assert that the old cache serves nobody who asks with these inputs, and that theirs is made beside it."""
    before = files_below(Path(old.root.url))
    new = work_of(other, "embeddings", inputs)
    assert new.root != old.root
    with pytest.raises(FingerprintMismatchError, match=said):
        TeacherCache(old.root, new.spec.made_from)
    part = new.parts(new.reader())[0]
    answers = {"embeddings": np.zeros((part.stop - part.start, *new.spec.arrays["embeddings"].tail), np.float32)}
    with pytest.raises(FingerprintMismatchError, match=said):
        cache_writer.write_part(old.root, new.spec, part, answers)
    with pytest.raises(StorageError, match="expected a published teacher cache, found none"):
        caches.check_answers(other.workspace, USERS["embeddings"], inputs, 1)
    result = make(other, "embeddings", inputs)
    assert (result.made, result.reused) == (new.spec.n_parts, 0)
    assert result.fingerprint != opened(old).fingerprint
    assert files_below(Path(old.root.url)) == before


def test_of_another_release_only_the_parts_that_show_its_changes_are_made(own: Deployment) -> None:
    """The training's own expectation, a fingerprint over every slot's content, refuses the cache as it was."""
    old_inputs = inputs_of(own, "embeddings")
    old = work_of(own, "embeddings")
    before = old.parts(old.reader())
    shown = own.release().query("split == 'train'")["case_id"].iloc[int(old.plan.slots["row"].flat[0])]
    path = own.workspace.settings.data / f"{shown}.npz"
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    arrays["imgs"].flat[0] ^= 1
    np.savez_compressed(path, **arrays)
    own.run(DAGSTER, "job", "execute", "-j", "ingest")
    model, _, _ = old_inputs
    release = own.value("dataset_release")
    config = PROPOSED.distillation(own.workspace.profile)
    inputs = (model, plans.make_plan(own.workspace, release, config, DISTILLATION).value, release)
    work = work_of(own, "embeddings", inputs)
    after = work.parts(work.reader())
    differing = [now for now, then in zip(after, before, strict=True) if now.fingerprint != then.fingerprint]
    assert differing[0].start == 0
    assert cache_writer.missing_parts(work.root, work.spec, after) == differing
    with pytest.raises(FingerprintMismatchError, match="slots: expected"):
        caches.check_answers(own.workspace, USERS["embeddings"], inputs, 1)
    assert make(own, "embeddings", inputs).made == len(differing)


@pytest.mark.parametrize("mode", ["online", "prefer_cached"])
def test_modes_that_ask_online_where_nothing_is_cached(own: Deployment, tmp_path: Path, mode: str) -> None:
    shutil.rmtree(own.workspace.cache_folder("embeddings"))
    other = changed(own, tmp_path / "mode", cache={"mode": mode})
    result = make(other, "embeddings")
    assert (result.value.mode, result.made, result.reused) == ("online", 0, 0)
    assert not any(own.workspace.cache_folder("embeddings").glob("*/parts/*"))


def test_prefer_cached_takes_a_whole_cache_and_no_other(own: Deployment, tmp_path: Path) -> None:
    other = changed(own, tmp_path / "mode", cache={"mode": "prefer_cached"})
    result = make(other, "embeddings")
    assert result.value == dataclasses.replace(own.value("teacher_embeddings", CacheRef), mode="cached")
    (Path(work_of(own, "embeddings").root.url) / "parts" / "part-00001.json").unlink()
    partial = make(other, "embeddings")
    assert partial.value.mode == "online"
    assert "1 of 2 parts are missing" in partial.notes["cache"]


def test_a_cache_beyond_the_limit_is_refused_with_what_would_fit(own: Deployment, tmp_path: Path) -> None:
    """Of two cached epochs of 16 slots one fits."""
    result = make(own, "logits")
    work = work_of(own, "logits")
    limit = int(result.notes["bytes per slot"] * 24)
    shutil.rmtree(own.workspace.cache_folder("logits"))
    small = changed(own, tmp_path / "small", cache={"max_bytes": limit, "slots_per_shard": 16})
    with pytest.raises(BudgetError) as caught:
        make(small, "logits")
    message = str(caught.value)
    assert message.startswith(f"teacher cache for finetuning: {work.spec.n_slots} slots of ")
    for text in (
        "cache.max_bytes allows",
        "finetuning.cached_epochs 1 (now 2)",
        "cache.mode online",
        "cache.max_bytes",
    ):
        assert text in message
    assert not any(own.workspace.cache_folder("logits").glob("*/parts/*"))


def test_a_cache_beyond_the_disk_is_refused_before_the_first_part(
    own: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(own.workspace.cache_folder("embeddings"))
    monkeypatch.setattr(cache_budget, "_free_bytes", lambda _workspace: 5000)
    with pytest.raises(BudgetError, match=r"has 5 kB free and [\d.]+ kB are missing; what would fit: .*larger disk"):
        make(own, "embeddings")
    assert not any(own.workspace.cache_folder("embeddings").glob("*/parts/*"))


def test_metadata_state_the_estimate_and_the_break_even(own: Deployment) -> None:
    shutil.rmtree(own.workspace.cache_folder("logits"))
    notes = make(own, "logits").notes
    assert notes["slots"] == 32
    assert notes["estimated bytes"] == pytest.approx(notes["bytes on disk"], rel=0.3)
    assert notes["estimated hours"] > 0
    assert notes["free bytes"] > 0
    assert "break-even after" in notes["pays"]
    assert set(notes["slices by modality"].columns) >= {"modality"}
    assert "1/510" in notes["error"]


def _grow_old(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (0, 0))


def test_a_cache_that_is_being_made_is_kept_between_its_steps(own: Deployment, tmp_path: Path) -> None:
    other, inputs = _other_plan_seed(own, tmp_path)
    space = other.workspace
    first, *_ = caches.plan_cache(space, USERS["embeddings"], inputs, silent)
    caches.write_cache_parts(space, USERS["embeddings"], inputs, first, silent)
    for work in (work_of(own, "embeddings"), work_of(other, "embeddings", inputs)):
        _grow_old(Path(work.root.url))
    assert cache_care.delete_unused(space, silent, dry_run=False) == 0
    listed = cache_care.list_caches(space).query("answers == 'embeddings'")
    assert sorted(listed["state"]) == ["published", "unfinished"]
    assert set(listed["pinned_by"]) == {"proposed"}
    assert make(other, "embeddings", inputs).reused == 1, "the part that was there is still there"
    assert opened(work_of(other, "embeddings", inputs))


def test_a_deletion_that_was_cut_short_is_ended_by_the_next(own: Deployment) -> None:
    folder = own.workspace.cache_folder("embeddings") / "0123456789abcdef.deleted" / "embeddings"
    folder.mkdir(parents=True)
    (folder / "left").write_bytes(b"half")
    assert len(cache_care.list_caches(own.workspace)) == 2
    cache_care.delete_unused(own.workspace, silent, dry_run=False)
    assert not folder.parent.exists()
    assert opened(work_of(own, "embeddings"))


def test_answers_that_are_being_read_are_not_replaced(own: Deployment) -> None:
    work = work_of(own, "embeddings")
    cache = opened(work)
    before = cache.read("embeddings", 0, work.spec.n_slots)
    part = work.parts(work.reader())[0]
    changed_part = dataclasses.replace(part, fingerprint="0" * 64)
    answers = {"embeddings": before[part.start : part.stop] + 1}
    with cache_locks.reading_access(work.root):
        with pytest.raises(BusyError, match="in use by process"):
            cache_writer.write_part(work.root, work.spec, changed_part, answers)
        np.testing.assert_array_equal(opened(work).read("embeddings", 0, work.spec.n_slots), before)
    cache_writer.write_part(work.root, work.spec, changed_part, answers)
    with pytest.raises(StorageError, match="expected a published teacher cache"):
        cache_locks.reading_access(work.root)


@pytest.mark.parametrize("named", ["plan", "teacher"])
def test_training_refuses_answers_to_another_plan_or_of_another_teacher(own: Deployment, named: str) -> None:
    model, plan, release = inputs_of(own, "embeddings")
    stale = dataclasses.replace(own.value("teacher_embeddings", CacheRef), **{named: "f" * 64})
    inputs = students.StageInputs(release, own.value("pixel_statistics"), plan, model, stale)
    with pytest.raises(
        FingerprintMismatchError, match=rf"(?s){named}: expected .*materialise teacher_embeddings again"
    ):
        students.distil(own.workspace, PROPOSED, inputs, never, silent)


def test_nothing_is_checked_where_the_teacher_is_asked_online(own: Deployment, tmp_path: Path) -> None:
    other = changed(own, tmp_path / "mode", cache={"mode": "online"})
    found = caches.check_answers(other.workspace, USERS["logits"], inputs_of(own, "logits"), 3)
    assert found.empty


def test_an_unused_cache_is_named_then_deleted_and_a_used_one_stays(own: Deployment, tmp_path: Path) -> None:
    old = work_of(own, "embeddings")
    listed = cache_care.list_caches(own.workspace).set_index("answers")
    assert listed["pinned_by"].to_dict() == {"embeddings": "proposed", "logits": "proposed"}
    assert cache_care.delete_unused(own.workspace, silent, dry_run=False) == 0

    other, inputs = _other_plan_seed(own, tmp_path)
    make(other, "embeddings", inputs)
    said: list[str] = []
    assert cache_care.delete_unused(own.workspace, said.append, dry_run=False) == 0
    assert "minutes ago" in said[-1] + said[-2] + said[-3], "whoever made it may be about to train from it"
    _grow_old(Path(old.root.url))
    freed = cache_care.delete_unused(own.workspace, said.append, dry_run=True)
    assert freed == sum(len(data) for data in files_below(Path(old.root.url)).values()) > 0
    assert [line for line in said if line.startswith("unused") and old.digest[:16] in line]
    assert opened(old)

    for use in (cache_locks.reading_access(old.root), cache_locks.writing_access(old.root)):
        with use:
            assert cache_care.delete_unused(own.workspace, said.append, dry_run=False) == 0
    assert opened(old), "somebody was at work with it"
    assert "can be freed with --delete" in other.medsam("caches")
    assert f"{freed} bytes freed" in other.medsam("caches", "--delete")
    assert not Path(old.root.url).exists()
    assert opened(work_of(other, "embeddings", inputs))


def test_a_damaged_part_is_refused_by_training_and_made_again_to_the_same_bytes(own: Deployment) -> None:
    work = work_of(own, "embeddings")
    before = files_below(Path(work.root.url))
    shard = next(path for path in sorted(Path(work.root.url).glob("embeddings/c/*/**/*")) if path.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"fails its checksum; delete parts/part-0000\d\.json"):
        opened(work).read("embeddings", 0, work.spec.n_slots)
    number = int(shard.relative_to(Path(work.root.url) / "embeddings" / "c").parts[0])
    LocalBlobs(Path(work.root.url)).delete(f"parts/part-{number:05d}.json")
    assert make(own, "embeddings").made == 1
    assert files_below(Path(work.root.url)) == before


def test_the_job_that_verifies_caches_asks_again_about_both(own: Deployment) -> None:
    own.run(DAGSTER, "job", "execute", "-j", "verify_caches")
    output = (own.home / "output.txt").read_text()
    for asset in ("teacher_embeddings", "teacher_logits"):
        assert f"{asset}: 8 slots computed again, 0 differ" in output
    instance = own.instance
    (run,) = instance.get_runs()
    found = [
        event.dagster_event.asset_check_evaluation_data
        for event in instance.all_logs(run.run_id)
        if event.dagster_event and event.dagster_event.event_type_value == "ASSET_CHECK_EVALUATION"
    ]
    asked = {check.asset_key.to_user_string() for check in found}
    assert asked == {"teacher_embeddings", "teacher_logits", "adaptation_embeddings"}
    assert "adaptation_embeddings: nothing is cached" in output
    assert all(check.passed for check in found)


def test_the_probe_asks_about_whole_microbatches_and_is_kept(own: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of(own, "logits")
    values = opened(work).read("probabilities", 0, work.spec.n_slots)
    asked: list[tuple[int, int]] = []

    def load() -> Callable[[int, int], Any]:
        def answer(start: int, stop: int) -> Any:
            asked.append((start, stop))
            return values[start:stop]

        return answer

    cost = cache_budget.measure(own.workspace, work.spec, "a" * 64, 3, load)
    assert asked == [(0, 9), (0, 9)]
    assert cache_budget.measure(own.workspace, work.spec, "a" * 64, 3, load) == cost
    assert len(asked) == 2
    monkeypatch.setattr(cache_budget, "WARM_UP_S", 0.0)
    cache_budget.measure(own.workspace, work.spec, "b" * 64, 16, load)
    assert asked[2:] == [(0, 16)]
