"""Which number format a run trains in. What belongs here: settling what was asked for, by measurement if need be.

Not here: the formats (`medsam_core.training.precision`), or the settings (`medsam_core.base.config`).

A run settles its format once. What it settled on is part of its identity in checkpoint and weights, and a run that is
resumed goes on in it whatever it would measure now: only so does it end in the same bytes.
"""

import copy
import json
import logging
import statistics
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

import torch

from medsam_core.base.config import PrecisionSetting
from medsam_core.base.files import atomic_file
from medsam_core.models.checkpoints import read_metadata
from medsam_core.models.segmenter import Segmenter
from medsam_core.training.loading import LoadedMicrobatch, MicrobatchLoader
from medsam_core.training.precision import Precision, PrecisionName, bfloat16_units, mixed_name
from medsam_core.training.process_group import ProcessGroup
from medsam_core.training.run import TRAINING, TrainingRun
from medsam_core.training.step import Stepper

PrecisionWish = PrecisionSetting | Literal["mixed"]
"""`mixed`: automatic mixed precision, on CUDA only; the others are what a profile may state."""

ROUNDS = 3
"""Steps that are timed in each format, in turn, after one that is not."""

WORTH = 1.15
"""Times as fast that bfloat16 has to be: for less it would cost accuracy and bring next to nothing."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PrecisionRecord:
    """What a run trains in, and why; kept as `precision.json` beside its weights.

    Attributes:
        wish: What was asked for.
        name: What it trains in.
        units: Flags of the processor's units for bfloat16.
        seconds: Format -> median processor seconds of a step of one microbatch; empty where nothing was measured.
    """

    wish: PrecisionWish
    name: PrecisionName
    units: tuple[str, ...]
    seconds: dict[str, float]

    def __str__(self) -> str:
        """Say the format, the flags and what was measured."""
        measured = ", ".join(f"{name} {seconds:.3g} CPU s a microbatch" for name, seconds in self.seconds.items())
        flags = ", ".join(self.units) or "no units for bfloat16"
        return f"{self.name} (asked for {self.wish}; {flags}{'; ' + measured if measured else ''})"


def settle_precision(
    segmenter: Segmenter, run: TrainingRun, device: torch.device, wish: PrecisionWish, processes: ProcessGroup
) -> Precision:
    """Return the format of a run: what was recorded, else what was asked for, else what is measured to be faster.

    Only `auto` on a CPU with units for bfloat16 measures; without units it is float32, on CUDA bfloat16 where the
    device has it. Rank 0 decides for all processes.

    Args:
        segmenter: The model at its start, on the device; left as it is.
        run: The training.
        device: Where it trains.
        wish: What is asked for.
        processes: Those that share a step.

    Raises:
        TrainingError: If the device does not have what was asked for.
    """
    if wish == "float32":
        return Precision(device)
    names = get_args(PrecisionName)
    chosen = torch.zeros((), dtype=torch.int64, device=device)
    if processes.leads:
        begun_in = _begun_in(run)
        record = _settled(segmenter, run, device, wish, begun_in)
        logger.info("%s: precision %s", run.out, record)
        if begun_in is None or not run.precision_record.exists():
            _write(run.precision_record, record)
        chosen.fill_(names.index(record.name))
    processes.broadcast_([chosen])
    return Precision(device, names[int(chosen)])


def _settled(
    segmenter: Segmenter, run: TrainingRun, device: torch.device, wish: PrecisionWish, begun_in: PrecisionName | None
) -> PrecisionRecord:
    seconds: dict[str, float] = {}
    units = bfloat16_units() if device.type == "cpu" else ()
    if wish == "mixed":
        name = mixed_name(device)
    elif wish != "auto":
        name = wish
    elif begun_in is not None:
        name = begun_in
    elif device.type == "cuda":
        name = "bfloat16" if mixed_name(device) == "bfloat16" else "float32"
    else:
        name = "float32"
        if units:
            seconds = measure(segmenter, run)
            name = "bfloat16" if seconds["float32"] > WORTH * seconds["bfloat16"] else "float32"
    return PrecisionRecord(wish=wish, name=name, units=units, seconds=seconds)


def _begun_in(run: TrainingRun) -> PrecisionName | None:
    """Return the format that a run was begun in, from its weights or its checkpoint; None before the first of them."""
    identity: dict[str, str] = {}
    if run.weights.exists():
        identity = json.loads(read_metadata(run.weights).get(TRAINING, "{}"))
    elif run.checkpoint.exists():
        # Mapped into memory: nothing but the identity is read.
        identity = torch.load(run.checkpoint, map_location="cpu", weights_only=True, mmap=True).get("identity", {})
    name = identity.get("precision")
    return cast("PrecisionName", name) if name in get_args(PrecisionName) else None


def measure(segmenter: Segmenter, run: TrainingRun) -> dict[str, float]:
    """Time steps of the actual student on a microbatch of its plan, in float32 and bfloat16 in turn, on the CPU.

    The steps are taken by copies: weights and batch-norm statistics of the model stay as they are.

    Returns:
        Format -> median processor seconds.
    """
    alone, device = ProcessGroup(), torch.device("cpu")
    microbatch = _first_microbatch(segmenter, run)
    names: tuple[PrecisionName, ...] = ("float32", "bfloat16")
    steppers = {name: Stepper(copy.deepcopy(segmenter), run, Precision(device, name), alone) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(1 + ROUNDS):
        for name, stepper in steppers.items():
            # Of this process: what else the machine does must not decide how a model is trained.
            started = time.process_time()
            stepper.run(0, [microbatch])
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(own[1:]) for name, own in seconds.items()}


def _first_microbatch(segmenter: Segmenter, run: TrainingRun) -> LoadedMicrobatch:
    """Return the plan's first microbatch with the teacher's answers, so that only the student is timed."""
    loader = MicrobatchLoader(run, segmenter.geometry, ProcessGroup(), prefetch=1, threads=1)
    with closing(loader.microbatches_from(0)) as microbatches:
        first = next(microbatches)
    if first.answers is None:
        first = replace(first, answers=run.stage.ask(run.config, run.teacher, first.first_slot, first.batch))
    return first


def _write(path: Path, record: PrecisionRecord) -> None:
    content = {
        "wish": record.wish,
        "name": record.name,
        "units": list(record.units),
        "seconds": {name: float(f"{seconds:.3g}") for name, seconds in record.seconds.items()},
    }
    with atomic_file(path) as file:
        file.write(json.dumps(content).encode())
