"""A folder of synthetic cases.

What belongs here: names, patients and bytes of its files. Not here: what a case shows.
"""

import io
import json
import logging
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medsam_core.base.files import atomic_file
from medsam_core.synthetic.cases import MODALITIES, VOLUMETRIC, Case, make_case

_LOG = logging.getLogger(__name__)

_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest date of a zip entry. With the present time instead, equal arrays would give different files."""
_CASES_OF_PATIENTS = (1, 2, 1, 3)
"""Numbers of cases of consecutive patients; the sequence repeats."""

GROUPS_NAME = "groups.csv"

RECORD_NAME = "sample.json"
"""The file that says what the sample was made from. It is written last: where it lies, the sample is complete."""

SAMPLE_VERSION = 1
"""Raised by hand whenever the same arguments give other files."""


class SampleCase(NamedTuple):
    """A case of the sample.

    Attributes:
        path: Posix path below the sample's folder, `<modality>/<data set>/<2DBox|3DBox>_<modality>_<nnnn>.npz`.
        patient: The patient; several cases may be of one patient.
        dataset: The data set.
        arrays: What the file holds.
    """

    path: str
    patient: str
    dataset: str
    arrays: Case


class _Entry(NamedTuple):
    path: str
    patient: str
    dataset: str
    modality: str
    number: int
    volumetric: bool


def _patient(index: int) -> int:
    """Return the number, from 0, of the patient of a case."""
    cycle = sum(_CASES_OF_PATIENTS)
    bounds = np.cumsum(_CASES_OF_PATIENTS)
    return index // cycle * len(_CASES_OF_PATIENTS) + int(np.searchsorted(bounds, index % cycle, side="right"))


def _entry(modality: str, index: int, volumetric: bool) -> _Entry:
    number = _patient(index)
    dataset = f"Synthetic{'Volumes' if volumetric else 'AB'[number // 2 % 2]}"
    name = f"{'3D' if volumetric else '2D'}Box_{modality}_{index + 1:04d}.npz"
    patient = f"{modality}:{dataset}:patient_{number + 1:03d}"
    return _Entry(f"{modality}/{dataset}/{name}", patient, dataset, modality, index, volumetric)


def _entries(cases_per_modality: int, volumes_per_modality: int) -> Iterator[_Entry]:
    for modality in MODALITIES:
        for index in range(cases_per_modality):
            yield _entry(modality, index, volumetric=False)
        for index in range(volumes_per_modality if modality in VOLUMETRIC else 0):
            yield _entry(modality, index, volumetric=True)


def sample_cases(seed: int, cases_per_modality: int = 18, volumes_per_modality: int = 5) -> Iterator[SampleCase]:
    """Yield the cases of a sample in the order of modalities; a smaller sample is part of a larger one.

    Args:
        seed: Seed of the sample.
        cases_per_modality: Flat cases of each modality.
        volumes_per_modality: Volumes of each volumetric modality.
    """
    for entry in _entries(cases_per_modality, volumes_per_modality):
        arrays = make_case(entry.modality, entry.number, seed, entry.volumetric)
        yield SampleCase(entry.path, entry.patient, entry.dataset, arrays)


def npz_bytes(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Return a compressed npz file whose bytes depend on names and arrays alone.

    They are the same wherever the same zlib is used.
    """
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", _ZIP_DATE)
            info.compress_type, info.create_system = zipfile.ZIP_DEFLATED, 3
            archive.writestr(info, member.getvalue())
    return file.getvalue()


def write_sample(folder: Path, seed: int, cases_per_modality: int = 18, volumes_per_modality: int = 5) -> int:
    """Write a sample as npz files, `groups.csv` and, last, `sample.json`.

    A complete sample is not touched, even if its user has since changed, added or removed files. Each file appears
    whole or not at all, so the next call goes on where a killed one stopped.

    Args:
        folder: Created if it does not exist. It must hold no npz files other than those of the sample.
        seed: Seed of the sample.
        cases_per_modality: Flat cases of each modality.
        volumes_per_modality: Volumes of each volumetric modality.

    Returns:
        The number of npz files of the sample.

    Raises:
        FileExistsError: If the folder holds other npz files; nothing is written then.
    """
    entries = list(_entries(cases_per_modality, volumes_per_modality))
    record = {
        "version": SAMPLE_VERSION,
        "seed": seed,
        "cases_per_modality": cases_per_modality,
        "volumes_per_modality": volumes_per_modality,
    }
    path = folder / RECORD_NAME
    if path.is_file() and json.loads(path.read_text()) == record:
        return len(entries)
    _refuse_strangers(folder, {entry.path for entry in entries})
    written = 0
    for case in sample_cases(seed, cases_per_modality, volumes_per_modality):
        written += _write_if_changed(folder / case.path, npz_bytes(_arrays(case.arrays)))
    rows = [f"{entry.path},{entry.dataset},{entry.patient}" for entry in entries]
    _write_if_changed(folder / GROUPS_NAME, "\n".join(["file,dataset,group", *rows, ""]).encode())
    _write_if_changed(path, (json.dumps(record) + "\n").encode())
    _LOG.info("synthetic sample in %s: %d files, %d of them written now", folder, len(entries), written)
    return len(entries)


def _arrays(case: Case) -> dict[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {"imgs": case["imgs"], "gts": case["gts"]}
    if "spacing" in case:
        arrays["spacing"] = case["spacing"]
    return arrays


def _refuse_strangers(folder: Path, expected: set[str]) -> None:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.npz")}
    strangers = sorted(found - expected)
    if strangers:
        raise FileExistsError(
            f"{folder}: expected only files of this sample, found {len(strangers)} other npz files, first "
            f"{strangers[0]}; choose another folder or remove them"
        )


def _write_if_changed(path: Path, data: bytes) -> bool:
    """Write a file unless it holds these bytes; return whether it was written."""
    if path.is_file() and path.read_bytes() == data:
        return False
    with atomic_file(path) as file:
        file.write(data)
    return True
