"""Which device a process computes on. What belongs here: that choice, which needs torch. Not here: computing."""

import os

import torch

from pipelines.base.profile import Profile


def choose_device(profile: Profile) -> torch.device:
    """Return the device of this process: its own GPU where there are some and the profile allows."""
    wanted = profile.training.device
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
