"""Tuning a teacher's decoder on the training patients. What belongs here: its plan, and whose cache it reads.

Not here: training it (`pipelines.training.students.adapt`), whether the tuned teacher is kept
(`pipelines.evaluation.teacher_choice`), the stage itself (`medsam_core.learning.stages.Adaptation`). A profile without
`teacher_adaptation` leaves all of it out.
"""

from medsam_core.learning.stages import ADAPTATION
from pipelines.base.results import TaskResult
from pipelines.base.workspace import Workspace
from pipelines.teacher.cache_user import CacheUser
from pipelines.training import plans
from storage.base.references import ArtefactRef

USER = CacheUser("adaptation", ADAPTATION, lambda profile: profile.teacher_adaptation)
"""Reads the teacher's embeddings of the images that the adaptation shows."""


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
