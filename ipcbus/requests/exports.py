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
        self._futures: OrderedDict[int, Future[Any]] = OrderedDict()

    def add(self, future: Future[Any]) -> None:
        """Keep a future that is sent away."""
        with self._lock:
            if future.number in self._futures:
                return
            self._futures[future.number] = future
            spare = len(self._futures) - _MOST
            if spare > 0:
                for known in [known for known, old in self._futures.items() if old.is_done][:spare]:
                    del self._futures[known]
        future.add_done_callback(self._settle)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._futures.clear()

    def _settle(self, future: Future[Any]) -> None:
        """Keep but the value of a future that is done: it may have a descriptor."""
        value: Future[Any] = Future()
        assert future.outcome is not None  # this is called when it is done
        value.finish(*future.outcome)
        with self._lock:
            if future.number in self._futures:
                self._futures[future.number] = value

    def pass_on(self, number: int, answer: ReplyTo) -> None:
        """Answer with a future's value when it is done; raises ``ChannelBroken`` if it is not known."""
        with self._lock:
            future = self._futures.get(number)
        if future is None:
            raise ChannelBroken("this future was done long ago, and is not kept any more")

        def bring(done: Future[Any]) -> None:
            try:
                answer.send(done.outcome)
            except (ChannelError, EncodeError) as error:
                logger.warning("a future could not be passed on: %s", error)
                answer.give_up()

        future.add_done_callback(bring)
