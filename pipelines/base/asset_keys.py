"""Names of assets. What belongs here: the assets that a variant reads, and those that a new release makes again."""

from collections.abc import Mapping

from pipelines.base.variants import PROPOSED, Variant
from storage.releases.release import DISTILLATION
from storage.releases.splits import SPLITS


def distillation_asset(variant: Variant, name: str) -> list[str]:
    """Return the key of an asset of a variant's distillation: its plan, teacher embeddings or distilled student.

    The keys of the proposed model's plan and embeddings have no prefix, since other variants share them.
    """
    if name == "student_distilled":
        return [variant.name if variant.owns_distillation else PROPOSED.name, name]
    shared = not variant.owns_plan or variant is PROPOSED
    return [name] if shared else [variant.name, name]


def recomputed(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """List the assets that are made again when one release replaces another, by the fingerprints of their splits.

    Assets that depend only on the training split are kept while its fingerprint is the same.
    """
    changed = {split for split in (*SPLITS, DISTILLATION) if old.get(split) != new.get(split)}
    lines = []
    if "train" in changed:
        lines += ["pixel_statistics", "distillation_plan and finetuning_plan", "teacher_checkpoint, if trained here"]
        lines += ["adaptation_plan, adaptation_embeddings and adapted_teacher, if the teacher is adapted"]
        lines += ["teacher_embeddings and teacher_logits", "student_distilled and student_finetuned of every variant"]
    elif DISTILLATION in changed:
        lines += ["pixel_statistics", "distillation_plan", "teacher_embeddings"]
        lines += ["student_distilled and student_finetuned of every variant"]
    if changed:
        lines += [
            "baseline_predictions and baseline_scores",
            "predictions, scores and evaluation_report of every variant",
        ]
        lines += ["ablation_report", "registered_model_report"]
    return lines
