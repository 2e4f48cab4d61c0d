"""What runs in the processes, or in the thread, of a client: some of its connections."""

from __future__ import annotations

import asyncio
import logging
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ipcbus.web.client.connection import Connection, Counts
from ipcbus.web.loop import loop_factory
from ipcbus.web.reporter import counted, reporting

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.channel import Channel
    from ipcbus.supervisor import Life
    from ipcbus.web.client.marks import Marks
    from ipcbus.web.client.options import ClientOptions
    from ipcbus.web.snapshots import Slot

__all__ = ["Spec", "Work", "run_connections"]

HANDSHAKES = 64
"""Opening handshakes under way at any time in one process: fewer than most servers let wait."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One connection to keep up."""

    number: int
    url: str
    outgoing: Channel | None


class Work:
    """Some connections of a client, on one event loop.

    Args:
        specs: which.
        into: the channel for all that they bring.
        options: how they are kept up.
        slot: where what is counted goes.
        over: those that an earlier process has seen end for good, which are not tried again; those that do here are added.
    """

    def __init__(self, specs: list[Spec], into: Channel, options: ClientOptions, slot: Slot, over: Marks) -> None:
        self._specs = [spec for spec in specs if spec.number not in over]
        self._over = over
        self._into = into
        self._options = options
        self._counts = Counts()
        self._slot = slot
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def run(self, ready: Callable[[], None], *, again: bool = False) -> None:
        """Be connected until ``stop``, or until there is nothing left to try.

        Args:
            ready: called once the channels are open.
            again: a process that had these connections before was killed.
        """
        self._into.sender.ready()
        for spec in self._specs:
            if spec.outgoing is not None:
                spec.outgoing.receiver.fileno()
        gate = asyncio.Semaphore(HANDSHAKES)
        connections = asyncio.gather(
            *(
                self._keep(
                    spec.number,
                    Connection(spec.number, spec.url, self._options, self._into, spec.outgoing, self._counts, gate),
                    again=again,
                )
                for spec in self._specs
            )
        )
        stopping = asyncio.create_task(self._stop.wait())
        ready()
        async with reporting(self._slot, lambda: counted(self._counts)):
            try:
                await asyncio.wait((connections, stopping), return_when=asyncio.FIRST_COMPLETED)
                if connections.done():
                    connections.result()  # raises what ended it
            finally:
                for task in (connections, stopping):
                    task.cancel()
                await asyncio.gather(connections, stopping, return_exceptions=True)

    async def _keep(self, number: int, connection: Connection, *, again: bool) -> None:
        await connection.run(again=again)
        self._over.set(number)

    def stop(self) -> None:
        """Make ``run`` return. From any thread, and from signal handlers."""
        self._loop.call_soon_threadsafe(self._stop.set)


def run_connections(life: Life, specs: list[Spec], into: Channel, options: ClientOptions, slot: Slot, over: Marks) -> None:
    """Be a process of a client, until SIGTERM or until there is nothing left to try."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(processName)s[%(process)d] %(name)s: %(message)s")

    async def main() -> None:
        work = Work(specs, into, options, slot, over)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.stop)
        await work.run(life.ready, again=life.incarnation > 0)

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main())
