"""Names of the assets. What belongs here: which asset a variant reads, in one place."""

from pipelines.base.variants import Variant


def distillation_asset(variant: Variant, name: str) -> list[str]:
    """Return the key of an asset of a variant's distillation: its plan, teacher embeddings or distilled student.

    Plan and embeddings of the proposed model carry no prefix, since variants share them.
    """
    if not variant.owns_distillation:
        return ["proposed", name] if name == "student_distilled" else [name]
    shared = not variant.is_ablation and name != "student_distilled"
    return [name] if shared else [variant.name, name]
