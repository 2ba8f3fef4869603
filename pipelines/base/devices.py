"""The device of a process. What belongs here: choosing it, and what is computed in there. Not here: computing on it."""

import os

import torch

from medsam_core.base.config import PrecisionSetting
from medsam_core.training.precision_choice import PrecisionWish
from pipelines.base.profile import Profile


def choose_device(profile: Profile) -> torch.device:
    """Return the device of this process: its GPU, or the CPU if the profile says `cpu`, or `auto` without a GPU."""
    wanted = profile.training.device
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def precision_on(device: torch.device, profile: Profile, stated: PrecisionSetting) -> PrecisionWish:
    """Return in which number format to train on a device.

    Args:
        device: Where the training runs.
        profile: Says whether CUDA takes automatic mixed precision.
        stated: The number format that the training states; any but float32 is taken as it is.
    """
    mixed = device.type == "cuda" and profile.training.mixed_precision
    return "mixed" if mixed and stated == "float32" else stated
