"""One connection of a client: kept up, its messages put on a channel, and those of another channel sent."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from time import monotonic, time  # a message's time of arrival is for people and other programs, so it has the wall clock
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.protocol import State

from ipcbus.errors import ChannelBroken, ChannelClosed, ChannelFull, EncodeError, MessageTooLarge, SerializationError
from ipcbus.web.client.incoming import Incoming, Mailbox
from ipcbus.web.client.options import tls_context
from ipcbus.web.client.retry import Backoff, is_final

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

    from ipcbus.channel import Channel
    from ipcbus.web.client.options import ClientOptions

__all__ = ["Connection", "Counts", "End"]

logger = logging.getLogger("ipcbus.web.client")

NORMAL = 1000
ABNORMAL = 1006
TURN = 64
"""Messages that may be handled in a row before other tasks get the event loop."""
UNDELIVERABLE = (ChannelBroken, MessageTooLarge, EncodeError)


@dataclass(slots=True)
class Counts:
    """What has happened to the connections of one process, or of a client."""

    connected: int = 0
    disconnected: int = 0
    refused: int = 0
    """Tries that led to no connection."""
    received: int = 0
    """Messages that came."""
    missed: int = 0
    """Of these, messages that were dropped: by the overflow policy, because the channel could not take them, or because it had
    no room when the client was closed."""
    sent: int = 0
    """Messages handed to the network. Whether they arrived only the server knows."""
    unsent: int = 0
    """Messages taken from the outgoing channel that could not be sent, or waited for the network when a connection ended."""


@dataclass(frozen=True, slots=True)
class End:
    """How a try came out."""

    code: int
    """The close code, or the HTTP status of a refusal, or 0 where there was no answer."""
    reason: str
    seconds: float | None
    """How long there was a connection; None if there was none."""


class Connection:
    """Keeps one connection up.

    Args:
        number: its place among the URLs of the client.
        url: where it leads.
        options: how.
        into: takes :class:`Incoming`.
        outgoing: gives ``str`` and ``bytes`` to send, or None.
        counts: counts it, with others.
        gate: held while a handshake is under way, so that a thousand connections do not begin in one instant.
    """

    def __init__(
        self,
        number: int,
        url: str,
        options: ClientOptions,
        into: Channel,
        outgoing: Channel | None,
        counts: Counts,
        gate: asyncio.Semaphore,
    ) -> None:
        self._number = number
        self._url = url
        self._options = options
        self._into = into.sender
        self._outgoing = None if outgoing is None else outgoing.receiver
        self._counts = counts
        self._gate = gate
        self._mailbox = Mailbox(options.overflow, options.buffer)
        self._dropped = 0  # of those that the mailbox has counted, how many are in self._counts
        self._pumping = self._losing = False
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._online = asyncio.Event()
        self._over = False  # whether "ended" was said
        self._ws: ClientConnection | None = None
        self._sending: asyncio.Task[bool] | None = None
        self._in_hand: tuple[bytes | bytearray | memoryview, bool] | None = None
        """What was taken from the outgoing channel and is not begun to send, and whether it is text."""
        self._backoff = Backoff(options.first_delay, options.longest_delay)

    async def run(self, *, again: bool) -> None:
        """Be connected until cancelled, or until another try is pointless or nobody wants what comes.

        Args:
            again: a process had this connection before and was killed; its messages of the meantime are missing.
        """
        keeping = asyncio.create_task(self._keep(again=again))
        tasks: set[asyncio.Task[None]] = {keeping, asyncio.create_task(self._pump())}
        if self._outgoing is not None:
            tasks.add(asyncio.create_task(self._send_out(self._outgoing)))
        try:
            while not keeping.done():
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # raises what ended it
        except ChannelClosed as closed:
            logger.info("%s: nobody wants what it brings any more: %s", self._url, closed)
        finally:
            over = keeping.done() or self._over
            for task in (keeping, *tasks):
                task.cancel()
            await asyncio.gather(keeping, *tasks, return_exceptions=True)
            if not over:
                self._mailbox.add(Incoming("ended", "the client was closed", self._number, time(), NORMAL))  # wall clock
            self._flush()
            self._mailbox.abandon()
            self._count()
            if self._in_hand is not None:
                self._unsent("its connection has ended, and so has the client")

    # ------------------------------------------------------------------ the connection

    async def _keep(self, *, again: bool) -> None:
        """Connect, and connect again, until that is pointless."""
        if again:
            await self._put("disconnected", "the process that had the connection was killed", ABNORMAL)
        while True:
            end = await self._once()
            refused = end.seconds is None
            if end.seconds is not None:
                self._backoff.lasted(end.seconds)
            if not self._options.reconnect or is_final(end.code, refused=refused, give_up_on=self._options.give_up_on):
                self._over = True
                await self._put("ended", end.reason, end.code)
                await self._drained()
                return
            delay = self._backoff.delay()
            if refused:
                logger.info("%s: %s; tried again in %.1f seconds", self._url, end.reason, delay)
            else:
                await self._put("disconnected", end.reason, end.code)
            await asyncio.wait((asyncio.get_running_loop().create_future(),), timeout=delay)

    async def _once(self) -> End:
        """Connect, receive until the connection ends, and say how it ended."""
        try:
            async with self._gate:
                ws = await self._connect()
        except InvalidStatus as refusal:
            self._counts.refused += 1
            response = refusal.response
            return End(response.status_code, f"refused with HTTP {response.status_code} {response.reason_phrase}", None)
        except (OSError, EOFError, TimeoutError, UnicodeError, WebSocketException) as error:  # UnicodeError: of a host's name
            self._counts.refused += 1
            return End(0, f"cannot be reached: {str(error) or type(error).__name__}", None)
        began, why = monotonic(), ""
        self._counts.connected += 1
        try:
            await self._put("connected", "")
            self._ws = ws
            self._online.set()
            async for message in ws:
                self._counts.received += 1
                await self._put("text" if isinstance(message, str) else "binary", message)
                if not self._counts.received % TURN:
                    await asyncio.sleep(0)  # neither of the two above yields while thousands came in one piece
        except ConnectionClosed as closed:
            why = str(closed)
        finally:
            self._ws = None
            self._online.clear()
            if self._sending is not None:
                self._sending.cancel()  # in this instant, so that it takes nothing more from the channel
            self._counts.disconnected += 1
            await self._hang_up(ws)
        code = int(ws.close_code or ABNORMAL)  # the library's own class must not travel: who receives it need not have that
        return End(code, ws.close_reason or why, monotonic() - began)

    async def _hang_up(self, ws: ClientConnection) -> None:
        try:
            # The library's own limit begins when all is written, which never comes about if the server reads nothing.
            async with asyncio.timeout(self._options.close_timeout):
                # What still comes is thrown away: the answer to the closing is behind it.
                await asyncio.gather(ws.close(), _discard(ws))
        except TimeoutError:
            ws.transport.abort()
            await ws.wait_closed()

    async def _connect(self) -> ClientConnection:
        options = self._options
        more: dict[str, Any] = {"ssl": tls_context(options.ca_file)} if self._url.startswith("wss:") else {}
        return await connect(
            self._url,
            additional_headers=options.headers,
            subprotocols=options.subprotocols or None,  # type: ignore[arg-type]  # Subprotocol is a name for str
            compression="deflate" if options.compression else None,
            open_timeout=options.open_timeout,
            close_timeout=options.close_timeout,
            ping_interval=options.ping_interval,
            ping_timeout=options.ping_timeout,
            max_size=options.max_size,
            proxy=options.proxy,
            logger=logging.getLogger("ipcbus.web.client.websockets"),
            **more,
        )

    # ------------------------------------------------------------------ in

    async def _put(self, kind: str, data: str | bytes, code: int = 0) -> None:
        """Deliver, now or from the mailbox, or wait for room there."""
        item = Incoming(kind, data, self._number, time(), code)  # wall clock
        while not self._mailbox.put(item):
            self._room.clear()
            try:
                await self._room.wait()
            except asyncio.CancelledError:
                self._mailbox.add(item)
                raise
        if not self._pumping:
            self._flush()
        self._count()

    def _flush(self) -> None:
        """Hand to the channel what it takes at once; the pump does the rest."""
        while (item := self._mailbox.take()) is not None:
            try:
                self._into.send(item, 0)
                self._losing = False
            except (ChannelFull, ChannelClosed):
                self._mailbox.back(item)
                self._work.set()  # the pump waits for room, or is told as well that there will be none
                return
            except UNDELIVERABLE as error:
                self._lost(item, error)

    async def _pump(self) -> None:
        """Hand to the channel what it did not take at once."""
        aio = self._into.aio
        while True:
            await self._work.wait()
            self._work.clear()
            self._pumping = True
            while (item := self._mailbox.take()) is not None:
                try:
                    await aio.send(item)
                    self._losing = False
                except UNDELIVERABLE as error:
                    self._lost(item, error)
                except asyncio.CancelledError:
                    self._mailbox.back(item)
                    raise
                self._room.set()
            self._pumping = False
            self._room.set()

    def _lost(self, item: Incoming, error: Exception) -> None:
        self._mailbox.lost(item)
        if not self._losing:
            self._losing = True
            logger.warning("%s: messages for %s are lost from here on: %s", self._url, self._into.url, error)

    async def _drained(self) -> None:
        """Wait until the channel has everything."""
        while self._pumping or len(self._mailbox):
            self._room.clear()
            await self._room.wait()

    def _count(self) -> None:
        self._counts.missed += self._mailbox.missed - self._dropped
        self._dropped = self._mailbox.missed

    # ------------------------------------------------------------------ out

    async def _send_out(self, channel: Channel) -> None:
        """Send what the channel has, and take nothing from it while there is no connection."""
        more = True
        while more:
            await self._online.wait()
            if (ws := self._ws) is None or ws.state is not State.OPEN:
                self._online.clear()  # it is about to end, and is set when there is another
                continue
            self._sending = asyncio.create_task(self._send_over(ws, channel))
            try:
                await asyncio.wait((self._sending,))
            finally:
                self._sending.cancel()
                await asyncio.gather(self._sending, return_exceptions=True)
            more = self._sending.cancelled() or self._sending.result()

    async def _send_over(self, ws: ClientConnection, channel: Channel) -> bool:
        """Send over one connection until it ends, which cancels this; return whether the channel may have more then."""
        aio = channel.aio
        while True:
            if self._in_hand is None:
                try:
                    message = await aio.recv()
                except (EOFError, ChannelClosed):
                    return False  # nothing more will be sent; what comes is still received
                except SerializationError as error:
                    self._unsent(error)
                    continue
                except ChannelBroken as broken:
                    logger.error("%s: nothing more can be sent: %s", self._url, broken)  # noqa: TRY400  the trace says no more
                    return False
                try:
                    self._in_hand = _payload(message)
                except (TypeError, ValueError) as error:
                    self._unsent(error)
                    continue
            if ws.state is not State.OPEN:
                return True  # the next connection sends it
            (data, is_text), self._in_hand = self._in_hand, None
            try:
                await ws.send(data, text=is_text)
            except ConnectionClosed as closed:
                self._unsent(closed)
            except asyncio.CancelledError:
                self._unsent("its connection ended")
                raise
            else:
                self._counts.sent += 1

    def _unsent(self, why: object) -> None:
        self._counts.unsent += 1
        logger.warning("%s: a message is not sent: %s", self._url, why)


def _payload(message: Any) -> tuple[bytes | bytearray | memoryview, bool]:
    """Return the bytes of a message and whether they are text: what is neither would end the connection if it were sent.

    Raises:
        TypeError, ValueError: it cannot be sent.
    """
    if isinstance(message, str):
        return message.encode(), True
    if isinstance(message, (bytes, bytearray, memoryview)):
        return message, False
    raise TypeError(f"only str and bytes can be sent, not {type(message).__qualname__}")


async def _discard(ws: ClientConnection) -> None:
    try:
        while True:
            await ws.recv(decode=False)
            await asyncio.sleep(0)  # as above
    except ConnectionClosed:
        pass
