"""The inputs of the predictions in a folder. What belongs here: recording and comparing them.

Not here: predicting. A run reuses the predictions in its output folder, so they must be of the same model and images.
Cases may be added or removed between two runs; finished predictions are kept.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pipelines.base.profile import Profile
from storage.base.atomic import read_json, write_json
from storage.base.fingerprints import file_hash, fingerprint, require_same


def claim(output: Path, model: Path, table: pd.DataFrame, profile: Profile) -> None:
    """Record the inputs of the predictions in a folder; refuse a folder with predictions from other inputs.

    Args:
        output: The folder.
        model: The model's file.
        table: Rows of the cases to predict: case_id, content_hash.
        profile: Has the axis order of `spacing` in the files, and the rules of prediction.

    Raises:
        FingerprintMismatchError: If the folder holds predictions of another model, or of other content of a case.
    """
    from pipelines.evaluation.versions import FIRST_RULES, PREDICTION_VERSION

    cases = dict(zip(table["case_id"].astype(str), table["content_hash"].astype(str), strict=True))
    made_from = {
        "model": file_hash(model),
        "spacing_order": profile.source.spacing_order,
        "version": PREDICTION_VERSION,
        "rules": profile.inference.model_dump(mode="json"),
    }
    record = output / "made_from.json"
    recorded: Mapping[str, object] = read_json(record) if record.is_file() else {}
    known = recorded.get("cases", {})
    if recorded:
        expected, found = _comparable(cases, known)
        require_same(
            f"the report in {output}",
            {**made_from, "cases": expected},
            {"rules": FIRST_RULES.model_dump(mode="json"), **recorded, "cases": found},
            "give another --output, or delete it",
        )
    write_json(record, {**made_from, "cases": {**(known if isinstance(known, dict) else {}), **cases}})


def _comparable(cases: Mapping[str, str], known: object) -> tuple[object, object]:
    """Return the expected and the recorded content of the cases in both; earlier versions recorded one hash of all."""
    if not isinstance(known, dict):
        return fingerprint(dict(cases)), known
    common = cases.keys() & known.keys()
    return tuple(fingerprint({name: one[name] for name in common}) for one in (cases, known))  # type: ignore[return-value]
