"""What every benchmark shares: interleaved timing in CPU seconds and one JSON line for each case.

A line has `benchmark`, `case`, `value`, `unit`, and, where there is a rival, `rival` and `ratio` (rival's CPU seconds
over ours: above 1 means that ours is faster).
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

ROUNDS = 5


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of all threads that one call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def interleaved(
    ours: Callable[[], Any],
    rival: Callable[[], Any] | None = None,
    rounds: int = ROUNDS,
    seconds: Callable[[Callable[[], Any]], float] = cpu_seconds,
) -> tuple[float, float | None]:
    """Time ours and a rival in turn, after one warm-up each.

    Args:
        ours: Our work.
        rival: The rival's.
        rounds: How often each is timed.
        seconds: Calls one of them and returns the CPU seconds that it took; another than this process's where the work
            is done by others.

    Returns:
        Our median CPU seconds, and the median over rounds of the rival's seconds over ours.
    """
    seconds(ours)
    if rival is not None:
        seconds(rival)
    own, ratios = [], []
    for _ in range(rounds):
        own.append(seconds(ours))
        if rival is not None:
            ratios.append(seconds(rival) / max(own[-1], 1e-9))
    return statistics.median(own), statistics.median(ratios) if ratios else None


def report(
    benchmark: str, case: str, value: float, unit: str, *, rival: str | None = None, ratio: float | None = None
) -> None:
    """Print one JSON line."""
    line: dict[str, object] = {"benchmark": benchmark, "case": case, "value": value, "unit": unit}
    if rival is not None:
        line |= {"rival": rival, "ratio": ratio}
    write_line(line)


def write_line(line: Mapping[str, object]) -> None:
    """Print one JSON line of a benchmark whose cases have more figures than one."""
    sys.stdout.write(json.dumps(line) + "\n")
