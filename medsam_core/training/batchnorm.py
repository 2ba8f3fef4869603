"""Batch-norm running statistics. What belongs here: how a step of several microbatches updates them, and recalibration.

Not here: the normalisation itself, which inside a microbatch is PyTorch's.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medsam_core.base.data import SliceReader
from medsam_core.base.geometry import Geometry
from medsam_core.imaging.preprocessing import image_to_model
from medsam_core.imaging.torch_resampling import TorchResampler, as_tensor
from medsam_core.imaging.views import View
from medsam_core.models.segmenter import Segmenter
from medsam_core.planning.plan import Plan
from medsam_core.training.process_group import ProcessGroup


class StepStatistics:
    """Makes a step's update of running statistics independent of how its microbatches are divided over processes.

    Every microbatch updates the statistics as they were before the step; the result of the step is the mean of these
    updates. So one process with three microbatches agrees with three processes that have one each.

    Args:
        module: All its batch-norm layers in training mode are handled.
    """

    def __init__(self, module: nn.Module) -> None:
        layers = [layer for layer in _layers(module) if layer.training]
        self._running = [b for layer in layers for b in (layer.running_mean, layer.running_var) if b is not None]
        self._counters = [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
        self._start, self._total = torch.empty(0), torch.empty(0)

    def begin_step(self) -> None:
        """Remember where the step starts."""
        self._start = self._flat()
        self._total = torch.zeros_like(self._start)

    def end_microbatch(self) -> None:
        """Add the update of one microbatch and restore the statistics of the step's start."""
        self._total += self._flat()
        self._write(self._start)
        for counter in self._counters:
            counter.sub_(1)

    def end_step(self, processes: ProcessGroup, microbatches: int) -> None:
        """Publish the mean over all `microbatches` of the step, those of other processes included, as one update."""
        self._write(processes.sum_(self._total) / microbatches)
        for counter in self._counters:
            counter.add_(1)

    def _flat(self) -> Tensor:
        return torch.cat([buffer.flatten() for buffer in self._running]) if self._running else torch.empty(0)

    def _write(self, flat: Tensor) -> None:
        parts = flat.split_with_sizes([buffer.numel() for buffer in self._running])
        for buffer, part in zip(self._running, parts, strict=True):
            buffer.copy_(part.view_as(buffer))


@torch.no_grad()
def recalibrate_batchnorm(segmenter: Segmenter, images: Iterable[Tensor]) -> int:
    """Replace the encoder's running statistics by the plain mean over batches of clean images.

    An encoder trained on mixed images carries their statistics, which are wrong for the images it is evaluated on
    (`docs/paper_protocol.md`). Weights do not change. Modes and momenta stay unchanged.

    Args:
        segmenter: Changed in place.
        images: Batches (B, 3, S, S) float32, raw values in 0..255; all have equal weight.

    Returns:
        The number of batches; without any, or without batch norm in the encoder, statistics stay unchanged.
    """
    encoder = segmenter.image_encoder
    layers = _layers(encoder)
    modes = [(module, module.training) for module in encoder.modules()]
    momenta = [(layer, layer.momentum) for layer in layers]
    device = next(segmenter.parameters()).device
    encoder.eval()
    for layer in layers:
        layer.train()
        layer.momentum = None
    count = 0
    try:
        for batch in images if layers else ():
            if count == 0:
                for layer in layers:
                    layer.reset_running_stats()
            segmenter.encode(batch.to(device))
            count += 1
    finally:
        for module, mode in modes:
            module.training = mode
        for layer, momentum in momenta:
            layer.momentum = momentum
    return count


def clean_images(plan: Plan, reader: SliceReader, geometry: Geometry, *, batches: int) -> Iterator[Tensor]:
    """Yield batches of whole, upright, unmixed slices for `recalibrate_batchnorm`.

    The slices are those of microbatches spread evenly over the plan's first epoch, so they are balanced as training is.

    Args:
        plan: Names the slices.
        reader: Reads them.
        geometry: Of the model.
        batches: How many microbatches to show, at most as many as an epoch has.

    Yields:
        (B, 3, S, S) float32, raw values in 0..255.
    """
    count = min(batches, plan.microbatches_per_epoch)
    for microbatch in np.linspace(0, plan.microbatches_per_epoch - 1, count).round().astype(int):
        slots, _, _ = plan.microbatch_slots(0, int(microbatch))
        pictures = [reader.read(int(row))[0] for row in slots["row"]]
        shown = [image_to_model(p, View.whole(*p.shape[:2]), geometry, TorchResampler()) for p in pictures]
        yield torch.stack([as_tensor(image) for image in shown])


def _layers(module: nn.Module) -> list[_BatchNorm]:
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
