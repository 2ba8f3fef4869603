"""Adapters between `storage` and `medsam_core`: tables and readers of the one in the types that the other expects.

What belongs here: conversions between `storage` objects and the Protocols of `medsam_core`. Not here: torch; what needs
it is in `pipelines.teacher.tasks`.
"""

from medsam_core.base.data import SliceTable
from storage.base.modalities import MODALITIES
from storage.releases.columns import GT_ARRAY_NAMES, SliceColumns


def slice_table(columns: SliceColumns) -> SliceTable:
    """Return the columns of a split that a training plan needs, without a copy.

    Args:
        columns: A split of a release, in release order.
    """
    label_start, label_id = columns.lists("labels")
    without = columns.codes("gt_array") == GT_ARRAY_NAMES.index("")
    return SliceTable(
        modalities=MODALITIES,
        modality=columns.codes("modality"),
        height=columns.numbers("height"),
        width=columns.numbers("width"),
        label_start=label_start,
        label_id=label_id,
        label_area=columns.lists("areas")[1],
        label_box=columns.lists("boxes")[1].reshape(-1, 4),
        unlabelled=without if without.any() else None,
    )
