"""NSD against the textbook way: distance transforms of whole volumes. `python -m tests.benchmarks.surface_dice`."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medsam_core.scores.metrics import surface_dice
from medsam_core.scores.surface_areas import surfel_areas
from tests.benchmarks._harness import interleaved, report

SPACING = (2.5, 0.8, 0.8)


def _ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> npt.NDArray[np.bool_]:
    grid = np.ogrid[tuple(slice(0, size) for size in shape)]
    return sum(((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)), np.zeros(shape)) <= radius**2


def _whole_volume(gt: npt.NDArray[np.bool_], pred: npt.NDArray[np.bool_], tolerance: float = 2.0) -> float:
    """Compute the same NSD without cropping: neighbour codes and distance transforms of everything."""
    areas = surfel_areas(SPACING)
    codes = [ndimage.correlate(np.pad(m, 1).astype(np.uint8), _WEIGHTS, origin=-1)[:-1, :-1, :-1] for m in (gt, pred)]
    borders = [(code != 0) & (code != 255) for code in codes]
    distances = [ndimage.distance_transform_edt(~border, sampling=SPACING) for border in borders]
    weights = [areas[code] * border for code, border in zip(codes, borders, strict=True)]
    close = [weights[0][distances[1] <= tolerance].sum(), weights[1][distances[0] <= tolerance].sum()]
    return float(sum(close) / (weights[0].sum() + weights[1].sum()))


_WEIGHTS = np.array([[[128, 64], [32, 16]], [[8, 4], [2, 1]]], np.uint8)


def main() -> None:
    """Print one line per case."""
    for name, shape, radius in (("small_object", (64, 256, 256), 12.0), ("large_object", (64, 256, 256), 30.0)):
        centre = tuple(size / 2 for size in shape)
        gt = _ball(shape, centre, radius)
        pred = np.roll(gt, 3, axis=2)
        expected, found = _whole_volume(gt, pred), surface_dice(gt, pred, SPACING)
        if abs(expected - found) > 1e-9:
            raise AssertionError(f"{name}: the rival gives {expected}, ours {found}; they must agree to be compared")
        seconds, ratio = interleaved(lambda: surface_dice(gt, pred, SPACING), lambda: _whole_volume(gt, pred))  # noqa: B023
        report("surface_dice", name, seconds, "cpu_s", rival="whole-volume distance transforms", ratio=ratio)


if __name__ == "__main__":
    main()
