"""Freed memory stays with the process that will want it again.

Chunks of logits, tens of megabytes in all, come and go all the time. glibc returns what is free at
the end of its heap, and a moment later asks for it again: fresh pages, which the system clears
first. That costs more than the arithmetic on them, more in some processes than in others.
"""

import ctypes
import os
import sys
from functools import cache

# Of malloc.h. Pieces from 32 MiB on, the largest that glibc takes from its heap by itself, are
# returned as before; smaller ones stay.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_RETURNED, _NEVER = 32 * 2**20, 2**31 - 1
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@cache
def keep_pages() -> bool:
    """Let this process keep the pages of freed memory; whether it does.

    Whoever has set glibc's allocator in the environment is left alone, and so are other systems.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(
        mallopt(_MMAP_THRESHOLD, _RETURNED) and mallopt(_TRIM_THRESHOLD, _NEVER)
    )
