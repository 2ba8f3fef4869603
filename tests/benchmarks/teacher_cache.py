"""A cache's bytes, its error, and what reading it costs a training. `python -m tests.benchmarks.teacher_cache`.

`*_stand_in` caches the shipped teacher's embeddings at 128 pixels and is read for RepViT-M0.9, `*_vit_b` those of ViT-B
with the golden weights at 1024 and is read for RepViT-M1.1. Every file of a cache counts.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medsam_core.models.config import StudentConfig
from medsam_core.models.segmenter import Segmenter, build_student
from storage.answers.teacher_cache import TeacherCache
from tests.benchmarks._harness import interleaved, report
from tests.teachers import bytes_of, cache_of, golden_vit_b, shipped_stand_in, synthetic_images

NAME = "teacher_cache"
ENCODING = "int8_per_channel"


def _cache(folder: Path, name: str, values: npt.NDArray[np.float32], encoding: str) -> tuple[TeacherCache, float]:
    """Return a cache of these answers and its bytes for a slot."""
    return cache_of(folder, name, values, encoding), bytes_of(folder) / len(values)


def _answers(teacher: Segmenter, images: Tensor) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return embeddings, and probabilities for one box an image."""
    size = teacher.image_size
    box = torch.tensor([[[0.25 * size, 0.25 * size, 0.7 * size, 0.75 * size]]])
    with torch.inference_mode():
        embeddings = [teacher.encode(image[None]) for image in images]
        logits = [teacher.decode(embedding, box)[0] for embedding in embeddings]
    return torch.cat(embeddings).numpy(), torch.cat(logits).sigmoid().numpy()


def _error(case: str, values: npt.NDArray[np.float32], decoded: npt.NDArray[np.float32]) -> None:
    difference = np.square(values - decoded).mean(axis=(1, 2, 3))
    variance = values.var(axis=(2, 3)).mean(axis=1)
    share = float((difference / np.square(values).mean(axis=(1, 2, 3))).max())
    report(NAME, f"error_{case}", share, "of_mean_square_worst_slot")
    report(NAME, f"error_centred_{case}", float((difference / variance).max()), "of_variance_worst_slot")


def _step(student: Segmenter, images: Tensor, target: Tensor) -> Callable[[], None]:
    """Return forward, loss and backward of distillation; the optimiser's share is left out."""
    student.train()

    def work() -> None:
        student.zero_grad()
        torch.nn.functional.mse_loss(student.encode(images), target).backward()  # type: ignore[no-untyped-call]

    return work


def _measure(
    folder: Path,
    case: str,
    teacher: Segmenter,
    backbone: Literal["repvit_m0_9", "repvit_m1_1"],
    images: Tensor,
    microbatch: int,
) -> None:
    embeddings, probabilities = _answers(teacher, images)
    cache, size = _cache(folder / f"{case}_int8", "embeddings", embeddings, ENCODING)
    raw = embeddings[0].size * 2
    report(NAME, f"bytes_{case}", size, "bytes_per_slot", rival="raw float16", ratio=raw / size)
    report(NAME, f"share_{case}", size / raw, "of_raw_float16")
    _, half = _cache(folder / f"{case}_float16", "embeddings", embeddings, "float16")
    report(NAME, f"share_{case}_float16", half / raw, "of_raw_float16")
    _, masks = _cache(folder / f"{case}_masks", "probabilities", probabilities, "probability_uint8")
    report(NAME, f"share_{case}_probabilities", masks / (probabilities[0].size * 2), "of_raw_float16")
    _error(case, embeddings, cache.read("embeddings", 0, len(cache)))

    size_px = teacher.image_size
    student = build_student(StudentConfig(backbone=backbone, image_size=size_px), (0.4,) * 3, (0.2,) * 3, seed=0)
    step = _step(student, images[:microbatch], torch.from_numpy(embeddings[:microbatch]))
    seconds, ratio = interleaved(lambda: cache.read("embeddings", 0, microbatch), step)
    report(
        NAME,
        f"read_{case}",
        seconds / microbatch,
        "cpu_s_per_slot",
        rival=f"step of {backbone} at {size_px}",
        ratio=ratio,
    )


def main() -> None:
    """Print one line per case; `stand_in` as an argument leaves out ViT-B, which takes minutes."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _measure(folder, "stand_in", shipped_stand_in(), "repvit_m0_9", synthetic_images(folder / "npz", 64, 128), 16)
        if "stand_in" not in sys.argv[1:]:
            _measure(folder, "vit_b", golden_vit_b(), "repvit_m1_1", synthetic_images(folder / "npz", 4, 1024), 1)


if __name__ == "__main__":
    main()
