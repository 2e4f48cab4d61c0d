"""Forks: how often this process has forked, for those who need to know whether a child may have inherited something."""

from __future__ import annotations

import os
import threading

__all__ = ["count"]

_forks = 0
_hooked = False
_lock = threading.Lock()


def count() -> int:
    """Return a number that every fork of this process changes, in the parent and in the child, from the first call on."""
    global _hooked  # noqa: PLW0603  hooks of the interpreter are per process, and so is this
    with _lock:
        if not _hooked:
            os.register_at_fork(before=_lock.acquire, after_in_parent=_forked, after_in_child=_forked)
            _hooked = True
        return _forks


def _forked() -> None:
    global _forks  # noqa: PLW0603  as above
    _forks += 1
    _lock.release()
