"""Pictures for the page and for MLflow. What belongs here: drawing with matplotlib. Not here: choosing what to draw.

matplotlib is imported inside the functions, because a run that reuses everything draws nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from storage.base.atomic import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from medsam_core.imaging.rendering import Microbatch

Image = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.integer]

_COLUMNS = 4


def _save(figure: "Figure", path: Path) -> Path:
    with atomic_file(path) as file:
        # No software tag or date, so that equal pictures have equal bytes.
        figure.savefig(file, format="png", dpi=80, bbox_inches="tight", metadata={"Software": None})
    return path


def _sheet(count: int, columns: int = _COLUMNS) -> tuple["Figure", Sequence["Axes"]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-count // columns)
    figure = Figure(figsize=(2.6 * columns, 2.8 * rows))
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).reshape(-1)
    for axis in axes:
        axis.set_axis_off()
    return figure, list(axes)


def _show(axis: "Axes", image: Image, title: str) -> None:
    axis.imshow(image, cmap="gray" if image.ndim == 2 else None, vmin=0, vmax=255)
    axis.set_title(title, fontsize=7)


def _outline(axis: "Axes", mask: Labels, colour: str) -> None:
    for label in np.unique(mask[mask > 0]):
        axis.contour(mask == label, levels=[0.5], colors=[colour], linewidths=0.8)


def slice_sheet(tiles: Sequence[tuple[Image, Labels | None, str]], path: Path) -> Path:
    """Draw slices with the outlines of their masks.

    Args:
        tiles: Image, label map or None, and title of each.
        path: PNG to write.
    """
    figure, axes = _sheet(len(tiles))
    for axis, (image, mask, title) in zip(axes, tiles, strict=False):
        _show(axis, image, title)
        if mask is not None and min(mask.shape) > 1:
            _outline(axis, mask, "yellow")
    return _save(figure, path)


def batch_sheet(batch: "Microbatch", path: Path) -> Path:
    """Draw a microbatch as the student sees it before normalisation, with boxes and masks where it has them."""
    images = batch.images.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    count = min(len(images), 12)
    figure, axes = _sheet(count)
    for index in range(count):
        _show(axes[index], images[index], "")
        side, grid = images.shape[1], batch.masks.shape[-1] if batch.masks.ndim == 4 else 0
        for prompt in range(batch.boxes.shape[1]):
            x_min, y_min, x_max, y_max = batch.boxes[index, prompt].tolist()
            axes[index].plot([x_min, x_max, x_max, x_min, x_min], [y_min, y_min, y_max, y_max, y_min], "c-", lw=0.7)
            extent = (np.arange(grid) + 0.5) * side / grid
            axes[index].contour(extent, extent, batch.masks[index, prompt].numpy(), levels=[0.5], colors=["yellow"])
    return _save(figure, path)


def prediction_sheet(tiles: Sequence[tuple[Image, Labels, Labels, str]], path: Path) -> Path:
    """Draw predictions (magenta) over ground truth (yellow).

    Args:
        tiles: Image, ground truth, prediction and title of each.
        path: PNG to write.
    """
    figure, axes = _sheet(len(tiles))
    for axis, (image, truth, prediction, title) in zip(axes, tiles, strict=False):
        _show(axis, image, title)
        if min(truth.shape) > 1:
            _outline(axis, truth, "yellow")
            _outline(axis, prediction, "magenta")
    return _save(figure, path)


def curves(points: Sequence[tuple[int, Mapping[str, float]]], names: Sequence[str], path: Path) -> Path:
    """Draw curves against the step.

    Args:
        points: Step and values, ascending.
        names: Which values to draw, one line each.
        path: PNG to write.
    """
    figure, axes = _sheet(1, columns=1)
    figure.set_size_inches(6, 3.5)
    axis = axes[0]
    axis.set_axis_on()
    for name in names:
        drawn = [(step, values[name]) for step, values in points if name in values]
        axis.plot([step for step, _ in drawn], [value for _, value in drawn], label=name, linewidth=1)
    axis.set_xlabel("step")
    axis.set_yscale("log")
    axis.legend(fontsize=7)
    return _save(figure, path)
