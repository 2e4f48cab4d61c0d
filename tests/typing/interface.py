"""What a type checker sees of the interface. ``nox -s typing`` checks this file; nothing runs it.

A line with ``type: ignore`` must be an error: strict mypy complains where it is not.
"""

from __future__ import annotations

import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

from sqlalchemy.orm import Session

import ipcbus
from ipcbus.transport import Capabilities, Guarantees, Transport
from ipcbus.web import Incoming, connect
from ipcbus.web.database import Database


def a_channel() -> None:
    channel = ipcbus.open("pipe:", capacity=10)
    assert_type(channel, ipcbus.Channel)
    assert_type(channel.recv(timeout=1), Any)
    assert_type(channel.recv_message(), ipcbus.Message)
    assert_type(channel.recv_many(10), list[Any])
    assert_type(channel.send_many([1, 2, 3]), int)
    assert_type(channel.sender, ipcbus.Channel)
    assert_type(channel.url, str)
    assert_type(channel.fileno(), int)
    assert_type(channel.capabilities, Capabilities)
    assert_type(channel.guarantees(), Guarantees)
    assert_type(channel.stats().depth, int | None)
    assert_type(iter(channel), Iterator[Any])
    with channel as same:
        assert_type(same, ipcbus.Channel)


def a_pair() -> None:
    here, there = ipcbus.pair()
    assert_type(here, ipcbus.Duplex)
    assert_type(there.incoming, ipcbus.Channel)


async def a_channel_of_asyncio(channel: ipcbus.Channel) -> None:
    await channel.aio.send(1, timeout=1)
    assert_type(await channel.aio.recv(), Any)
    assert_type(await channel.aio.recv_message(), ipcbus.Message)
    assert_type(aiter(channel.aio), AsyncIterator[Any])


def errors(error: ipcbus.IpcbusError) -> None:
    if isinstance(error, ipcbus.ChannelEmpty):
        empty: queue.Empty = error
        late: TimeoutError = error
        del empty, late
    if isinstance(error, ipcbus.EncodeError):
        assert_type(error.culprits, tuple[ipcbus.Culprit, ...])
    if isinstance(error, ipcbus.PeerDied):
        assert_type(error.pid, int | None)


def a_supervisor(supervisor: ipcbus.Supervisor) -> None:
    program = ipcbus.Program("a", print, ("hello",), handshake=False, restart="on-failure")
    with ipcbus.Supervisor([program, [program]], start_method="spawn") as same:
        assert_type(same, ipcbus.Supervisor)
    assert_type(supervisor.start(program), ipcbus.Supervisor)
    assert_type(supervisor.wait(1), bool)
    assert_type(supervisor.events.recv(timeout=1), ipcbus.Occurrence)
    assert_type(supervisor.pids, dict[str, int])


def registries() -> None:
    assert_type(ipcbus.transports.get("pipe"), type[Transport])
    assert_type(ipcbus.transports.names(), list[str])


def what_must_not_pass(channel: ipcbus.Channel) -> None:
    channel.put(1)  # type: ignore[attr-defined]  # one word per thing: it is send
    channel.send(1, "soon")  # type: ignore[arg-type]  # a timeout is in seconds
    channel.send(1, headers={"n": 1})  # type: ignore[dict-item]  # texts to texts
    ipcbus.Program("a", print, restart="sometimes")  # type: ignore[arg-type]  # always, on-failure or never
    ipcbus.Nonsense  # type: ignore[attr-defined]  # noqa: B018  not every name is one that is imported later
    channel.url = "queue:"  # type: ignore[misc]  # a channel does not change how it travels

    class Mine(ipcbus.Channel):  # type: ignore[misc]  # the class is final
        pass

    del Mine


def a_client(feed: ipcbus.Channel, outgoing: ipcbus.Channel) -> None:
    with connect("ws://127.0.0.1/", feed, outgoing, overflow="drop_oldest", buffer=10) as client:
        assert_type(client.wait(1), bool)
        assert_type(client.stats().missed, int)
        assert_type(client.pids, list[int])
    connect(["ws://a/", "ws://b/"], feed, [outgoing, outgoing], processes=2)
    connect("ws://127.0.0.1/", feed, overflow="drop")  # type: ignore[arg-type]  # no such policy
    item: Incoming = feed.recv()
    assert_type(item.missed, int)


def count(session: Session, least: int) -> int:
    return least if session.is_active else 0


async def a_database(database: Database) -> None:
    assert_type(await database.run(count, 3), int)
    assert_type(await database.read(count, least=3), int)
    await database.run(count)  # type: ignore[call-arg]  # the function wants one more
    with database.begin(read_only=True) as session:
        assert_type(session, Session)
