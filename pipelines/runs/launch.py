"""Starting the trainer as its own process, through Dagster Pipes. What belongs here: commands. Not here: training."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import dagster as dg

from medsam_core.training.parent_watch import PARENT_VARIABLE

Launch = Callable[[Path, int], None]
"""Runs a job file of the trainer with the given number of processes; raises if the trainer fails."""


def trainer_command(job_file: Path, processes: int) -> list[str]:
    """Return the command of a job: the trainer itself, or torchrun if there are several processes."""
    if processes == 1:
        return [sys.executable, "-m", "pipelines.training.trainer", str(job_file)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *torchrun, "-m", "pipelines.training.trainer", str(job_file)]


def launch_trainer(context: dg.AssetExecutionContext) -> Launch:
    """Return a launcher whose processes report to this asset's step and end with it."""

    def launch(job_file: Path, processes: int) -> None:
        # The agent of torchrun does not end with this step, so the trainers receive the process id to watch.
        client = dg.PipesSubprocessClient(env={**os.environ, PARENT_VARIABLE: str(os.getpid())})
        client.run(command=trainer_command(job_file, processes), context=context.op_execution_context)

    return launch
