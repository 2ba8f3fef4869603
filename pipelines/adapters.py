"""Where storage meets science: tables and readers of one shaped as the other expects.

What belongs here: conversions between `storage` objects and the Protocols of `medsam_core`. Not here: torch; what needs
it is in `pipelines.tasks.teacher`.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsam_core.data import SliceTable
from storage.modalities import MODALITIES


def _flat(column: pd.Series, dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
    return np.concatenate([np.asarray(cell, dtype) for cell in column] or [np.empty(0, dtype)])


def slice_table(rows: pd.DataFrame) -> SliceTable:
    """Return the columns of a split's rows that the training plan reads.

    Args:
        rows: Rows of a release in release order, with the columns of `storage.slice_index`.
    """
    code = {name: position for position, name in enumerate(MODALITIES)}
    counts = rows["labels"].map(len).to_numpy(np.int64) if len(rows) else np.empty(0, np.int64)
    return SliceTable(
        modalities=MODALITIES,
        modality=np.array([code[name] for name in rows["modality"].astype(str)], np.int8),
        height=rows["height"].to_numpy(np.int32),
        width=rows["width"].to_numpy(np.int32),
        label_start=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        label_id=_flat(rows["labels"], np.int32).astype(np.int32),
        label_area=_flat(rows["areas"], np.int64).astype(np.int64),
        label_box=_flat(rows["boxes"], np.int32).astype(np.int32).reshape(-1, 4),
    )
