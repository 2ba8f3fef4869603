"""Who asks for a teacher's cached answers. What belongs here: the name of a user, its stage and its settings.

Not here: which caches of the graph there are (`pipelines.teacher.assets`), answering (`caches`).
"""

from collections.abc import Callable
from dataclasses import dataclass

from medsam_core.base.config import StageConfig
from medsam_core.learning.stages import Stage
from pipelines.base.profile import Profile
from pipelines.base.variants import Variant


@dataclass(frozen=True)
class CacheUser:
    """One user of a cache.

    Attributes:
        name: Whom `medsam caches` names; with the kind of answers it is unique.
        stage: Whose question is asked about whose plan.
        settings: Returns the settings of the stage in a profile; None where it asks no teacher there, or is left out.
    """

    name: str
    stage: Stage
    settings: Callable[[Profile], StageConfig | None]

    def config(self, profile: Profile) -> StageConfig:
        """Return the settings of the stage.

        Raises:
            ValueError: If the profile leaves the stage out.
        """
        config = self.settings(profile)
        if config is None:
            raise ValueError(f"{self.stage.section}: expected settings in profile {profile.name}, found none; add them")
        return config


def variant_user(variant: Variant, stage: Stage) -> CacheUser:
    """Return a stage of a variant as a user; it uses none where its settings ask no teacher."""

    def settings(profile: Profile) -> StageConfig | None:
        config = variant.stage_config(profile, stage)
        return config if stage.asks(config) else None

    return CacheUser(variant.name, stage, settings)
