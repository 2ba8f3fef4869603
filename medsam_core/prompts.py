"""Names that models registered by earlier versions import from here. What belongs here: those names alone.

Not here: boxes and what is done to them (`medsam_core.imaging.prompts`).
"""

from medsam_core.imaging.prompts import inclusive_to_half_open

__all__ = ["inclusive_to_half_open"]
