"""The two teachers, images for them, caches of their answers. What belongs here: what tests and benchmarks share."""

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medsam_core.models.checkpoints import load_model
from medsam_core.models.config import TeacherConfig
from medsam_core.models.encoders.sam_vit import from_sam_keys
from medsam_core.models.segmenter import Segmenter, build_teacher
from medsam_core.models.weights import load_strictly
from medsam_core.synthetic import write_sample
from storage.answers.cache_plan import ArraySpec, CacheSpec, plan_cache_parts
from storage.answers.cache_writer import publish, write_part
from storage.answers.teacher_cache import TeacherCache
from storage.base.blobs import LocalBlobs
from storage.sources.npz_source import read_case
from storage.sources.source import SourceConfig
from tests.golden_weights import golden_state


def shipped_stand_in() -> Segmenter:
    """Return the shipped teacher, at 128 pixels."""
    with as_file(files("medsam_core") / "weights" / "stand_in_128.safetensors") as path:
        return load_model(path)


def golden_vit_b() -> Segmenter:
    """Return MedSAM's architecture, at 1024 pixels, with weights that are a function of their names."""
    teacher = build_teacher(TeacherConfig(kind="medsam_vit_b", image_size=1024))
    state = {**golden_state("vit_b"), **golden_state("prompt_encoder"), **golden_state("mask_decoder")}
    load_strictly(teacher, from_sam_keys(state), "golden weights")
    return teacher.eval()


def synthetic_images(folder: Path, count: int, size: int) -> Tensor:
    """Return (count, 3, size, size) float32 from 0 to 255: cases of all modalities, resized."""
    write_sample(folder, seed=3, cases_per_modality=4, volumes_per_modality=1)
    paths = sorted(folder.rglob("2D*.npz"))
    images = []
    for path in (paths[number] for number in np.linspace(0, len(paths) - 1, count).astype(int)):
        pixels = torch.from_numpy(read_case(path, path.stem, path.parent.name, SourceConfig()).imgs).float()
        pixels = pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels.expand(3, -1, -1)
        images.append(torch.nn.functional.interpolate(pixels[None], (size, size), mode="bilinear", antialias=True)[0])
    return torch.stack(images)


def cache_of(
    folder: Path, name: str, values: npt.NDArray[np.float32], encoding: str, cut: tuple[int, int, int] = (1, 64, 1)
) -> TeacherCache:
    """Write and publish a cache of one kind of answers, and open it.

    Args:
        folder: Its place.
        name: Of the array.
        values: (slots, ...).
        encoding: Of the array.
        cut: Slots of a chunk, slots of a shard, shards of a part; by default as the largest profiles cut it.
    """
    root = LocalBlobs(folder)
    made_from: dict[str, Any] = {"test": encoding}
    spec = CacheSpec({name: ArraySpec(values.shape[1:], encoding)}, len(values), *cut, made_from)
    parts = plan_cache_parts(spec, [str(number) for number in range(spec.n_parts)])
    for part in parts:
        write_part(root, spec, part, {name: values[part.start : part.stop]})
    publish(root, spec, parts)
    return TeacherCache(root)


def bytes_of(folder: Path) -> int:
    """Return the bytes of every file of a cache, scales, indexes and checksums included."""
    return sum(LocalBlobs(folder).sizes().values())
