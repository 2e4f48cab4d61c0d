"""Mappings: a file's memory, without the descriptor that a mapping in Python otherwise keeps for as long as it lives.

The descriptor stays the caller's and may be closed at once. (``mmap.mmap`` keeps a copy, until ``trackfd=False`` of
Python 3.13.)
"""

from __future__ import annotations

import ctypes
import mmap
import os

__all__ = ["map_private", "map_shared"]

_MAP_FIXED = 0x10
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)


def map_private(fd: int, size: int) -> memoryview:
    """Map the first ``size`` bytes of a file: writable, and what is written is seen by nobody else.

    A receiver that keeps thousands of large messages needs no descriptor for each.

    Raises:
        OSError: the system refused.
    """
    return _map(fd, size, mmap.MAP_PRIVATE)


def map_shared(fd: int, size: int, *, writable: bool = True) -> memoryview:
    """Map the first ``size`` bytes of a file: what is written is seen by all who have it mapped so.

    Args:
        fd: of the file, which must be at least that long: what is read beyond its end kills the process.
        size: bytes.
        writable: whether it is written to from here, and not only read.

    Raises:
        OSError: the system refused.
    """
    return _map(fd, size, mmap.MAP_SHARED, writable=writable)


def _map(fd: int, size: int, kind: int, *, writable: bool = True) -> memoryview:
    access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    # Memory of its own first, which frees itself with its last user; then the file in the very same place.
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE)
    place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if _libc.mmap(place, size, access, kind | _MAP_FIXED, fd, 0) != place:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    view = memoryview(memory)
    return view if writable else view.toreadonly()
