"""Starting the trainer as its own process, through Dagster Pipes. What belongs here: commands. Not here: training."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from dagster._core.errors import DagsterPipesExecutionError
from dagster._core.pipes.context import PipesMessageHandler
from dagster_pipes import PipesParams

from medsam_core.training.parent_watch import PARENT_VARIABLE

Launch = Callable[[Path, int], None]
"""Runs a job file of the trainer with the given number of processes; raises if the trainer fails."""


def trainer_command(job_file: Path, processes: int) -> list[str]:
    """Return the command of a job: the trainer itself, or torchrun if there are several processes."""
    if processes == 1:
        return [sys.executable, "-m", "pipelines.training.trainer", str(job_file)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *torchrun, "-m", "pipelines.training.trainer", str(job_file)]


class _Listener(dg.PipesTempFileMessageReader):
    """Reads the trainer's messages, and keeps what it said last of its own accord: why it failed."""

    reason = ""

    @contextmanager
    def read_messages(self, handler: PipesMessageHandler) -> Iterator[PipesParams]:
        """See `dg.PipesMessageReader`; the client returns a trainer's own messages only if it ended well."""
        try:
            with super().read_messages(handler) as params:
                yield params
        finally:
            self.reason = "; ".join(map(str, handler.get_custom_messages()))


def launch_trainer(context: dg.AssetExecutionContext) -> Launch:
    """Return a launcher whose processes report to this asset's step and end with it.

    The launcher raises `dg.Failure` with the trainer's own reason, if the trainer could give one.
    """

    def launch(job_file: Path, processes: int) -> None:
        listener = _Listener()
        # The agent of torchrun does not end with this step, so the trainers receive the process id to watch.
        environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
        client = dg.PipesSubprocessClient(env=environment, message_reader=listener)
        try:
            client.run(command=trainer_command(job_file, processes), context=context.op_execution_context)
        except DagsterPipesExecutionError as error:
            why = listener.reason or f"{error}; the trainer's output says more"
            raise dg.Failure(f"trainer of {job_file.parent}: {why}") from None

    return launch
