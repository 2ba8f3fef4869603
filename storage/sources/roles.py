"""Roles of folders of cases. What belongs here: their names, without anything that a console script would wait for.

Not here: what a role means for a source (`folders`) or for splits (`storage.releases`).
"""

from typing import Final, Literal

Role = Literal["split", "train"]
ROLES: Final[tuple[Role, ...]] = ("split", "train")
"""`split`: its patients are divided among training, validation and test. `train`: they only ever train."""
