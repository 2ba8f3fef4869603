"""LiteMedSAM's encoder and a student's step on a CPU. `python -m tests.benchmarks.encoding`.

`singly`: `Segmenter.encode`, an image at a time with channels last, against the network on the whole batch.
`kept_encode`, `kept_step`: a process that keeps freed memory (`keep_freed_memory`) against one with the C library's
defaults, each a process of its own, asked in turn. Weights are random; `OMP_NUM_THREADS` threads, two by default.
"""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache, partial
from multiprocessing import get_context

import torch
from torch import Tensor

from medsam_core.base.allocator import keep_freed_memory
from medsam_core.models.config import StudentConfig, TeacherConfig
from medsam_core.models.segmenter import Segmenter, build_student, build_teacher
from tests.benchmarks._harness import cpu_seconds, interleaved, report

NAME = "encoding"
SIDE, IMAGES = 256, 8
BOXES = torch.tensor([[20.0, 20.0, 100.0, 100.0], [60.0, 60.0, 200.0, 200.0], [10.0, 100.0, 80.0, 220.0]])


@cache
def _images() -> Tensor:
    return 255 * torch.rand(IMAGES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@cache
def _teacher() -> Segmenter:
    return build_teacher(TeacherConfig(kind="lite_medsam", image_size=SIDE)).eval()


@cache
def _student() -> Segmenter:
    config = StudentConfig(backbone="repvit_m1_1", image_size=SIDE, neck="pyramid", resampling="area")
    return build_student(config, (0.4,) * 3, (0.2,) * 3, 0).train().to(memory_format=torch.channels_last)


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", "2"))


@torch.inference_mode()
def _whole_batch() -> Tensor:
    embeddings: Tensor = _teacher().image_encoder(_teacher().normalise(_images()))
    return embeddings


@torch.inference_mode()
def _encode() -> Tensor:
    return _teacher().encode(_images())


def _step() -> None:
    """Forward and backward of the pyramid student in bfloat16, three boxes an image."""
    images = _images().contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, _ = _student()(images, BOXES.expand(IMAGES, -1, -1))
    torch.autograd.backward(logits.float().square().mean())


def _begin(keep: bool) -> None:
    torch.set_num_threads(_threads())
    if keep and not keep_freed_memory():
        raise RuntimeError("expected a C library with mallopt, found none; this case needs glibc")


def _asked(pool: ProcessPoolExecutor, work: Callable[[], object]) -> float:
    """Return the CPU seconds that the pool's process takes."""
    return pool.submit(cpu_seconds, work).result()


def _kept(case: str, work: Callable[[], object]) -> None:
    with ExitStack() as stack:
        pools = [
            stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin, initargs=(keep,)))
            for keep in (True, False)
        ]
        ours, rival = (partial(_asked, pool, work) for pool in pools)
        seconds, ratio = interleaved(ours, rival, seconds=lambda asked: float(asked()))
    report(NAME, case, seconds / IMAGES, "cpu_s_per_image", rival="the C library's defaults", ratio=ratio)


def main() -> None:
    """Print one line for each case."""
    torch.set_num_threads(_threads())
    seconds, ratio = interleaved(_encode, _whole_batch)
    report(NAME, "singly", seconds / IMAGES, "cpu_s_per_image", rival="the whole batch", ratio=ratio)
    _kept("kept_encode", _encode)
    _kept("kept_step", _step)


if __name__ == "__main__":
    main()
