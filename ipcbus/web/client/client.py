"""Client: connections to WebSocket servers, in processes or a thread of their own, with channels at this end."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Literal

from ipcbus.channel import Channel
from ipcbus.errors import ConfigError
from ipcbus.options import build
from ipcbus.supervisor import Program, Supervisor
from ipcbus.web.client.connection import Counts
from ipcbus.web.client.incoming import Incoming
from ipcbus.web.client.marks import Marks
from ipcbus.web.client.options import ClientOptions, tls_context
from ipcbus.web.client.work import Spec, Work, run_connections
from ipcbus.web.headers import is_header
from ipcbus.web.loop import loop_factory
from ipcbus.web.reporter import added
from ipcbus.web.snapshots import Snapshots

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from ipcbus.web.client.incoming import Overflow
    from ipcbus.web.snapshots import Slot

__all__ = ["Client", "connect"]


def connect(
    url: str | Sequence[str],
    into: Channel,
    outgoing: Channel | Sequence[Channel] | None = None,
    *,
    run: Literal["process", "thread"] = "process",
    processes: int = 1,
    overflow: Overflow = "block",
    start_method: Literal["spawn", "forkserver", "fork"] = "spawn",
    **options: Any,
) -> Client:
    """Connect to WebSocket servers, stay connected, and put what they send on a channel.

    Returns once everything that connects is running. Whether there is a connection is told on the channel.

    Args:
        url: ``ws://`` or ``wss://``; several for as many connections.
        into: gets an :class:`Incoming` for each message, and for each connection that begins or ends. Any process may
            receive from it, and any number of clients may share it.
        outgoing: what is sent through it, ``str`` or ``bytes``, goes to the server. For several URLs, as many channels.
            Nothing is taken from it while there is no connection.
        run: where the connections are: in processes of their own, or in a thread of this one.
        processes: how many, for several URLs.
        overflow: what happens to messages that come faster than they are taken.
        start_method: how ``multiprocessing`` makes the processes.
        **options: the fields of :class:`ClientOptions`.

    Raises:
        ConfigError: a URL or an option is wrong, or channels and URLs do not fit each other.
        EncodeError: the channel's serializer cannot express an :class:`Incoming` with ``bytes`` in it.
        StartFailed: a process did not start; says what it said.
    """
    urls = [url] if isinstance(url, str) else list(url)
    chosen: ClientOptions = build(ClientOptions, {"overflow": overflow, **options}, "connect")
    specs = _specs(urls, outgoing)
    _check(urls, into, chosen)
    if run not in ("process", "thread"):
        raise ConfigError(f"run must be 'process' or 'thread', not {run!r}")
    if not 1 <= processes <= len(urls) or (run == "thread" and processes != 1):
        raise ConfigError(f"processes must be 1 to the number of URLs, {len(urls)}, and 1 for a thread; not {processes}")
    shares = [specs[index::processes] for index in range(processes)]
    return Client(shares, into, chosen, None if run == "thread" else start_method)


class Client:
    """Connections that are kept up; a context manager that closes them. Made by :func:`connect`."""

    def __init__(
        self,
        shares: list[list[Spec]],
        into: Channel,
        options: ClientOptions,
        start_method: Literal["spawn", "forkserver", "fork"] | None,
    ) -> None:
        names = [f"client-{index}" for index in range(len(shares))]
        self._snapshots = page = Snapshots(names)
        over = self._over = Marks(sum(map(len, shares)))
        self._thread: _Thread | None = None
        self._supervisor: Supervisor | None = None
        try:
            if start_method is None:
                self._thread = _Thread(shares[0], into, options, page.slot(names[0]), over)
                return
            self._supervisor = Supervisor(
                [
                    # One that has nothing left to try ends by itself; one that was killed is started again.
                    Program(name, run_connections, (share, into, options, page.slot(name), over), restart="on-failure")
                    for name, share in zip(names, shares, strict=True)
                ],
                start_method=start_method,
            )
            self._supervisor.start()
        except BaseException:
            page.close()
            over.close()
            raise

    def close(self) -> None:
        """Close every connection, and wait until its process or thread has ended. Idempotent.

        What waits in the outgoing channel stays there. What was received and finds no room in the other one is dropped and
        counted in ``stats().missed``; nor does ``ended`` come then.
        """
        if self._supervisor is not None:
            self._supervisor.stop()
        if self._thread is not None:
            self._thread.stop()
        self._snapshots.close()
        self._over.close()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no connection will be tried again.

        Args:
            timeout: seconds; None waits without limit.

        Returns:
            Whether that is so; False when the timeout has passed.

        Raises:
            GaveUp: the processes died too often.
        """
        if self._supervisor is not None:
            return self._supervisor.wait(timeout)
        assert self._thread is not None
        return self._thread.wait(timeout)

    @property
    def pids(self) -> list[int]:
        """The processes that have the connections; empty for a thread."""
        return [] if self._supervisor is None else sorted(self._supervisor.pids.values())

    def stats(self) -> Counts:
        """Return what was counted, over all processes and their restarts; at most half a second old."""
        total: dict[str, Any] = {}
        for snapshot in self._snapshots.read().values():
            total = added(total, snapshot.get("counters", {}))
        return Counts(**total)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Thread:
    """A thread with an event loop, and the connections on it."""

    def __init__(self, specs: list[Spec], into: Channel, options: ClientOptions, slot: Slot, over: Marks) -> None:
        from multiprocessing.util import Finalize

        self._args = (specs, into, options, slot, over)
        self._work: Work | None = None
        self._error: Exception | None = None
        self._ready = threading.Event()
        self._ended = threading.Event()
        # Daemonic, because the interpreter joins other threads before it comes to the finalizer that stops this one.
        self._thread = threading.Thread(target=self._run, name="ipcbus-web-client", daemon=True)
        self._finalizer: Any = Finalize(None, self.stop, exitpriority=20)  # before channels are closed at exit
        self._thread.start()
        self._ready.wait()
        try:
            self._raise()
        except BaseException:
            self.stop()
            raise

    def wait(self, timeout: float | None) -> bool:
        """Wait until it has ended; raises what ended it."""
        if not self._ended.wait(timeout):
            return False
        self._raise()
        return True

    def stop(self) -> None:
        """End it, and wait until it has ended. Idempotent."""
        if self._work is not None and not self._ended.is_set():
            try:
                self._work.stop()
            except RuntimeError:
                pass  # its loop is over already
        self._thread.join()
        finalizer, self._finalizer = self._finalizer, None
        if finalizer is not None:
            finalizer.cancel()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        async def main() -> None:
            self._work = Work(*self._args)
            await self._work.run(self._ready.set)

        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(main())
        except Exception as error:  # noqa: BLE001  whatever it was, it is raised where somebody waits for this thread
            self._error = error
        finally:
            self._ended.set()
            self._ready.set()


def _specs(urls: list[str], outgoing: Channel | Sequence[Channel] | None) -> list[Spec]:
    channels: list[Channel | None]
    if outgoing is None:
        channels = [None] * len(urls)
    elif isinstance(outgoing, Channel):
        channels = [outgoing]
    else:
        channels = [*outgoing]
    if len(channels) != len(urls):
        raise ConfigError(
            f"connect: {len(urls)} URLs and {len(channels)} outgoing channels do not fit each other; each URL has its own"
        )
    return [Spec(number, url, channel) for number, (url, channel) in enumerate(zip(urls, channels, strict=True))]


def _check(urls: list[str], into: Channel, options: ClientOptions) -> None:
    from websockets.exceptions import InvalidURI
    from websockets.uri import parse_uri

    if not urls:
        raise ConfigError("connect: there is no URL to connect to")
    for url in urls:
        try:
            host = parse_uri(url).host
        except InvalidURI as error:
            raise ConfigError(f"connect: {error}; a URL reads ws://host:port/path or wss://host/path") from error
        try:
            host.encode("idna")
        except UnicodeError as error:
            raise ConfigError(f"connect: {url} names no host that could be looked up: {error}") from error
        if url.startswith("wss:"):
            tls_context(options.ca_file)
    _check_handshake(options)
    end = into._end  # noqa: SLF001  what a channel does when it is full is not told elsewhere
    if end.options.overflow != "block":
        raise ConfigError(
            f"connect: {into.url} has overflow={end.options.overflow!r} and would drop messages without a mark; "
            "make it without, and give overflow= to connect"
        )
    end.codec.encode(Incoming("binary", b""), None)


def _check_handshake(options: ClientOptions) -> None:
    """Raise ``ConfigError`` for what would fail each time anew, and look like a server that is away."""
    from importlib.util import find_spec

    from websockets.exceptions import InvalidProxy
    from websockets.headers import validate_subprotocols
    from websockets.proxy import parse_proxy

    for name, value in options.headers.items():
        if not is_header(name, value):  # and its value may well be a secret
            raise ConfigError(
                f"connect: the header {name!r} cannot be sent; is there a line end in it, as at the end of a file?"
            )
    try:
        validate_subprotocols(options.subprotocols)  # type: ignore[arg-type]  # Subprotocol is a name for str
        proxy = None if options.proxy is None else parse_proxy(options.proxy)
    except (InvalidProxy, ValueError) as error:
        raise ConfigError(f"connect: {error}") from error
    if proxy is not None and proxy.scheme.startswith("socks") and find_spec("python_socks") is None:
        raise ConfigError("connect: a SOCKS proxy needs python-socks; run: pip install 'python-socks[asyncio]'")
