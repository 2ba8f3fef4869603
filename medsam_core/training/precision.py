"""Number formats. What belongs here: in which one a device computes, with the loss scale and memory layout it needs.

Not here: choosing between two by measurement (`medsam_core.training.precision_choice`); losses, which are always taken
in float32. Weights, gradients' sums, optimiser and batch-norm statistics are float32 in every format.
"""

from typing import Literal

import torch

from medsam_core.training.errors import TrainingError

PrecisionName = Literal["float32", "bfloat16", "float16"]

UNITS = ("amx_bf16", "avx512_bf16")
"""Flags of processors that multiply bfloat16 in hardware; elsewhere it is emulated, and slower than float32."""


class Precision:
    """float32, or autocast: the convolutions, products and attention of a network in a shorter format.

    A teacher on a CPU is asked in float32 whatever the student is trained in: its answers in torch's bfloat16 are off
    by more than a cache of them allows (`docs/adr/0025`).

    Attributes:
        name: The format.
        scaler: Loss scaler; passes everything through unless the format is float16.
        layout: Memory layout of the student and its images: channels last for bfloat16 on a CPU, which gains less
            without it.

    Args:
        device: Where the networks run.
        name: The format.

    Raises:
        TrainingError: If the device does not have it.
    """

    def __init__(self, device: torch.device, name: PrecisionName = "float32") -> None:
        on_cpu = device.type == "cpu"
        if name == "float16" and device.type != "cuda":
            raise TrainingError(f"precision float16: expected a cuda device, found {device.type}; train in float32")
        if name == "bfloat16" and not on_cpu and not _has_bfloat16(device):
            raise TrainingError(
                f"precision bfloat16: expected a device with units for it, found {device}; set training.precision to "
                "float32, or training.mixed_precision to take float16 where there is no bfloat16"
            )
        self.name = name
        self._device_type = device.type
        self._dtype: torch.dtype = getattr(torch, name)
        self.scaler = torch.GradScaler(device.type, enabled=name == "float16")
        self.layout = torch.channels_last if on_cpu and name == "bfloat16" else torch.contiguous_format

    def autocast(self) -> torch.autocast:
        """Return the context in which the student runs."""
        return self._autocast(enabled=self.name != "float32")

    def teacher_autocast(self) -> torch.autocast:
        """Return the context in which a teacher is asked: float32 on a CPU."""
        return self._autocast(enabled=self.name != "float32" and self._device_type != "cpu")

    def _autocast(self, *, enabled: bool) -> torch.autocast:
        return torch.autocast(self._device_type, dtype=self._dtype, enabled=enabled)

    def state_dict(self) -> dict[str, object]:
        """Return the loss scale's state; empty unless the format is float16."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take up a saved loss scale."""
        if state:
            self.scaler.load_state_dict(state)


def mixed_name(device: torch.device) -> PrecisionName:
    """Return the format of automatic mixed precision on CUDA: bfloat16 where the device has it, else float16.

    Raises:
        TrainingError: If the device is another.
    """
    if device.type != "cuda":
        raise TrainingError(
            f"mixed precision: expected a cuda device, found {device.type}; turn it off to train there, or set "
            "training.precision"
        )
    return "bfloat16" if _has_bfloat16(device) else "float16"


def bfloat16_units() -> tuple[str, ...]:
    """Return the flags of this processor's units for bfloat16; none where it has none."""
    capabilities = torch.cpu.get_capabilities()
    return tuple(flag for flag in UNITS if capabilities.get(flag))


def _has_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 itself; torch counts emulation too unless told not to."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
