"""`medsam evaluate`: a model scored on any folder of npz files, without the asset graph.

What belongs here: choosing the cases to score, and reporting the others. Not here: predicting or scoring a case
(`scoring`), checking the inputs of earlier predictions (`claim`).
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pipelines.base.settings import Settings
from pipelines.evaluation.report_files import MODEL, write_facts, write_not_scored
from pipelines.folder_inference.claim import claim
from pipelines.folder_inference.given_model import load_given, model_file, origin_of_given
from pipelines.folder_inference.tally import Tally
from pipelines.ingest.findings import other_format, two_files_warning
from pipelines.ingest.scanning import source_at
from pipelines.ingest.spacing_evidence import spacing_warning
from pipelines.training.training_cases import read_training_cases
from storage.base.errors import BadSampleError
from storage.sources.manifest_table import rejected
from storage.sources.raw_manifest import ReadLimits, scan
from storage.sources.source import Source

if TYPE_CHECKING:
    from pipelines.evaluation.cases import EvaluationCase

Log = Callable[[str], None]

NEW_TO_MODEL = "unseen"
"""Split of a case that is not in the model's release."""
HEADLINE = ("test", NEW_TO_MODEL)
"""Splits whose cases are in the headline means."""

_NO_GTS = "no gts"


def evaluate_folder(
    settings: Settings, model: str, data: Path, output: Path, log: Log, *, groups_csv: Path | None = None
) -> pd.DataFrame:
    """Score a model, and the box and ellipse baselines, on every npz file with `gts` below a folder.

    Cases that the model's release used for training or validation are marked and left out of the headline means.

    Args:
        settings: Settings of the source and of MLflow.
        model: safetensors file or MLflow model URI.
        data: Folder of npz files; boxes are the tight boxes of `gts`, and `boxes` in the files are ignored.
        output: Receives the report, as the asset makes it, `not_scored.csv`: every other file with the reason, and
            `model.json` for a model that says where its weights come from.
        log: Receives progress, refusals and the closing line.
        groups_csv: Which files share a patient.

    Returns:
        The comparison table of the headline cases.

    Raises:
        FileNotFoundError: If no file could be scored.
    """
    from pipelines.base.results import markdown_table
    from pipelines.evaluation.predictors import box_predictors, predictor
    from pipelines.evaluation.reports import write_report
    from pipelines.evaluation.scoring import predict_and_score

    output.mkdir(parents=True, exist_ok=True)
    file, tally = model_file(model, settings, output / ".model"), Tally(log)
    predictors = {"student": predictor(load_given(file), settings.profile.inference), **box_predictors()}
    source = source_at(data, settings.profile)
    table = _labelled(data, source, settings, groups_csv, tally, log)
    claim(output, file, table, settings.profile)
    write_facts(output, MODEL, origin_of_given(file, log))
    cases = cases_of_folder(source, table, read_training_cases(file), tally)
    rows = predict_and_score(cases, predictors, output, log, guard=tally.refusing).cases
    tally.done = 0 if rows.empty else rows["case_id"].nunique()
    write_not_scored(output, tally.table())
    if rows.empty:
        found = f"--data: expected npz files with gts below {data}, found none"
        raise FileNotFoundError(". ".join([found, *filter(None, [tally.layout]), tally.line("scored")]))
    _tell_of_headline(rows, log)
    comparison = write_report(rows, output, HEADLINE)
    log(markdown_table(comparison))
    log(f"Report: {output}")
    log(tally.line("scored"))
    return comparison


def _tell_of_headline(rows: pd.DataFrame, log: Log) -> None:
    """Say which cases are not in the headline means, and where none of those that are has anything to score."""
    of_headline = rows["split"].isin(HEADLINE)
    marked = rows.loc[~of_headline, "case_id"].nunique()
    if marked:
        log(f"{marked} cases were seen in training or validation: marked, and left out of the headline means")
    if not of_headline.any():
        log("no case is left for the headline means; summary.csv has the means of each split")
    elif not rows.loc[of_headline, "n_labels"].any():
        log("no case in the headline means has a label to score: gts are blank, so there is no mean")


def _labelled(
    data: Path, source: Source, settings: Settings, groups_csv: Path | None, tally: Tally, log: Log
) -> pd.DataFrame:
    """Return the manifest's rows of accepted cases with ground truth; record all other files in the tally."""
    if not data.is_dir():
        raise NotADirectoryError(f"--data: expected a folder of npz files, found no folder {data}")
    found = scan(source, groups_csv, limits=ReadLimits(settings.workers, settings.memory_bytes))
    tally.skip_listed(found.skipped)
    refused = rejected(found.table)
    for row in refused.to_dict("records"):
        tally.refuse(str(row["case_id"]), str(row["reason_code"]), str(row["reason"]))
    good = found.table[found.table["status"] == "accepted"]
    without = good.loc[~good["has_gts"], "case_id"].astype(str)
    tally.skip(_NO_GTS, without.tolist())
    labelled = good[good["has_gts"]]
    order = settings.profile.source.spacing_order
    apart = two_files_warning(found.table)
    tally.layout = (apart or "").removeprefix("warning: ") or other_format(found.skipped) or ""
    remedy = f"give --spacing-order {'xyz' if order == 'zyx' else 'zyx'}"
    for warning in filter(None, (apart, spacing_warning(labelled, order, remedy))):
        log(warning)
    return labelled


def cases_of_folder(
    source: Source, table: pd.DataFrame, trained_on: Mapping[str, str], tally: Tally
) -> Iterator["EvaluationCase"]:
    """Yield the cases of a manifest in the order of their ids; refuse a file that has become unusable, and go on.

    Args:
        source: The source of the cases.
        table: Rows of accepted cases with ground truth.
        trained_on: Content hash -> split, of the cases of the model's release.
        tally: Records refusals.
    """
    for row in table.sort_values(["modality", "case_id"]).to_dict("records"):
        identity = {name: str(row[name]) for name in ("case_id", "modality", "dataset", "group")}
        case = None
        with tally.refusing(identity["case_id"]):
            case = _read(source, identity, str(row["content_hash"]), trained_on)
        if case is not None:
            yield case


def _read(
    source: Source, identity: Mapping[str, str], content_hash: str, trained_on: Mapping[str, str]
) -> "EvaluationCase":
    from medsam_core.scores.case_scores import CaseIdentity
    from pipelines.evaluation.cases import EvaluationCase

    case = source.read(identity["case_id"])
    if case.content_hash != content_hash or case.gts is None:
        raise BadSampleError(
            "changed", "expected what the file held when it was scanned, found other content; run again"
        )
    return EvaluationCase(
        identity=CaseIdentity(**identity),
        split=trained_on.get(case.content_hash, NEW_TO_MODEL),
        imgs=case.imgs,
        gts=case.gts,
        spacing_zyx=case.spacing_zyx,
        is_3d=case.is_3d,
    )
