"""`medsam predict` and `medsam evaluate`: a model on any folder of npz files, without the asset graph.

What belongs here: folders in, folders out. Not here: how a case is predicted or scored.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipelines.base.settings import InputError, Settings
from pipelines.ingest.scanning import source_at
from pipelines.training.training_cases import read_training_cases
from storage.base.atomic import read_json, write_json
from storage.base.errors import BadSampleError
from storage.base.fingerprints import file_hash, fingerprint, require_same
from storage.sources.case import Case
from storage.sources.manifest_table import rejected
from storage.sources.raw_manifest import scan
from storage.sources.source import Source, Use

if TYPE_CHECKING:
    from medsam_core.models.segmenter import Segmenter
    from pipelines.evaluation.cases import EvaluationCase

Log = Callable[[str], None]

UNSEEN = "unseen"
HEADLINE = ("test", UNSEEN)
"""Splits whose cases the headline means are made of."""


def model_file(model: str, settings: Settings, scratch: Path) -> Path:
    """Return the local file of a model named by path or MLflow URI.

    Raises:
        FileNotFoundError: If there is none.
    """
    if ":/" in model:
        from pipelines.base.tracking import download_model

        return download_model(model, settings.tracking_uri, scratch)
    path = Path(model)
    if not path.is_file():
        raise FileNotFoundError(f"--model: expected a safetensors file or an MLflow model URI, found no file {model}")
    return path


def _load(file: Path) -> "Segmenter":
    from medsam_core.models.checkpoints import load_model
    from medsam_core.models.weights import CheckpointError

    try:
        return load_model(file)
    except CheckpointError as error:
        raise InputError(f"--model: {error}") from error


def _accepted(data: Path, settings: Settings, groups_csv: Path | None, log: Log) -> pd.DataFrame:
    if not data.is_dir():
        raise NotADirectoryError(f"expected a folder of npz files, found no folder {data}")
    table = scan(source_at(data, settings.profile), groups_csv).table
    for row in rejected(table).to_dict("records"):
        log(f"rejected {row['case_id']}: {row['reason_code']}: {row['reason']}")
    return table[table["status"] == "accepted"]


def predict_folder(settings: Settings, model: str, source: Path, output: Path, log: Log) -> int:
    """Write `segs` for every npz file of a folder, in the challenge's contract: same file name, same shape.

    Args:
        settings: How files are read, and where MLflow is.
        model: safetensors file or MLflow model URI.
        source: Folder of npz files with `imgs` and `boxes`.
        output: Receives a file of the same name for each.
        log: Where progress and refusals are said.

    Returns:
        How many files could not be predicted.

    Raises:
        InputError: If the model cannot be used, or predictions would replace the files they are made from.
    """
    from medsam_core.inference import Predictor
    from pipelines.evaluation.cases import save_segs

    if source.resolve() == output.resolve():
        raise InputError(f"--output: expected another folder than --input, found {output} for both")
    predictor = Predictor(_load(model_file(model, settings, output / ".model")))
    files = sorted(source.glob("*.npz")) if source.is_dir() else []
    if not files:
        raise FileNotFoundError(f"--input: expected a folder of npz files, found none in {source}")
    failures = 0
    for number, file in enumerate(files, start=1):
        try:
            case, boxes = _case_to_predict(file, settings)
        except BadSampleError as error:
            failures += 1
            log(f"refused {file.name}: {error.code}: {error}")
            continue
        save_segs(output / file.name, predictor.predict(case.imgs, boxes, is_3d=case.is_3d))
        log(f"{number} of {len(files)}: {file.name}, {len(boxes)} boxes")
    return failures


def _case_to_predict(file: Path, settings: Settings) -> tuple[Case, npt.NDArray[np.int64]]:
    """Read a case and its boxes, half-open in x and y and cut to the image."""
    from medsam_core.contract import checked_boxes
    from medsam_core.prompts import inclusive_to_half_open

    case = source_at(file.parent, settings.profile).read(file.stem, Use.BOXES)
    if case.boxes is None:
        raise BadSampleError("boxes_shape", f"{file.name}: expected `boxes`, found none; add one row per object")
    shape = case.imgs.shape if case.is_3d else case.imgs.shape[:2]
    try:
        return case, checked_boxes(inclusive_to_half_open(case.boxes), shape)
    except ValueError as error:
        raise BadSampleError("boxes_shape", f"{file.name}: {error}") from error


def cases_of_folder(source: Source, table: pd.DataFrame, seen: dict[str, str]) -> Iterator["EvaluationCase"]:
    """Yield the accepted cases of a source that have ground truth, in the order of their ids."""
    from medsam_core.case_scores import CaseIdentity
    from pipelines.evaluation.cases import EvaluationCase

    for row in table.sort_values(["modality", "case_id"]).to_dict("records"):
        case = source.read(str(row["case_id"]))
        if case.gts is None:
            continue
        yield EvaluationCase(
            identity=CaseIdentity(*(str(row[name]) for name in ("case_id", "modality", "dataset", "group"))),
            split=seen.get(case.content_hash, UNSEEN),
            imgs=case.imgs,
            gts=case.gts,
            spacing_zyx=case.spacing_zyx,
            is_3d=case.is_3d,
        )


def _claim(output: Path, model: Path, table: pd.DataFrame, settings: Settings) -> None:
    """Record what predictions in a folder are made from, and refuse a folder that holds those of something else.

    Raises:
        FingerprintMismatchError: If it does; predictions that lie there are taken over, not made again.
    """
    from pipelines.evaluation.versions import PREDICTION_VERSION

    cases = dict(zip(table["case_id"].astype(str), table["content_hash"].astype(str), strict=True))
    made_from = {
        "model": file_hash(model),
        "cases": fingerprint(cases),
        "spacing_order": settings.profile.source.spacing_order,
        "version": PREDICTION_VERSION,
    }
    record = output / "made_from.json"
    if record.is_file():
        require_same(f"the report in {output}", made_from, read_json(record), "give another --output, or delete it")
    write_json(record, made_from)


def evaluate_folder(
    settings: Settings, model: str, data: Path, output: Path, log: Log, *, groups_csv: Path | None = None
) -> pd.DataFrame:
    """Score a model on every npz file with `gts` below a folder, beside box and ellipse.

    Cases that the model's release held for training or validation are marked and left out of the headline.

    Args:
        settings: How files are read, and where MLflow is.
        model: safetensors file or MLflow model URI.
        data: Folder of npz files; boxes are the tight boxes of `gts`.
        output: Receives the report, as the asset makes it.
        log: Where progress and rejections are said.
        groups_csv: Which files share a patient.

    Returns:
        The comparison table of the headline cases.
    """
    from pipelines.base.results import markdown_table
    from pipelines.evaluation.predictors import box_predictors, predictor
    from pipelines.evaluation.reports import write_report
    from pipelines.evaluation.scoring import predict_and_score

    output.mkdir(parents=True, exist_ok=True)
    file = model_file(model, settings, output / ".model")
    seen = read_training_cases(file)
    table = _accepted(data, settings, groups_csv, log)
    _claim(output, file, table, settings)
    predictors = {"student": predictor(_load(file)), **box_predictors()}
    cases = cases_of_folder(source_at(data, settings.profile), table, seen)
    rows = predict_and_score(cases, predictors, output, log).cases
    if rows.empty:
        raise FileNotFoundError(f"--data: expected npz files with gts below {data}, found none")
    marked = rows.loc[~rows["split"].isin(HEADLINE), "case_id"].nunique()
    if marked:
        log(f"{marked} cases were seen in training or validation: marked, and left out of the headline means")
    comparison = write_report(rows, output, HEADLINE)
    log(markdown_table(comparison))
    log(f"Report: {output}")
    return comparison
