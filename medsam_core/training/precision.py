"""Mixed precision. What belongs here: which number format a device computes in, and the loss scale that goes with it.

Not here: losses, which are always taken in float32.
"""

import torch

from medsam_core.training.errors import TrainingError


class Precision:
    """float32, or automatic mixed precision on CUDA: bfloat16 where the device has it, else scaled float16.

    Attributes:
        name: `float32`, `bfloat16` or `float16`.
        scaler: Loss scaler; passes everything through unless the format is float16.
    """

    def __init__(self, device: torch.device, *, amp: bool) -> None:
        if amp and device.type != "cuda":
            raise TrainingError(f"amp: expected a cuda device, found {device.type}; set amp to false to train there")
        half = torch.bfloat16 if amp and torch.cuda.is_bf16_supported() else torch.float16
        self._dtype = half if amp else torch.float32
        self._device_type = device.type
        self._amp = amp
        self.name = str(self._dtype).removeprefix("torch.")
        self.scaler = torch.GradScaler(device.type, enabled=self._dtype == torch.float16)

    def autocast(self) -> torch.autocast:
        """Return the context in which the networks run."""
        return torch.autocast(self._device_type, dtype=self._dtype, enabled=self._amp)

    def state_dict(self) -> dict[str, object]:
        """Return the loss scale's state; empty unless the format is float16."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take up a saved loss scale."""
        if state:
            self.scaler.load_state_dict(state)
