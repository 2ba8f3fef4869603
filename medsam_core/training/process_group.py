"""The processes that train together. What belongs here: sums and copies across ranks, no-ops for a single process.

Not here: how work is divided, which is a reading of the plan (`medsam_core.training.loop`).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class ProcessGroup:
    """One process among `size`; the default is a process on its own."""

    rank: int = 0
    """Number of this process, from 0; rank 0 alone writes files and reports."""
    size: int = 1
    """How many processes share a step."""

    @classmethod
    def from_environment(cls, device: torch.device) -> Self:
        """Join the processes that `torchrun` started, or stand alone where WORLD_SIZE is unset or 1.

        Args:
            device: Where this rank's tensors live; decides between NCCL and Gloo.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(rank=dist.get_rank(), size=dist.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_all_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each of several tensors of one dtype by its sum over ranks, as one message."""
        if self.size > 1 and tensors:
            flat = self.sum_(torch.cat([tensor.flatten() for tensor in tensors]))
            for tensor, part in zip(tensors, flat.split_with_sizes([t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Replace every rank's tensors by rank 0's, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def close(self) -> None:
        """Leave the group of processes, if one was joined."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()
