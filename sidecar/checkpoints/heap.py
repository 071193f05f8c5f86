"""Heap: give back to the system what a large state took.

glibc keeps freed memory in arenas, one per thread that needed it: after one save
of 100 MB the process stayed 40 MiB larger, with two arenas and a trim nothing.
"""

import ctypes
from typing import Final

LARGE_BYTES: Final = 8 * 1024 * 1024
"""States smaller than this leave no trace worth the milliseconds."""

_ARENA_MAX: Final = -8  # M_ARENA_MAX in malloc.h
_ARENAS: Final = 2

_libc = ctypes.CDLL(None)


def bound_arenas() -> bool:
    """Have glibc use two arenas; call it before threads begin.

    Returns:
        False where the C library is another one: it has no arenas to bound.
    """
    mallopt = getattr(_libc, "mallopt", None)
    return mallopt is not None and bool(mallopt(_ARENA_MAX, _ARENAS))


def give_back(moved_bytes: int) -> bool:
    """Return free memory to the system after that many bytes went through.

    Returns:
        False when they were few, or the C library cannot.
    """
    trim = getattr(_libc, "malloc_trim", None)
    if trim is None or moved_bytes < LARGE_BYTES:
        return False
    trim(0)
    return True
