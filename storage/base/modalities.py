"""The eleven modalities and their spellings in the challenge's files.

What belongs here: names. Not here: anything read from a file's content.
"""

import re
from collections.abc import Iterable

MODALITIES: tuple[str, ...] = (
    "CT",
    "Dermoscopy",
    "Endoscopy",
    "Fundus",
    "MR",
    "Mammography",
    "Microscopy",
    "OCT",
    "PET",
    "US",
    "XRay",
)
"""Canonical names, in the order every table and report uses."""

VOLUMETRIC: frozenset[str] = frozenset({"CT", "MR", "PET"})
"""Modalities whose three-dimensional arrays are volumes unless the file name says `2D`."""

_SPELLINGS: dict[str, str] = {
    "ct": "CT",
    "dermoscopy": "Dermoscopy",
    "dermoscope": "Dermoscopy",
    "dermatology": "Dermoscopy",
    "endoscopy": "Endoscopy",
    "endoscope": "Endoscopy",
    "fundus": "Fundus",
    "mr": "MR",
    "mri": "MR",
    "mammography": "Mammography",
    "mamm": "Mammography",
    "mammo": "Mammography",
    "microscopy": "Microscopy",
    "microscope": "Microscopy",
    "oct": "OCT",
    "pet": "PET",
    "us": "US",
    "ultra": "US",
    "ultrasound": "US",
    "xray": "XRay",
    "cxr": "XRay",
    "xr": "XRay",
}


def modality_of_word(text: str) -> str | None:
    """Return the modality a file or folder name states in one of its words, or None.

    Underscores, blanks, dots and the ends of numbers separate words; `X-Ray` is one word. The first word that is a
    known spelling decides, so `2DBox_X-Ray_0053`, `MR_totalseg_1`, `CT-001` and `CT_AbdomenCT` are all recognised.
    """
    joined = re.sub(r"x[-_ ]ray", "xray", text, flags=re.IGNORECASE)
    for word in re.split(r"[^A-Za-z]+", joined):
        found = _SPELLINGS.get(word.lower())
        if found:
            return found
    return None


def modality_of(name: str, folders: Iterable[str] = ()) -> str | None:
    """Return the modality of a file: its own name first, else the nearest folder that states one, else None.

    Args:
        name: File name without its ending.
        folders: Folder names from the nearest outwards, below the source root.
    """
    for text in (name, *folders):
        found = modality_of_word(text)
        if found:
            return found
    return None
