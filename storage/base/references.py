"""References to artefacts. What belongs here: the value that names an artefact. Not here: finding the artefact.

`storage.base.artefacts` makes references and resolves them.
"""

from dataclasses import dataclass

from storage.base.blobs import JsonObject


@dataclass(frozen=True)
class ArtefactRef:
    """Names an artefact without a path, so that the root may move.

    Attributes:
        kind: What it is, for example `release`.
        fingerprint: SHA-256 hex digest of what it was made from.
        info: A few facts that its maker recorded (counts, scores).
        reused: True if the artefact existed before the call that returned this reference.
    """

    kind: str
    fingerprint: str
    info: JsonObject
    reused: bool
