"""What runs in the processes of a server: a front end, or a service."""

from __future__ import annotations

import asyncio
import importlib
import logging
import signal
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ipcbus.errors import ConfigError
from ipcbus.web.reporter import counted, reporting
from ipcbus.web.service import Service

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from ipcbus.channel import Channel
    from ipcbus.supervisor import Life
    from ipcbus.web.config import FrontConfig
    from ipcbus.web.database import Database
    from ipcbus.web.snapshots import Slot

__all__ = ["load_service", "run_front_end", "run_service"]


class _Runs(Protocol):
    async def run(self, ready: Callable[[], None]) -> None: ...

    def stop(self) -> None: ...


R = TypeVar("R", bound=_Runs)


def run_service(
    life: Life,
    log_level: str,
    factory: str,
    name: str,
    index: int,
    inbox: Channel,
    fronts: Sequence[Channel],
    database: Database | None = None,
    slot: Slot | None = None,
) -> None:
    """Be a service process until SIGTERM."""
    from ipcbus.web.host import Host

    _log(log_level)
    service = load_service(factory)
    if database is not None:
        service.database = database
    _run(lambda: Host(service, name, index, inbox, fronts), life, slot, lambda host: host.hub.counts)


def run_front_end(
    life: Life,
    log_level: str,
    config: FrontConfig,
    index: int,
    sock: socket.socket,
    inbox: Channel,
    services: Sequence[tuple[str, Channel]],
    page: bytes | None,
    slot: Slot | None = None,
) -> None:
    """Be a front-end process until SIGTERM."""
    from ipcbus.web.frontend import FrontEnd

    _log(log_level)
    _run(lambda: FrontEnd(config, index, life.incarnation, sock, inbox, services, page), life, slot, lambda front: front.counts)


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
        make = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"factory = {factory!r}: {error}; is it installed, or beside the configuration file?") from error
    except AttributeError as error:
        raise ConfigError(f"factory = {factory!r}: {error}") from error
    service = make()
    if not isinstance(service, Service):
        raise ConfigError(f"factory = {factory!r} made a {type(service).__qualname__}, which is no ipcbus.web.Service")
    return service


def _run(make: Callable[[], R], life: Life, slot: Slot | None, counts: Callable[[R], Any]) -> None:
    async def main() -> None:
        running = make()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.stop)
        counted_here = counts(running)
        async with reporting(
            slot, lambda: counted(counted_here), lambda: {"connections": counted_here.opened - counted_here.closed}
        ):
            await running.run(life.ready)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(main())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None  # it is faster, not different
    return uvloop.new_event_loop


def _log(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(processName)s[%(process)d] %(name)s: %(message)s"
    )
