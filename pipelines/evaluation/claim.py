"""What the predictions in a folder were made from. What belongs here: recording it, and refusing what does not fit.

Not here: predicting. Predictions that lie in a folder are taken over, so they must be of this model and these images;
cases may come and go between two runs, for what is finished is not made again.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from storage.base.atomic import read_json, write_json
from storage.base.fingerprints import file_hash, fingerprint, require_same


def claim(output: Path, model: Path, table: pd.DataFrame, spacing_order: str) -> None:
    """Record what predictions in a folder are made from, and refuse a folder that holds those of something else.

    Args:
        output: The folder.
        model: The model's file.
        table: Rows of the cases to predict: case_id, content_hash.
        spacing_order: How `spacing` is read.

    Raises:
        FingerprintMismatchError: If the folder holds predictions of another model, or of other content of a case.
    """
    from pipelines.evaluation.versions import PREDICTION_VERSION

    cases = dict(zip(table["case_id"].astype(str), table["content_hash"].astype(str), strict=True))
    made_from = {"model": file_hash(model), "spacing_order": spacing_order, "version": PREDICTION_VERSION}
    record = output / "made_from.json"
    recorded: Mapping[str, object] = read_json(record) if record.is_file() else {}
    known = recorded.get("cases", {})
    if recorded:
        expected, found = _comparable(cases, known)
        require_same(
            f"the report in {output}",
            {**made_from, "cases": expected},
            {**recorded, "cases": found},
            "give another --output, or delete it",
        )
    write_json(record, {**made_from, "cases": {**(known if isinstance(known, dict) else {}), **cases}})


def _comparable(cases: Mapping[str, str], known: object) -> tuple[object, object]:
    """Return what is asked for and what is recorded of the same cases; earlier versions recorded one hash of all."""
    if not isinstance(known, dict):
        return fingerprint(dict(cases)), known
    common = cases.keys() & known.keys()
    return tuple(fingerprint({name: one[name] for name in common}) for one in (cases, known))  # type: ignore[return-value]
