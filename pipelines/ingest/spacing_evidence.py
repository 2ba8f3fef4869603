"""Detecting a wrong axis order of `spacing`. What belongs here: this check. Not here: reading files.

The order is stated, never guessed. But almost every scanner makes square pixels within a slice, and slices lie further
apart than pixels. So the check warns of volumes that have long pixels in the stated order and square pixels in the
reverse order. It cannot judge volumes whose three spacings are equal, or all different by small factors.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

_SAME: Final = 1.01
"""Two spacings with at most this ratio are equal up to rounding."""
_LONG: Final = 1.5
"""Scanners do not make pixels whose sides have this ratio or a higher one."""

Flags = npt.NDArray[np.bool_]


def speaks_backwards(spacing_zyx: npt.NDArray[np.float64]) -> Flags:
    """Return for each volume whether its spacing is plausible only in the reverse order.

    Args:
        spacing_zyx: (N, 3) mm, in the order in which it was read as z, y, x; NaN where a volume states none.

    Returns:
        (N,) where the first two are equal and the third differs, or where the last two make a long pixel while the
        first two make one far nearer to a square.
    """
    first, last = (_ratio(spacing_zyx[:, [a, b]]) for a, b in ((0, 1), (1, 2)))
    square_backwards = (first <= _SAME) & (last > _SAME)
    far_squarer_backwards = (last >= _LONG) & (first < np.sqrt(last))
    return np.asarray(square_backwards | far_squarer_backwards)


def _ratio(pairs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return longer / shorter of each pair, (N,); NaN, which compares as false, for a pair with NaN."""
    return np.asarray(pairs.max(axis=1) / pairs.min(axis=1))


def spacing_warning(table: pd.DataFrame, order: str, remedy: str) -> str | None:
    """Return a warning if the spacing of some volumes is plausible only in the reverse order, else None.

    Args:
        table: Rows of a manifest: case_id, is_3d, spacing_z, spacing_y, spacing_x.
        order: The stated order, `zyx` or `xyz`.
        remedy: What to do if the files are in the other one.
    """
    volumes = table[table["is_3d"] & table["spacing_z"].notna()]
    spacing = volumes[["spacing_z", "spacing_y", "spacing_x"]].to_numpy(np.float64)
    suspects = volumes[speaks_backwards(spacing)]
    if suspects.empty:
        return None
    first = suspects.iloc[0]
    read = ", ".join(f"{first[f'spacing_{axis}']:g}" for axis in "zyx")
    other = "xyz" if order == "zyx" else "zyx"
    return (
        f"warning: spacing of {len(suspects)} of {len(volumes)} volumes fits the order {other} better than {order}, as "
        f"which it was read: {first['case_id']} has z, y, x = {read} mm, long pixels in each slice. NSD depends on it; "
        f"if the files are in that order, as SimpleITK's (x, y, z) are, {remedy}"
    )
