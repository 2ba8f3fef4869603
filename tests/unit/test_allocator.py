"""Memory of freed tensors is used again."""

import ctypes
import subprocess
import sys

import pytest

from medsam_core.base.allocator import keep_freed_memory

FAULTS = """
import resource, sys
import torch
from medsam_core.base.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(2**24).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
mapped_anew = faults()
if not keep_freed_memory():
    sys.exit(3)
faults()
print(mapped_anew, faults())
"""
"""Prints the page faults of ten tensors of 64 MiB, one after the other: before, and after."""


def test_large_tensors_are_not_mapped_anew() -> None:
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=False)
    if run.returncode == 3:
        pytest.skip("this C library has no mallopt")
    assert run.returncode == 0, run.stderr
    before, after = map(int, run.stdout.split())
    assert after < before / 20, "each of ten tensors had its own pages before"


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert keep_freed_memory.__wrapped__() is False
