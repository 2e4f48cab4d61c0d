"""Addressees: who is to answer this process's requests, and which of these end because nobody will.

An addressee is a process, whose death is watched, or a channel whose first receiver is not known yet. What is learnt is
learnt in the directory's thread.
"""

from __future__ import annotations

import logging
import os
from time import monotonic
from typing import TYPE_CHECKING, Any

from ipcbus import endpoints
from ipcbus.requests.losses import death, unread
from ipcbus.requests.outage import AGAIN
from ipcbus.requests.table import ANSWERED, GIVEN_UP

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.directory.server import Directory, Guest
    from ipcbus.endpoint import Endpoint
    from ipcbus.errors import ChannelError
    from ipcbus.requests.future import Future
    from ipcbus.requests.table import Requests

__all__ = ["YET", "Addressees"]

logger = logging.getLogger("ipcbus.requests")

YET = ""
"""The addressee of a request that is on its way: who sends it looks as soon as it is sent, and who answers works already."""
_FRESH = 0.02
"""Seconds for which what a link says of its receiver is taken to be so: asking the kernel costs as much as sending."""
_LOOK = 0.05
"""Seconds between two looks for the first receiver of a channel, while a request waits for it. Nothing else would tell of one
that has the way to this process already, and it may be killed with requests that it received and has not taken."""


class Addressees:
    """The addressees of what an inbox has asked.

    Args:
        directory: this process's own.
        key: what the inbox is kept under in it.
        table: who has which request.
        waiting: the requests, by number. Other threads add to it and take out of it; here it is only read, as a copy.
        fail: ends the requests of some numbers with an error; one that was answered meanwhile is let be.

    Attributes:
        watched: processes whose death will be known, and channels whose first receiver will be.
    """

    def __init__(
        self,
        directory: Directory,
        key: bytes,
        table: Requests,
        waiting: dict[int, Future[Any]],
        fail: Callable[[list[int], ChannelError], None],
    ) -> None:
        self.watched: dict[int | str, object] = {}
        self._pid = os.getpid()
        self._directory = directory
        self._key = key
        self._table = table
        self._waiting = waiting
        self._fail = fail
        directory.gone.append(self._gone)
        directory.came.append(self._came)

    def find(self, end: Endpoint) -> int | str | None:
        """Return who is to answer what is asked through a channel, and note it there for a moment; None: it is not known."""
        pid = (end.tx or end.open_sender()).receiver()
        if not pid:  # 0: it has just come, and has not said who it is
            return end.spec.id if end.spec.receivers == "one" else None
        if end.spec.id in self.watched:
            self._came()  # it can be told now whose those are that were sent before
        found = None if pid == self._pid else pid
        end.addressee = found, monotonic() + _FRESH
        return found

    def entrust(self, future: Future[Any], addressee: int | str | None) -> None:
        """Note who is to answer a future that waits already: a process, or who opens a channel first."""
        # After it was entered, and in this order: who is told of a death or of a receiver looks at what waits after that was
        # taken out of the watched.
        future.addressee = addressee
        if addressee is not None and addressee not in self.watched:
            self.watch(addressee)

    def watch(self, addressee: int | str) -> None:
        """See to it that the death of a process will be known, or that of who will be the receiver of a channel."""
        mine = object()
        if self.watched.setdefault(addressee, mine) is not mine:
            return
        if isinstance(addressee, str):
            self._directory.later(_LOOK, self._came)
        else:
            self._watch_process(addressee)

    def unanswered(self, number: int) -> None:
        """Fail a request that nobody will answer."""
        if self._table.holder(number) == GIVEN_UP:
            # All such at once, and those of which nobody could tell, since too many told already.
            self._directory.later(_LOOK, self._fail_given_up)
        else:
            self._fail([number], unread())

    def close(self) -> None:
        """Be told of nothing any more."""
        self._directory.gone.remove(self._gone)
        self._directory.came.remove(self._came)

    # ------------------------------------------------------------------ what is learnt

    def _watch_process(self, pid: int) -> None:
        try:
            self._directory.watch(os.pidfd_open(pid), lambda: self._died(pid))
        except ProcessLookupError:
            self._died(pid)
        except OSError as error:  # ChannelBroken is one
            logger.warning("the death of process %d would not be known for now: %s", pid, error)
            self._directory.later(AGAIN, lambda: self._watch_process(pid))

    def _came(self, _guest: Guest | None = None) -> None:
        """Watch who has opened channels since requests were sent there: it may have received more than it has taken."""
        for channel in [key for key in self.watched.copy() if isinstance(key, str)]:
            pid = endpoints.receiver(channel)
            self.watched.pop(channel, None)
            there = (future for future in self._waiting.copy().values() if future.addressee == channel)
            if pid is None:
                if any(there):
                    self.watch(channel)
                continue
            for future in there:
                self.entrust(future, None if pid == self._pid else pid)

    def _died(self, pid: int) -> None:
        """Fail what a process was to receive, unless another one has it."""
        living: dict[int, int | None] = {guest.number: guest.pid for guest in self._directory.guests()}
        living[ANSWERED] = None  # the reply is here, or on its way
        self.watched.pop(pid, None)
        numbers = [number for number, future in self._waiting.copy().items() if future.addressee == pid]
        self._fail([number for number in numbers if living.get(self._table.holder(number), pid) == pid], death(pid))

    def _gone(self, guest: Guest) -> None:
        """Fail what a process had taken, when it ends: it may have lost but its connection, and then it still answers."""
        if self._key not in guest.keys:
            return  # it never had the way here, and so no request
        taken = {
            number: future for number, future in self._waiting.copy().items() if self._table.holder(number) == guest.number
        }
        if not taken:
            return
        try:
            os.close(os.pidfd_open(guest.pid))
        except OSError:  # it has ended, or its end could not be watched
            self._fail(list(taken), death(guest.pid))
            return
        early = False
        for future in taken.values():
            if future.addressee == YET:
                early = True  # who sends it would overwrite it
            else:
                self.entrust(future, guest.pid)
        if early:
            self._directory.later(_LOOK, lambda: self._gone(guest))

    def _fail_given_up(self) -> None:
        self._fail([number for number in self._waiting.copy() if self._table.holder(number) == GIVEN_UP], unread())
