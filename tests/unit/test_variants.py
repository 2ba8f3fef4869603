"""The proposed model and its ablations: what each changes, and what it shares."""

import pytest

from medsam_core.learning.stages import DISTILLATION, FINETUNING
from pipelines.base.asset_keys import distillation_asset
from pipelines.base.profile import Profile, ProfileError, load_profile
from pipelines.base.variants import ABLATIONS, PROPOSED, VARIANTS, Variant
from pipelines.teacher.cache_user import variant_user

BY_NAME = {variant.name: variant for variant in VARIANTS}


@pytest.fixture(params=["sample", "real", "paper"])
def profile(request: pytest.FixtureRequest) -> Profile:
    return load_profile(request.param)


def test_the_table_holds_the_papers_ablations_beside_the_proposed_model() -> None:
    assert list(BY_NAME) == ["proposed", "no_mask_distillation", "no_mixing", "no_distillation_augmentation", "pyramid"]
    assert [variant.is_ablation for variant in VARIANTS] == [False, True, True, True, True]


def test_the_proposed_model_is_the_profile_unchanged(profile: Profile) -> None:
    assert PROPOSED.distillation(profile) == profile.distillation
    assert PROPOSED.finetuning(profile) == profile.finetuning
    assert PROPOSED.student(profile) == profile.student


@pytest.mark.parametrize("variant", ABLATIONS, ids=lambda variant: variant.name)
def test_an_ablation_stops_at_the_ablation_epoch_and_changes_one_thing(variant: Variant, profile: Profile) -> None:
    shorter = profile.finetuning.model_copy(update={"epochs": profile.ablation_epochs})
    assert shorter != profile.finetuning
    if variant.name == "no_mask_distillation":
        assert variant.finetuning(profile) == shorter.model_copy(update={"mask_distillation": False})
        assert variant.distillation(profile) == profile.distillation
    elif variant.neck is not None and variant.neck == profile.student.neck:
        assert variant.student(profile) == profile.student, (
            "nothing to change: its distilled encoder is the proposed one"
        )
    else:
        assert variant.finetuning(profile) == shorter
        assert (variant.distillation(profile) != profile.distillation) != (variant.student(profile) != profile.student)


def test_no_mixing_keeps_the_geometric_augmentation(profile: Profile) -> None:
    changed, kept = BY_NAME["no_mixing"].distillation(profile), profile.distillation
    assert changed.augmentation.mixing == ("none",)
    assert changed.augmentation.model_copy(update={"mixing": kept.augmentation.mixing}) == kept.augmentation
    assert changed.model_copy(update={"augmentation": kept.augmentation}) == kept


def test_no_augmentation_means_none_whatever_the_profile_turns_on() -> None:
    everything = {"augmentation": {"rotate_right_angles": True, "horizontal_flip": 1.0, "vertical_flip": 1.0}}
    profile = load_profile("sample", {"distillation": everything})
    augmentation = BY_NAME["no_distillation_augmentation"].distillation(profile).augmentation
    assert augmentation.mixing == ("none",)
    assert not augmentation.rotate_right_angles
    assert augmentation.crop == augmentation.horizontal_flip == augmentation.vertical_flip == 0


def test_an_ablation_without_changes_to_distillation_reads_the_proposed_models_assets() -> None:
    variant = BY_NAME["no_mask_distillation"]
    assert not variant.owns_distillation
    assert distillation_asset(variant, "student_distilled") == ["proposed", "student_distilled"]
    for name in ("distillation_plan", "teacher_embeddings"):
        assert distillation_asset(variant, name) == distillation_asset(PROPOSED, name) == [name]


@pytest.mark.parametrize("name", ["no_mixing", "no_distillation_augmentation"])
def test_an_ablation_of_distillation_has_assets_of_its_own(name: str) -> None:
    assert BY_NAME[name].owns_distillation
    for asset in ("distillation_plan", "teacher_embeddings", "student_distilled"):
        assert distillation_asset(BY_NAME[name], asset) == [name, asset]


def test_a_profile_may_leave_the_teachers_masks_out_of_every_variant() -> None:
    profile = load_profile("sample", {"finetuning": {"mask_distillation": False}})
    assert not any(variant.finetuning(profile).mask_distillation for variant in VARIANTS)
    assert variant_user(PROPOSED, FINETUNING).settings(profile) is None
    assert variant_user(PROPOSED, DISTILLATION).settings(profile) == profile.distillation


def test_the_pyramid_is_another_student_on_the_same_grid(profile: Profile) -> None:
    student = BY_NAME["pyramid"].student(profile)
    assert student.neck == "pyramid"
    assert student.geometry == profile.student.geometry
    assert (student.backbone, student.image_size) == (profile.student.backbone, profile.student.image_size)


def test_the_pyramid_distils_its_own_encoder_from_the_proposed_models_plan_and_cache() -> None:
    variant = BY_NAME["pyramid"]
    assert distillation_asset(variant, "student_distilled") == ["pyramid", "student_distilled"]
    for name in ("distillation_plan", "teacher_embeddings"):
        assert distillation_asset(variant, name) == [name]


def test_a_student_without_a_choice_of_necks_has_no_pyramid() -> None:
    profile = load_profile("sample", {"student": {"backbone": "stand_in"}})
    assert PROPOSED.student(profile).backbone == "stand_in"
    with pytest.raises(ProfileError, match=r"variant pyramid: expected a student\.backbone with a choice .* stand_in"):
        BY_NAME["pyramid"].student(profile)
