"""Profiles: the three that ship, and what a wrong one is told."""

from pathlib import Path

import pytest
import yaml

from pipelines.base.profile import Profile, ProfileError, load_profile
from storage.shards import codec as shard_codec
from tests.paper_stages import PAPER_DISTILLATION, PAPER_FINETUNING


def write(folder: Path, text: str, name: str = "own") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return str(path)


def problems(name: str) -> list[str]:
    with pytest.raises(ProfileError) as caught:
        load_profile(name)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize(
    ("name", "backbone", "size", "teacher", "source"),
    [
        ("sample", "repvit_m0_9", 128, "stand_in", "synthetic"),
        ("real", "repvit_m1_1", 256, "lite_medsam", "folder"),
        ("paper", "repvit_m1_1", 1024, "medsam_vit_b", "folder"),
    ],
)
def test_a_shipped_profile_is_what_the_design_says(
    name: str, backbone: str, size: int, teacher: str, source: str
) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert (profile.student.backbone, profile.student.image_size) == (backbone, size)
    assert (profile.teacher.kind, profile.teacher.image_size) == (teacher, size)
    assert profile.source.kind == source


def test_a_profile_survives_its_own_json() -> None:
    for name in ("sample", "real", "paper"):
        profile = load_profile(name)
        assert Profile.model_validate_json(profile.model_dump_json()) == profile


LATER = {"box_jitter_share": 0.1, "box_jitter_inward": True}
"""Settings of a stage that earlier versions did not have, at other values than those versions acted by."""


@pytest.mark.parametrize("name", ["sample", "paper"])
def test_settings_of_later_versions_are_dumped_where_they_are_set_and_nowhere_else(name: str) -> None:
    before = load_profile(name).finetuning.model_dump(mode="json")
    assert not set(LATER) & set(before)
    assert load_profile(name, {"finetuning": LATER}).finetuning.model_dump(mode="json") == {**before, **LATER}


def test_paper_distillation_is_table_3() -> None:
    stage = load_profile("paper").distillation
    assert (stage.epochs, stage.microbatch_size, stage.microbatches_per_step) == (9, 10, 3)
    assert stage.epoch_slots is None, "an epoch is as long as the data set"
    optimiser = stage.optimiser
    assert (optimiser.learning_rate, optimiser.weight_decay) == (5e-4, 0.025)
    assert (optimiser.epsilon, optimiser.clip_norm) == (1e-7, 0.2)
    assert {optimiser.rate(epoch) for epoch in range(9)} == {5e-4}, "no decay"
    augmentation = stage.augmentation
    assert (augmentation.horizontal_flip, augmentation.vertical_flip, augmentation.crop) == (0.5, 0.5, 0.5)
    assert (augmentation.crop_scale, augmentation.crop_ratio) == ((0.5, 1.0), (3 / 4, 4 / 3))
    assert set(augmentation.mixing) == {"mixpatch", "cutmix", "none"}
    assert len(augmentation.mixing) == 3
    assert augmentation.mixpatch_grid == 4
    assert not augmentation.rotate_right_angles


def test_paper_finetuning_is_table_2() -> None:
    stage = load_profile("paper").finetuning
    assert (stage.epochs, stage.microbatch_size, stage.microbatches_per_step) == (9, 10, 3)
    assert (stage.prompts_per_slot, stage.box_jitter_px, stage.mask_distillation) == (1, 5, True)
    optimiser = stage.optimiser
    base = 1e-3 * 10 * 3 / 256
    rates = [optimiser.rate(epoch) for epoch in range(9)]
    assert rates == pytest.approx([1e-4, base, *[0.1 * base] * 7], rel=1e-12)
    assert (optimiser.weight_decay, optimiser.clip_norm) == (0.01, 0.2)
    augmentation = stage.augmentation
    assert (augmentation.horizontal_flip, augmentation.vertical_flip) == (0.5, 0.5)
    assert (augmentation.crop, augmentation.mixing, augmentation.rotate_right_angles) == (0.0, ("none",), False)


def test_paper_profile_agrees_with_the_core_constants() -> None:
    profile = load_profile("paper")
    assert profile.distillation.model_copy(update={"cached_epochs": None}) == PAPER_DISTILLATION
    assert profile.finetuning.model_copy(update={"cached_epochs": None}) == PAPER_FINETUNING
    assert profile.ablation_epochs == 4


def test_every_wrong_setting_is_listed_at_once(tmp_path: Path) -> None:
    text = """
extends: sample
distillation: {epochs: 0, optimiser: {learning_rat: 3}}
student: {image_size: 100}
cache: {mode: sometimes}
bogus: 1
"""
    lines = problems(write(tmp_path, text))
    names = {line.split(":")[0] for line in lines}
    assert names == {
        "distillation.epochs",
        "distillation.optimiser.learning_rat",
        "student.image_size",
        "cache.mode",
        "bogus",
    }
    assert len(lines) == 5
    found = dict(line.split(":", 1) for line in lines)
    assert "found 0" in found["distillation.epochs"]
    assert "'sometimes'" in found["cache.mode"]
    assert "'cached', 'online' or 'prefer_cached'" in found["cache.mode"]


def test_contradictions_are_listed_beside_wrong_settings(tmp_path: Path) -> None:
    text = """
extends: paper
student: {image_size: 512}
cache: {mode: never}
split: {validation: 0.5, test: 0.5}
finetuning: {epochs: 0}
ablation_epochs: 99
"""
    found = "\n".join(problems(write(tmp_path, text)))
    for told in ("cache.mode", "finetuning.epochs", "teacher.image_size: expected", "split: expected validation"):
        assert told in found
    assert "ablation_epochs: expected at most" not in found, "what a wrong setting would have allowed is unknown"


def test_every_contradiction_between_settings_is_listed_at_once(tmp_path: Path) -> None:
    text = """
extends: paper
student: {image_size: 512}
ablation_epochs: 10
teacher_pretraining: {epochs: 1}
finetuning: {augmentation: {mixing: [cutmix]}}
split: {validation: 0.5, test: 0.5}
store: {codec: lz4, level: 10, levels: {CTs: 1}}
"""
    lines = "\n".join(problems(write(tmp_path, text)))
    for name in ("teacher.image_size", "ablation_epochs", "teacher_pretraining", "finetuning.augmentation.mixing"):
        assert name in lines
    assert "split: expected validation + test below 1" in lines
    assert "store.level: expected at most 9 with lz4" in lines
    assert "store.levels: expected modalities (CT, " in lines
    assert shard_codec.MAX_LZ4_LEVEL == 9


def test_levels_are_by_modality_and_any_of_them_may_change(tmp_path: Path) -> None:
    assert load_profile("paper").store.levels == {"CT": 1}
    own = load_profile(write(tmp_path, "extends: paper\nstore: {codec: lz4, level: 9, levels: {CT: 2, MR: 1}}\n"))
    assert (own.store.level, own.store.levels) == (9, {"CT": 2, "MR": 1})


def test_an_unknown_key_is_an_error_and_names_itself(tmp_path: Path) -> None:
    (line,) = problems(write(tmp_path, "extends: real\nsplit: {tests: 0.2}\n"))
    assert line.startswith("split.tests:")


def test_extends_changes_only_what_is_named_however_deep(tmp_path: Path) -> None:
    text = "extends: sample\nname: own\ndistillation: {optimiser: {clip_norm: 0.5}}\n"
    own, sample = load_profile(write(tmp_path, text)), load_profile("sample")
    optimiser = sample.distillation.optimiser.model_copy(update={"clip_norm": 0.5})
    stage = sample.distillation.model_copy(update={"optimiser": optimiser})
    assert own == sample.model_copy(update={"name": "own", "distillation": stage})
    assert own.distillation.optimiser.clip_norm != sample.distillation.optimiser.clip_norm


def test_a_profile_without_an_adaptation_is_written_as_before() -> None:
    assert "teacher_adaptation" not in load_profile("sample").model_dump(mode="json")
    adapting = load_profile("sample", {"teacher_adaptation": {"epochs": 2}})
    assert adapting.model_dump(mode="json")["teacher_adaptation"]["epochs"] == 2
    assert "mask_distillation_rule" not in load_profile("sample").model_dump(mode="json")["finetuning"]


@pytest.mark.parametrize("stage", ["finetuning", "teacher_adaptation"])
def test_stages_that_learn_masks_do_not_mix_images(stage: str) -> None:
    with pytest.raises(ProfileError, match=rf"{stage}.augmentation.mixing: expected \('none',\)"):
        load_profile("sample", {stage: {"augmentation": {"mixing": ["cutmix"]}}})


STAGES_OF_A_PROFILE = ("teacher_pretraining", "teacher_adaptation", "distillation", "finetuning")


@pytest.mark.parametrize("stage", STAGES_OF_A_PROFILE)
@pytest.mark.parametrize(
    ("earlier", "present"), [("group_size", "microbatch_size"), ("groups_per_step", "microbatches_per_step")]
)
def test_a_setting_of_a_stage_is_read_under_its_earlier_name_too(
    tmp_path: Path, stage: str, earlier: str, present: str
) -> None:
    by_earlier = write(tmp_path, f"extends: sample\n{stage}: {{{earlier}: 3}}\n", "earlier")
    by_present = write(tmp_path, f"extends: sample\n{stage}: {{{present}: 3}}\n", "present")
    assert getattr(getattr(load_profile(by_earlier), stage), present) == 3
    assert load_profile(by_earlier) == load_profile(by_present) == load_profile("sample", {stage: {earlier: 3}})
    onto_earlier = write(tmp_path, f"extends: {by_earlier}\n{stage}: {{{present}: 4}}\n", "onto")
    assert getattr(getattr(load_profile(onto_earlier), stage), present) == 4
    wrong = problems(write(tmp_path, f"extends: sample\nbogus: 1\n{stage}: {{{earlier}: 3, {present}: 3}}\n", "both"))
    assert {line.split(":")[0] for line in wrong} == {"bogus", f"{stage}.{earlier}"}
    assert problems(write(tmp_path, f"extends: sample\nsplit: {{{earlier}: 3}}\n"))[0].startswith(f"split.{earlier}:")


def test_stages_are_written_under_the_names_that_fingerprints_have() -> None:
    for name in ("sample", "real", "paper"):
        written = load_profile(name).model_dump(mode="json")
        for stage in STAGES_OF_A_PROFILE:
            if written.get(stage):
                assert list(written[stage])[:3] == ["epochs", "group_size", "groups_per_step"]
                assert not {key for key in written[stage] if "microbatch" in key}


def test_extends_follows_a_chain_of_files(tmp_path: Path) -> None:
    middle = write(tmp_path, "extends: sample\nablation_epochs: 3\nseeds: {plan: 5}\n", "middle")
    own = load_profile(write(tmp_path, f"extends: {middle}\nseeds: {{init: 6}}\n"))
    assert (own.ablation_epochs, own.seeds.plan, own.seeds.init) == (3, 5, 6)


def test_a_list_is_replaced_not_merged(tmp_path: Path) -> None:
    own = load_profile(write(tmp_path, "extends: paper\nfinetuning: {optimiser: {decay_epochs: [5, 7]}}\n"))
    assert load_profile("paper").finetuning.optimiser.decay_epochs == (2,)
    assert own.finetuning.optimiser.decay_epochs == (5, 7)


def test_profiles_that_extend_in_a_circle_are_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(f"extends: {second}\n")
    second.write_text(f"extends: {first}\n")
    with pytest.raises(ProfileError, match=r"circle.*first.*second.*first"):
        load_profile(str(first))


def test_changes_replace_the_files_settings() -> None:
    changed = load_profile("sample", {"seeds": {"plan": 9}})
    assert (changed.seeds.plan, changed.seeds.init) == (9, load_profile("sample").seeds.init)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "expected a mapping"),
        ("name: [\n", "expected YAML"),
        ("extends: nowhere\n", "paper, real, sample"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        load_profile(write(tmp_path, text))


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ProfileError, match=r"paper, real, sample.*found 'papr'"):
        load_profile("papr")


def test_stages_have_no_default(tmp_path: Path) -> None:
    lines = problems(write(tmp_path, yaml.safe_dump({"name": "own"})))
    assert {line.split(":")[0] for line in lines} == {"distillation", "finetuning"}


@pytest.mark.parametrize("name", ["sample", "real", "paper"])
def test_no_microbatch_is_asked_about_for_two_shards_of_a_cache(name: str) -> None:
    """The teacher answers whole microbatches; a shard's border within one would have it answered twice."""
    profile = load_profile(name)
    for stage in (profile.distillation, profile.finetuning):
        assert profile.cache.slots_per_shard % stage.microbatch_size == 0
    assert profile.cache.slots_per_shard % profile.cache.slots_per_chunk == 0
