"""Predicting and scoring cases, from a release or from a folder alike.

What belongs here: the one way in which a case becomes rows, so that `medsam evaluate` and the assets agree exactly.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsam_core.case_scores import CaseIdentity, CaseScore
from medsam_core.prompts import tight_boxes
from medsam_core.scoring import score_case
from storage.base.atomic import atomic_file, write_parquet
from storage.releases.reader import ReleaseReader

Predict = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.int64], bool], npt.NDArray[np.uint16]]
"""Images, boxes (half-open in x and y, z closed) and whether it is a volume, to `segs` labelled by box order."""

SCORING_VERSION = 1
"""Raised by hand whenever the same model gives other rows."""


@dataclass(frozen=True, eq=False)
class EvaluationCase:
    """A case with ground truth.

    Attributes:
        identity: Case, modality, data set, group.
        split: `train`, `validation`, `test`, or `unseen` for a case that no release knows.
        imgs: (H, W), (H, W, 3) or (D, H, W) uint8.
        gts: (H, W) or (D, H, W), original label ids.
        spacing_zyx: mm, or None.
        is_3d: Whether it is a volume.
    """

    identity: CaseIdentity
    split: str
    imgs: npt.NDArray[np.uint8]
    gts: npt.NDArray[Any]
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


def segs_file(folder: Path, case_id: str) -> Path:
    """Return where a case's prediction lies below a folder."""
    return folder / f"{case_id}.npz"


def save_segs(path: Path, segs: npt.NDArray[np.uint16]) -> None:
    """Publish a prediction in the challenge's contract, atomically."""
    with atomic_file(path) as file:
        np.savez_compressed(file, segs=segs)


def predict_case(case: EvaluationCase, predict: Predict, file: Path) -> CaseScore:
    """Predict one case, unless its prediction is there already, and score it."""
    labels, boxes = tight_boxes(case.gts)
    if not file.is_file():
        save_segs(file, predict(case.imgs, boxes, case.is_3d))
    with np.load(file, allow_pickle=False) as content:
        segs = content["segs"]
    return score_case(case.identity, case.gts, segs, labels.tolist(), case.spacing_zyx, is_3d=case.is_3d)


def predict_and_score(
    cases: Iterable[EvaluationCase],
    predictors: Mapping[str, Predict],
    folder: Path,
    log: Callable[[str], None],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predict and score cases with several predictors; what a killed run left is taken over.

    Args:
        cases: What to predict.
        predictors: By name.
        folder: Receives `segs/<predictor>/<case>.npz`, `cases.parquet` and `labels.parquet`.
        log: Where progress is said.

    Returns:
        The case rows and the label rows, each with columns `predictor` and `split` in front.
    """
    case_rows: list[dict[str, Any]] = []
    label_rows: list[dict[str, Any]] = []
    for number, case in enumerate(cases, start=1):
        for name, predict in predictors.items():
            file = segs_file(folder / "segs" / name, case.identity.case_id)
            score = predict_case(case, predict, file)
            mark = {"predictor": name, "split": case.split}
            case_rows.append({**mark, **score.case_row()})
            label_rows += [{**mark, **row} for row in score.label_rows()]
        if number % 20 == 0:
            log(f"predicted {number} cases with {', '.join(predictors)}")
    by_case, by_label = pd.DataFrame(case_rows), pd.DataFrame(label_rows)
    write_parquet(folder / "cases.parquet", by_case)
    write_parquet(folder / "labels.parquet", by_label)
    return by_case, by_label
