"""What names a finished result where only its name travels. What belongs here: that value. Not here: finding it.

`storage.base.artefacts` makes references and follows them.
"""

from dataclasses import dataclass

from storage.base.blobs import JsonObject


@dataclass(frozen=True)
class ArtefactRef:
    """Names an artefact without saying where it lies, so that the root may move.

    Attributes:
        kind: What it is, for example `release`.
        fingerprint: SHA-256 hex digest of what it was made from.
        info: Small plain facts its maker left (counts, scores).
        reused: True if it was found rather than made by the call that gave this reference.
    """

    kind: str
    fingerprint: str
    info: JsonObject
    reused: bool
