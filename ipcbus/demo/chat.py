"""A chat: rooms, who is there, what was said before, who is typing. What ``ipcbus demo`` runs."""

from __future__ import annotations

import asyncio
from time import time
from typing import Any

from ipcbus.demo import history, token
from ipcbus.web import Accept, Connection, Limits, Reject, Request, Service

__all__ = ["Chat"]

SIGNED_FOR = 12 * 3600.0
"""Seconds for which a token is good; each connection gets a new one."""
ROOMS = 16
"""Rooms in which a client may be."""
PATIENCE = 10.0
"""Seconds that a client may take to sign in."""


class Chat(Service):
    """Rooms in which people talk. A client may be in several at once, and a person may have several clients.

    Every message has a number. Who comes back asks for what came after the last one it has; what it is not sure to have
    said it says again with the same ``key``, and it is taken once.
    """

    path, codec = "/chat", "json"
    limits = Limits(message=16_384, groups=ROOMS)

    def __init__(self) -> None:
        self._order = asyncio.Lock()
        self._secret = b""

    def on_start(self) -> None:
        """Make the tables, and turn out those who do not sign in."""
        self.database.create_all(history.Base.metadata)
        with self.database.begin() as session:
            self._secret = history.secret(session)
        self.every(1.0)(self.sweep)

    def authorize(self, request: Request) -> Accept:
        """Let in as whom their token says; those who have none may come in, too, to sign in."""
        protocol = token.PROTOCOL if token.PROTOCOL in request.protocols else None
        given = token.offered(request.protocols)
        if given is None:
            return Accept({}, protocol)
        name = token.read(given, self._secret, time())  # the wall clock, by which tokens expire
        if name is None:
            raise Reject(4401, "this token is not good any more; sign in again")
        return Accept({"name": name}, protocol)

    async def on_open(self, conn: Connection) -> None:
        """Welcome those who are known already."""
        if "name" in conn.state:
            await self.welcome(conn)

    async def on_attach(self, conns: list[Connection]) -> None:
        """Have everybody look whether something was lost with the process before this one."""
        await self.send_to(conns, {"op": "replaced"})

    async def on_message(self, conn: Connection, message: Any) -> None:
        """Do what the client asks for."""
        match message:
            case {"op": "sign-in", "name": str(wanted)} if "name" not in conn.state:
                conn.state["name"] = self.free_name(wanted)
                await self.welcome(conn)
            case _ if "name" not in conn.state:
                await conn.close(4401, "sign in first")
            case {"op": "join", "room": str(room)} if 0 < len(room) <= 32 and len(conn.groups | {room}) <= ROOMS:
                await self.enter(conn, room, message.get("after"))
            case {"op": "join", "room": str(room)} if 0 < len(room) <= 32:
                text = f"You are in {ROOMS} rooms, and more are not possible: leave one, then choose this one again."
                await conn.send({"op": "error", "room": room, "text": text})
            case {"op": "leave", "room": str(room)} if room in conn.groups:
                await conn.leave(room)
                await self.tell_left(conn, room)
            case {"op": "say", "room": str(room), "text": str(text)} if room in conn.groups and 0 < len(text) <= 2000:
                key = message.get("key")
                await self.say(conn, room, text, key[:40] if isinstance(key, str) else None)
            case {"op": "typing", "room": str(room)} if room in conn.groups:
                name = conn.state["name"]  # who lags behind need not hear of every key that was pressed
                typing = {"op": "typing", "room": room, "name": name}
                await self.publish(room, typing, exclude=conn, slow=f"latest:typing {name} {room}")
            case {"op": "users", "room": str(room)} if room in conn.groups:
                await conn.send({"op": "users", "room": room, "users": self.users(room)})
            case _:
                await conn.send({"op": "error", "text": "That cannot be done here."})

    async def on_close(self, conn: Connection, code: int) -> None:  # noqa: ARG002  why it closed does not matter here
        """Tell the rooms that the client is gone."""
        for room in conn.groups:
            await self.tell_left(conn, room)

    # ------------------------------------------------------------------ what they ask for

    async def welcome(self, conn: Connection) -> None:
        """Say who the client is, and give it a token to come back with."""
        name = conn.state["name"]
        signed = token.sign(name, time() + SIGNED_FOR, self._secret)  # the wall clock, as above
        await conn.send({"op": "welcome", "name": name, "id": f"{conn.id:x}", "token": signed})

    async def enter(self, conn: Connection, room: str, after: Any) -> None:
        """Put a client into a room, and show it who is there and what was said."""
        name = conn.state["name"]
        if room not in conn.groups:
            is_news = name not in self.users(room)
            await conn.join(room)  # before history is read: what is said meanwhile comes twice rather than not at all
            if is_news:
                await self.publish(room, {"op": "joined", "room": room, "name": name}, exclude=conn)
        await conn.send({"op": "users", "room": room, "users": self.users(room)})
        known = isinstance(after, int) and 0 <= after < 1 << 63  # no other number can a database compare
        found = await self.database.read(history.page, room, after if known else None)
        await conn.send({"op": "history", "room": room, "messages": found.entries, "whole": found.whole})

    async def say(self, conn: Connection, room: str, text: str, key: str | None) -> None:
        """Keep a message and publish it."""
        async with self._order:  # numbers reach the room in their order, so that the last one says what is there
            entry, is_new = await self.database.run(history.add, room, conn.state["name"], text, key)
            said = {"op": "said", "room": room, **entry}
            await (self.publish(room, said) if is_new else conn.send(said))

    async def tell_left(self, conn: Connection, room: str) -> None:
        """Tell a room that somebody has left it, unless another client of theirs is still in it."""
        if conn.state.get("name") not in self.users(room):
            await self.publish(room, {"op": "left", "room": room, "name": conn.state["name"]})

    def users(self, room: str) -> list[str]:
        """Return the names of those in a room, sorted."""
        return sorted({conn.state["name"] for conn in self.members(room)})

    def free_name(self, wanted: str) -> str:
        """Return the name, or one like it that nobody here has. There are no passwords: who leaves gives the name up."""
        wanted = " ".join(wanted.split())[:24] or "guest"
        taken = {conn.state.get("name") for conn in self.connections}
        names = (wanted, *(f"{wanted[:20]} {number}" for number in range(2, len(taken) + 3)))
        return next(name for name in names if name not in taken)

    def sweep(self) -> None:
        """Turn out those who have been here for a while and have not said who they are."""
        for conn in self.connections:
            if "name" not in conn.state and time() - conn.opened_at > PATIENCE:  # the wall clock, as the front end said it
                conn.close(4408, "sign in sooner")
