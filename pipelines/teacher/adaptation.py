"""Tuning a teacher's decoder on the training patients. What belongs here: its plan, whose cache it reads, its training.

Not here: whether the tuned teacher is kept (`pipelines.evaluation.teacher_choice`), the stage itself
(`medsam_core.learning.stages.Adaptation`). A profile without `teacher_adaptation` leaves all of it out.
"""

from collections.abc import Callable
from dataclasses import dataclass

from medsam_core.base.config import StageConfig
from medsam_core.learning.stages import ADAPTATION
from pipelines.base.results import TaskResult
from pipelines.base.values import CacheRef, TeacherRef
from pipelines.base.workspace import Workspace
from pipelines.runs.launch import Launch
from pipelines.teacher.cache_user import CacheUser
from pipelines.training import plans, students
from storage.base.references import ArtefactRef

Log = Callable[[str], None]

USER = CacheUser("adaptation", ADAPTATION, lambda profile: profile.teacher_adaptation)
"""Reads the teacher's embeddings of the images that the adaptation shows."""


@dataclass(frozen=True)
class AdaptationInputs:
    """Values of the assets that an adaptation reads.

    Attributes:
        release: The release.
        plan: The plan of the stage.
        teacher: The teacher as given.
        cache: Its embeddings for the plan.
    """

    release: ArtefactRef
    plan: ArtefactRef
    teacher: TeacherRef
    cache: CacheRef


def adaptation_plan(workspace: Workspace, release: ArtefactRef) -> TaskResult[ArtefactRef]:
    """Build the plan of the stage; where the profile leaves the stage out, an empty one, which counts as no work."""
    config = workspace.profile.teacher_adaptation
    if config is not None:
        return plans.make_plan(workspace, release, config, ADAPTATION)
    empty = workspace.artefacts.make("plan", {"stage": ADAPTATION.name, "settings": None}, lambda _folder: {"slots": 0})
    return TaskResult(empty.reference(), empty.fingerprint, 0, 0, {"slots": 0, "why": left_out(workspace)})


def left_out(workspace: Workspace) -> str:
    """Say that the profile has no such stage."""
    return f"profile {workspace.profile.name} has no {ADAPTATION.section}: the teacher stays as given"


def adapt(
    workspace: Workspace, config: StageConfig, inputs: AdaptationInputs, launch: Launch, log: Log
) -> TaskResult[ArtefactRef]:
    """Tune the teacher's prompt encoder and mask decoder; the result is a whole model.

    Raises:
        FingerprintMismatchError: If the embeddings are to another plan, or another teacher's.
    """
    of_stage = students.StageInputs(inputs.release, None, inputs.plan, inputs.teacher, inputs.cache)
    return students.adapt(workspace, config, of_stage, launch, log)
