"""The C library's allocator. What belongs here: its settings for networks on a CPU. Not here: memory limits."""

import ctypes
from functools import cache

_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
"""Numbers of the settings of glibc's `mallopt`, from its `malloc.h`."""

_NEVER = -1


@cache
def keep_freed_memory() -> bool:
    """Let this process use the memory of freed tensors again instead of giving it back to the system at once.

    A network's activations are large, so glibc maps each anew and the system clears it page by page, which on a CPU can
    be a third of the time of a pass (docs/benchmarks.md). The process keeps what it once needed until it ends.

    Returns:
        Whether the C library has these settings; elsewhere nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
