"""Forks: how often this process has forked, for those who need to know whether a child may have inherited something."""

from __future__ import annotations

import os

__all__ = ["count"]

_forks = 0
_hooked = False


def count() -> int:
    """Return a number that every fork of this process changes, in the parent and in the child, from the first call on.

    Takes no lock, so that finalizers may call it: garbage is collected at any moment, also inside a call of this.
    """
    global _hooked  # noqa: PLW0603  hooks of the interpreter are per process, and so is this
    if not _hooked:
        _hooked = True
        # Before as well as after: what is made while another thread forks must not have the number that follows.
        os.register_at_fork(before=_forked, after_in_parent=_forked, after_in_child=_forked)
    return _forks


def _forked() -> None:
    global _forks  # noqa: PLW0603  as above
    _forks += 1
