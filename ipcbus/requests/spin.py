"""Spinning: looking for a message a few times before sleeping until it comes, where it is likely to come at once.

To put a process to sleep and to wake it costs more than the other side needs to answer. So whoever just asked, or just
answered, looks for a moment first; but only while that pays: when messages come later than that, or the processors are
busy with other things, it sleeps at once.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from ipcbus.errors import ChannelEmpty

if TYPE_CHECKING:
    from ipcbus.transport import Frame, RecvLink

__all__ = ["Spin"]

_LONGEST = 50e-6
"""Seconds for which it looks."""
_WORTH = 80e-6
"""Seconds of sleep after which looking would not have helped; what sleeping and waking takes is included."""


_RARELY = 1024
"""Times it sleeps at most, without having to, before it tries again whether looking pays."""


class Spin:
    """Receives from a link, and learns whether looking pays."""

    __slots__ = ("_hits", "_quick", "_wanted")

    def __init__(self) -> None:
        self._wanted = 2
        """Short sleeps in a row after which it looks; doubled each time that looking was in vain."""
        self._quick = 0
        """Short sleeps in a row."""
        self._hits = 0
        """Times in a row that looking found something."""

    def recv(self, link: RecvLink, timeout: float | None) -> Frame:
        """Take the next message; as ``RecvLink.recv``."""
        began = monotonic()
        if self._quick >= self._wanted and (timeout is None or timeout > _LONGEST):
            until = began + _LONGEST
            recv = link.recv
            found: Frame | None = None
            while True:
                try:
                    found = recv(0)
                except ChannelEmpty:
                    began = monotonic()
                    if began < until:
                        continue
                break
            if found is not None and monotonic() < until:
                self._hits += 1
                if self._hits >= _RARELY:
                    self._wanted = 2
                return found
            # In vain, or it took longer: the other side could not run, perhaps because this one did.
            self._quick = self._hits = 0
            self._wanted = min(2 * self._wanted, _RARELY)
            if found is not None:
                return found
        frame = link.recv(timeout)
        self._quick = self._quick + 1 if monotonic() - began < _WORTH else 0
        return frame
