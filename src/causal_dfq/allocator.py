"""Memory that a run frees stays with the process: each step needs the same again. [ours]"""

from __future__ import annotations

import ctypes
import functools
import platform

# Names of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1


@functools.cache
def keep_freed_memory() -> bool:
    """Tells the C library not to give freed memory back to the system; returns whether it could.

    Feature maps of large images lie above the size from which glibc maps each block afresh: the system then
    clears every page of every tensor in every step. Holds for the whole process, to its end.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return all(library.mallopt(name, _NEVER) == 1 for name in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD))


def give_back_freed_memory() -> bool:
    """Gives the pages that `keep_freed_memory` kept back to the system, once; returns whether there were any."""
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).malloc_trim(0))
