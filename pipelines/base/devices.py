"""The device of a process. What belongs here: choosing it, which needs torch. Not here: computing on it."""

import os

import torch

from pipelines.base.profile import Profile


def choose_device(profile: Profile) -> torch.device:
    """Return the device of this process: its GPU, or the CPU if the profile says `cpu`, or `auto` without a GPU."""
    wanted = profile.training.device
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
