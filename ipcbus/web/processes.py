"""What runs in the processes of a server: a front end, or a service."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ipcbus.errors import ConfigError
from ipcbus.supervisor import TAKE_OVER
from ipcbus.web.loop import loop_factory
from ipcbus.web.moments import pause
from ipcbus.web.reporter import counted, reporting
from ipcbus.web.service import Service

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Coroutine, Sequence

    from ipcbus.channel import Channel
    from ipcbus.supervisor import Life
    from ipcbus.web.config import FrontConfig
    from ipcbus.web.database import Database
    from ipcbus.web.host import Host
    from ipcbus.web.paths import Paths
    from ipcbus.web.servicelink import ServiceInbox
    from ipcbus.web.snapshots import Slot

__all__ = ["ServiceArgs", "load_service", "notice", "run_front_end", "run_service", "tls_context"]


class _Runs(Protocol):
    async def prepare(self) -> None: ...

    async def run(self, ready: Callable[[], None]) -> None: ...

    async def dismiss(self) -> None: ...

    async def stopped(self) -> None: ...

    def stop(self) -> None: ...

    def notice(self, index: int, at: int, /) -> None: ...

    @property
    def counts(self) -> Any: ...

    def gauges(self) -> dict[str, int]: ...


@dataclass(frozen=True, slots=True)
class ServiceArgs:
    """What a service process is told, besides its own inbox."""

    name: str
    factory: str
    index: int
    """Among all service processes."""
    shard: tuple[int, int]
    fronts: Sequence[Channel]
    services: tuple[str, ...]
    """The names of all services."""
    bus: str
    """The address of the server's bus."""
    link_timeout: float
    max_groups: int
    finish_timeout: float
    paths: Paths
    """Which paths services serve."""
    database: Database | None = None


def run_service(life: Life, log_level: str, inbox: Channel, args: ServiceArgs, slot: Slot | None = None) -> None:
    """Be a service process until SIGTERM."""
    from ipcbus.web.host import Host

    _log(log_level)
    service = load_service(args.factory)
    if life.replaces:  # front ends cannot be asked, and would find out when the old process has ended
        args.paths.reserve(args.index, args.name, service.path)
    if args.database is not None:
        service.database = args.database

    def make() -> Host:
        return Host(
            service,
            args.name,
            args.index,
            inbox,
            args.fronts,
            shard=args.shard,
            services=args.services,
            bus=args.bus,
            link_timeout=args.link_timeout,
            max_groups=args.max_groups,
            finish_timeout=args.finish_timeout,
            paths=args.paths,
        )

    _run(make, life, slot)


def run_front_end(
    life: Life,
    log_level: str,
    config: FrontConfig,
    index: int,
    sock: socket.socket,
    inbox: Channel,
    services: Sequence[ServiceInbox],
    page: bytes | None,
    slot: Slot | None = None,
) -> None:
    """Be a front-end process until SIGTERM."""
    from ipcbus.web.frontend import FrontEnd

    _log(log_level)
    tls = tls_context(config)
    _run(lambda: FrontEnd(config, index, life.incarnation, sock, inbox, services, page, tls), life, slot)


def tls_context(config: FrontConfig) -> ssl.SSLContext | None:
    """Return what ``wss://`` needs, or None without a certificate.

    Raises:
        ConfigError: the files cannot be read, or do not belong together.
    """
    if config.tls_certificate is None:
        return None
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.tls_certificate, config.tls_key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"front: tls_certificate = {config.tls_certificate!r} cannot be used: {error}") from error
    return context


def load_service(factory: str) -> Service:
    """Import and make a service.

    Args:
        factory: ``module:name`` of a Service subclass, or of a function that returns a Service.

    Raises:
        ConfigError: there is no such thing, or it makes something else.
    """
    module, _, name = factory.partition(":")
    if not module or not name:
        raise ConfigError(f"factory = {factory!r} must read 'module:Class'")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"factory = {factory!r}: {error}; is it installed, or beside the configuration file?") from error
    make = getattr(found, name, None)
    if not callable(make):
        has = "nothing of that name" if make is None else f"a {type(make).__qualname__} of that name"
        raise ConfigError(
            f"factory = {factory!r}: {module} has {has}, where a Service subclass, or a function that makes one, is to be"
        )
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise ConfigError(f"factory = {factory!r} is called without arguments, and it is not made for that: {error}") from error
    except ValueError:
        pass  # written in C, and does not say
    service = make()
    if not isinstance(service, Service):
        raise ConfigError(f"factory = {factory!r} made a {type(service).__qualname__}, which is no ipcbus.web.Service")
    return service


def _run(make: Callable[[], _Runs], life: Life, slot: Slot | None) -> None:
    async def main() -> None:
        running = make()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, running.stop)
        beating = asyncio.create_task(_beat(life))
        turn = asyncio.Event()
        loop.add_reader(life.fileno(), _hear, life, running, turn)
        report = reporting(slot, lambda: counted(running.counts), running.gauges)
        try:
            async with AsyncExitStack() as stack:
                if not life.replaces:
                    await stack.enter_async_context(report)
                if not await _prepared(running):
                    return
                if life.replaces:
                    life.prepared()
                    if not await _first(turn.wait(), running.stopped()):
                        await running.dismiss()
                        return
                    await stack.enter_async_context(report)  # until now it was the other one's
                await running.run(life.ready)
        finally:
            loop.remove_reader(life.fileno())
            beating.cancel()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main())


async def _prepared(running: _Runs) -> bool:
    """Prepare, and return False if the process is asked to stop over it: ``on_start`` is cancelled then.

    It is awaited in this very task, which is also that of ``on_stop``: what ``on_start`` enters may have to be left there.
    """

    async def cut_short() -> None:
        await running.stopped()
        limit.reschedule(asyncio.get_running_loop().time())

    try:
        async with asyncio.timeout(None) as limit:
            stopping = asyncio.create_task(cut_short())
            try:
                await running.prepare()
            finally:
                stopping.cancel()
    except TimeoutError:
        if not limit.expired():
            raise  # its own
        return False
    return True


async def _first(one: Coroutine[Any, Any, Any], other: Coroutine[Any, Any, Any]) -> bool:
    """Wait until either has happened, and say whether it was the first."""
    tasks = [asyncio.create_task(one), asyncio.create_task(other)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    first = tasks[0].done()
    for task in tasks:
        task.cancel()
    return first


async def _beat(life: Life) -> None:
    """Tell the supervisor now and then that the event loop turns."""
    while life.heartbeat:
        life.beat()
        await pause(life.heartbeat / 4)


def notice(index: int, at: int) -> bytes:
    """Return what a process is told when one that it has a link to has ended."""
    return f"{index} {at}".encode()


def _hear(life: Life, running: _Runs, turn: asyncio.Event) -> None:
    while (said := life.heard()) is not None:
        if said == TAKE_OVER:
            turn.set()
            continue
        index, at = said.decode().split()
        running.notice(int(index), int(at))


def _log(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(processName)s[%(process)d] %(name)s: %(message)s"
    )
