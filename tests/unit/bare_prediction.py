"""Predicting in a process that has numpy and scipy alone: run as a script, it refuses to import anything heavier.

What belongs here: a model in numpy and the cases it answers, for the script and for the test that runs it.
"""

import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

import numpy as np
import numpy.typing as npt

ABSENT = ("torch", "torchvision", "timm", "safetensors", "zarr", "pyarrow", "pandas", "dagster", "mlflow", "pydantic")


class Refusal(MetaPathFinder):
    """Makes packages look as if they were not installed."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


if __name__ == "__main__":
    sys.meta_path.insert(0, Refusal())

from medsam_core.base.geometry import PADDED, SQUARE, Geometry  # noqa: E402
from medsam_core.imaging.preprocessing import masks_to_grid  # noqa: E402
from medsam_core.imaging.prompts import inclusive_to_half_open, tight_boxes  # noqa: E402
from medsam_core.imaging.resampling import Floats, NumpyResampler, Resampler  # noqa: E402
from medsam_core.imaging.views import View  # noqa: E402
from medsam_core.inference.baselines import filled_boxes, inscribed_ellipses  # noqa: E402
from medsam_core.inference.predictor import Predictor  # noqa: E402
from medsam_core.scores.metrics import dsc  # noqa: E402

Answers = dict[str, npt.NDArray[np.generic]]


class BrightInBox:
    """Answers a box with how far each cell is brighter than the middle grey, and with minus one outside the box."""

    def __init__(self, frame: str) -> None:
        self.geometry = Geometry(64, 8, 32, frame)
        self.n_encoded = 0

    def encode(self, image: Floats) -> Floats:
        self.n_encoded += 1
        assert (image.shape, image.dtype) == ((3, 64, 64), np.float32)
        return image.mean(axis=0).reshape(32, 2, 32, 2).mean(axis=(1, 3)) / np.float32(128) - 1

    def decode(self, embedding: object, boxes: Floats) -> tuple[Floats, Floats]:
        assert isinstance(embedding, np.ndarray)
        assert boxes.dtype == np.float32
        centre = 2 * np.arange(32) + 1
        x_min, y_min, x_max, y_max = (side[:, None] for side in boxes.T)
        columns, rows = (centre > x_min) & (centre < x_max), (centre > y_min) & (centre < y_max)
        logits = np.where(rows[:, :, None] & columns[:, None], embedding, -1).astype(np.float32)
        return logits, np.ones(len(boxes), dtype=np.float32)


def cases() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return a grey image and a colour image of 70 x 110 with two bright discs, and a volume in which they drift."""
    y, x = np.mgrid[:70, :110]
    slices = [
        20 + 200 * (((x - 30 - 3 * z) ** 2 + (y - 30) ** 2 < 180) | ((x - 80) ** 2 + (y - 45) ** 2 < 90 + 20 * z))
        for z in range(5)
    ]
    volume = np.stack(slices).astype(np.uint8)
    return volume[0], np.stack([volume[0], volume[0] // 2, volume[0]], axis=-1), volume


def answers(resampler: Resampler) -> Answers:
    """Predict all cases in both frames; returns what came out, by name."""
    grey, colour, volume = cases()
    flat = inclusive_to_half_open(np.array([[14, 14, 46, 46], [68, 33, 91, 56]]))
    deep = np.array([[16, 16, 1, 52, 46, 4], [66, 30, 0, 95, 60, 4]])
    found: Answers = {"ellipses": inscribed_ellipses(volume.shape, deep), "filled": filled_boxes(grey.shape, flat)}
    for frame in (SQUARE, PADDED):
        model = BrightInBox(frame)
        predictor = Predictor(model, batch_boxes=1, resampler=resampler)
        found[f"{frame} grey"] = predictor.predict(grey, flat, is_3d=False)
        found[f"{frame} encoded"] = np.array(model.n_encoded)
        found[f"{frame} colour"] = predictor.predict(colour, flat, is_3d=False)
        found[f"{frame} sections"] = predictor.predict(volume, deep, is_3d=True)
        following = Predictor(model, batch_boxes=1, resampler=resampler, volume_prompts="propagated", overlap="logit")
        found[f"{frame} volume"] = following.predict(volume, deep, is_3d=True)
        found[f"{frame} dsc"] = np.array(dsc(grey > 128, found[f"{frame} grey"] > 0))
        cells, n_small = masks_to_grid(grey[None] > 128, View.whole(*grey.shape), model.geometry, resampler)
        found |= {f"{frame} cells": cells, f"{frame} small": np.array(n_small)}
    found["boxes"] = tight_boxes(found[f"{SQUARE} grey"])[1]
    return found


def main(output: Path) -> None:
    """Write the answers of a process without the packages above, and which of them it could import all the same."""
    present = []
    for name in ABSENT:
        try:
            __import__(name)
        except ModuleNotFoundError:
            continue
        present.append(name)
    np.savez(output, present=np.array(present), loaded=np.array(sorted(sys.modules)), **answers(NumpyResampler()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
