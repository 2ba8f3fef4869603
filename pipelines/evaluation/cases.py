"""Cases with ground truth, and their predictions on disk. What belongs here: reading both, one case at a time.

Not here: predicting or scoring them (`scoring`), or where a folder's cases come from (`folder_inference`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medsam_core.scores.case_scores import CaseIdentity
from storage.base.atomic import atomic_file
from storage.base.errors import IntegrityError
from storage.releases.reader import ReleaseReader

Predict = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.int64], bool], npt.NDArray[np.uint16]]
"""Takes images, boxes (half-open in x and y, closed in z) and `is_3d`; returns `segs`, labelled by box order."""


@dataclass(frozen=True, eq=False)
class EvaluationCase:
    """A case with ground truth.

    Attributes:
        identity: Case, modality, data set, patient.
        split: `train`, `validation`, `test`, or `unseen` for a case that is not in the release.
        imgs: (H, W), (H, W, 3) or (D, H, W) uint8.
        gts: (H, W) or (D, H, W), original label ids.
        spacing_zyx: mm, or None.
        is_3d: Whether it is a volume.
    """

    identity: CaseIdentity
    split: str
    imgs: npt.NDArray[np.uint8]
    gts: npt.NDArray[np.integer]
    spacing_zyx: tuple[float, float, float] | None
    is_3d: bool


def cases_of_release(reader: ReleaseReader, split: str) -> Iterator[EvaluationCase]:
    """Yield the cases of one split of a release, in release order."""
    table = reader.table
    for _, rows in table.groupby("case_id", sort=False, observed=True):
        first = rows.iloc[0]
        is_3d = bool(first["is_3d"])
        imgs, gts = reader.read_case(rows.index.to_list())
        if gts is None:
            raise ValueError(f"{first['case_id']}: expected a release of cases with ground truth, found one without")
        z, y, x = (float(first[f"spacing_{axis}"]) for axis in "zyx")
        yield EvaluationCase(
            identity=CaseIdentity(*(str(first[name]) for name in ("case_id", "modality", "dataset", "group"))),
            split=split,
            imgs=imgs if is_3d else imgs[0],
            gts=gts if is_3d else gts[0],
            spacing_zyx=None if np.isnan((z, y, x)).any() else (z, y, x),
            is_3d=is_3d,
        )


def segs_file(folder: Path, predictor: str, case_id: str) -> Path:
    """Return the file of a predictor's `segs` of a case, below a folder of predictions."""
    return folder / "segs" / predictor / f"{case_id}.npz"


def predictors_of(folder: Path) -> list[str]:
    """Return the names of the predictors with predictions below a folder."""
    return [path.name for path in (folder / "segs").iterdir() if path.is_dir()]


def save_segs(path: Path, segs: npt.NDArray[np.uint16]) -> None:
    """Publish a prediction in the challenge's contract, atomically."""
    with atomic_file(path) as file:
        np.savez_compressed(file, segs=segs)


def load_segs(path: Path) -> npt.NDArray[np.uint16]:
    """Read a prediction.

    Raises:
        IntegrityError: If the file is missing.
    """
    if not path.is_file():
        raise IntegrityError(f"expected a prediction in {path}, found none; delete its folder and predict again")
    with np.load(path, allow_pickle=False) as content:
        segs: npt.NDArray[np.uint16] = content["segs"]
    return segs
