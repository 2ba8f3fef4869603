"""`medsam predict`: a folder of images and boxes in, a folder of label maps out, in the challenge's contract.

What belongs here: the input file and the output file of each case. Not here: reading or predicting a case.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.base.settings import InputError, Settings
from pipelines.base.terminal import printable
from pipelines.folder_inference.given_model import load_given, model_file
from pipelines.folder_inference.tally import Tally
from pipelines.ingest.findings import other_format
from pipelines.ingest.scanning import source_at
from storage.base.errors import BadSampleError
from storage.sources.case import Case
from storage.sources.source import Source, Use

Log = Callable[[str], None]

_BELOW = "in a folder below --input, of which only the files are answered"


def predict_folder(settings: Settings, model: str, data: Path, output: Path, log: Log) -> int:
    """Write `segs` for every npz file of a folder: same name (with `.npz` for `.NPZ`), same shape.

    Args:
        settings: Settings of the source and of MLflow.
        model: safetensors file or MLflow model URI.
        data: Folder of npz files with `imgs` and `boxes`; other arrays in them are ignored.
        output: Receives one file for each input file.
        log: Receives progress, refusals and the closing line.

    Returns:
        The number of files that could not be predicted.

    Raises:
        InputError: If the model cannot be used, or predictions would replace their input files.
        FileNotFoundError: If there is no file to predict.
    """
    from pipelines.evaluation.cases import save_segs
    from pipelines.evaluation.predictors import predictor

    if data.resolve() == output.resolve():
        raise InputError(f"--output: expected another folder than --input, found {output} for both")
    source, tally = source_at(data, settings.profile), Tally(log)
    given = load_given(model_file(model, settings, output / ".model"))
    predict = predictor(given, settings.profile.inference)
    names = _to_answer(data, source, tally)
    output.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names, start=1):
        with tally.refusing(f"{name}.npz"):
            case, boxes = _case_to_predict(source, name)
            save_segs(output / f"{name}.npz", predict(case.imgs, boxes, case.is_3d))
            tally.done += 1
            log(f"{number} of {len(names)}: {printable(name)}.npz, {len(boxes)} boxes")
    log(tally.line("predicted"))
    return tally.refused


def _to_answer(data: Path, source: Source, tally: Tally) -> list[str]:
    """Return the names of the files in the folder itself; those in folders below it are skipped.

    Raises:
        FileNotFoundError: If the folder holds no npz file.
    """
    wanted = "--input: expected a folder of npz files"
    if not data.is_dir():
        raise FileNotFoundError(f"{wanted}, found none in {data}, which is no folder")
    listing = source.list()
    names = listing.files["case_id"].astype(str).tolist()
    below = [name for name in names if "/" in name]
    tally.skip(_BELOW, below)
    tally.skip_listed(listing.skipped)
    if len(below) == len(names):
        npy = other_format(listing.skipped)
        hint = f"; give the one of the folders below it that holds imgs: {_folders(below)}" if below else ""
        hint = f"{hint}; {npy}" if npy else hint
        raise FileNotFoundError(f"{wanted}, found none in {data}{hint}. {tally.line('predicted')}")
    return [name for name in names if "/" not in name]


def _folders(names: list[str]) -> str:
    folders = sorted({str(Path(name).parent) for name in names})
    return ", ".join(map(printable, folders[:5])) + (f" and {len(folders) - 5} more" if len(folders) > 5 else "")


def _case_to_predict(source: Source, name: str) -> tuple[Case, npt.NDArray[np.int64]]:
    """Read a case and its boxes; return the boxes half-open in x and y, clipped to the image."""
    from medsam_core.imaging.contract import checked_boxes
    from medsam_core.imaging.prompts import inclusive_to_half_open

    case = source.read(name, Use.BOXES)
    if case.boxes is None:
        raise BadSampleError("boxes_shape", "expected `boxes`, found none; add one row per object")
    shape = case.imgs.shape if case.is_3d else case.imgs.shape[:2]
    try:
        return case, checked_boxes(inclusive_to_half_open(case.boxes), shape)
    except ValueError as error:
        raise BadSampleError("boxes_shape", str(error)) from error
