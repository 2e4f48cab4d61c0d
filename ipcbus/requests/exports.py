"""Futures of this process that other processes may ask for."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from ipcbus.errors import ChannelBroken, ChannelError, EncodeError
from ipcbus.requests.future import Future

if TYPE_CHECKING:
    from ipcbus.requests.reply import ReplyTo

__all__ = ["Exports"]

logger = logging.getLogger("ipcbus.requests")

_MOST = 4096
"""Those that are done and are kept: nobody knows whether somebody will ask for one again."""


class Exports:
    """Futures that were sent away before they were done, by the numbers of their requests."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may receive what asks for one
        self._pending: dict[int, Future[Any]] = {}
        self._done: OrderedDict[int, Future[Any]] = OrderedDict()
        """The one that was done first comes first."""

    def add(self, future: Future[Any]) -> None:
        """Keep a future that is sent away."""
        with self._lock:
            if future.number in self._pending or future.number in self._done:
                return
            self._pending[future.number] = future
        future.add_done_callback(self._settle)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._pending.clear()
            self._done.clear()

    def _settle(self, future: Future[Any]) -> None:
        """Keep but the value of a future that is done: it may have a descriptor."""
        value: Future[Any] = Future()
        assert future.outcome is not None  # this is called when it is done
        value.finish(*future.outcome)
        with self._lock:
            if self._pending.pop(future.number, None) is None:
                return  # all were forgotten
            self._done[future.number] = value
            if len(self._done) > _MOST:
                self._done.popitem(last=False)

    def pass_on(self, number: int, answer: ReplyTo) -> None:
        """Answer with a future's value when it is done; raises ``ChannelBroken`` if it is not known."""
        with self._lock:
            future = self._pending.get(number) or self._done.get(number)
        if future is None:
            raise ChannelBroken("this future was done long ago, and is not kept any more")

        def bring(done: Future[Any]) -> None:
            try:
                answer.send(done.outcome)
            except (ChannelError, EncodeError) as error:
                logger.warning("a future could not be passed on: %s", error)
                answer.give_up()

        future.add_done_callback(bring)
