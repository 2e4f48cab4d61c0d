"""What the tests of the server run in child processes."""

from __future__ import annotations

import os
import signal

from ipcbus.errors import ConfigError, RemoteError
from ipcbus.web import Service


class Unreadable:
    """Can be sent, and rebuilt by nobody."""

    def __reduce__(self):
        return int, ("none",)


class Echo(Service):
    path, codec = "/echo", "raw"

    async def on_message(self, conn, message):
        await conn.send(message)


class Rival(Echo):
    """Wants the path of the other."""


class Crash(Service):
    path, codec = "/crash", "text"

    def on_message(self, conn, message):
        os.kill(os.getpid(), signal.SIGKILL)


def of_a_room(room):
    return room


def not_a_service():
    return 42


class Shards(Service):
    """Says which process it is; one of several."""

    path, codec = "/shards", "json"

    async def on_open(self, conn):
        conn.state["name"] = conn.query["name"]
        await conn.join("all")
        await conn.send({"shard": self.shard[0], "pid": os.getpid()})

    async def on_message(self, conn, message):
        match message:
            case "who":
                await conn.send(sorted(other.state["name"] for other in self.members("all")))
            case {"rename": name}:
                conn.state["name"] = name
            case {"say": text}:
                await self.publish("all", {"from": conn.state["name"], "text": text})
            case {"ask": value}:
                await conn.send(await self.request("answers", value))
            case {"ask whom": name}:
                try:
                    await self.request(name, 1)
                except ConfigError as error:
                    await conn.send(str(error))
            case "ask in vain":
                try:
                    await self.request("answers", Unreadable())
                except RemoteError as error:
                    await conn.send(str(error))
            case "counts":
                await conn.send(sum(counts["opened"] for counts in await self.front_counts()))

    async def on_close(self, conn, code):
        await self.publish("all", {"left": conn.state["name"]})


class Early(Service):
    """Says something before it knows of any client."""

    path, codec = "/early", "text"

    async def on_start(self):
        await self.publish("all", "is anybody there?")

    async def on_open(self, conn):
        await conn.join("all")
        await self.publish("all", "hello")


class Answers(Service):
    """Is asked by other services."""

    path, codec = "/answers", "json"

    async def on_request(self, message):
        if message == "wrong":
            raise ValueError("on purpose")
        return {"doubled": message * 2, "pid": os.getpid()}


class Stuck(Service):
    """Keeps its whole process from doing anything else."""

    path, codec = "/stuck", "text"

    def on_message(self, conn, message):
        if message == "stuck":
            signal.pause()
        conn.send(f"{message} {os.getpid()}")


class Rooms(Service):
    """Rooms whose members say numbers."""

    path, codec = "/rooms", "text"

    async def on_open(self, conn):
        conn.state.update(name=conn.query["name"], room=conn.query["room"])
        await conn.join(conn.query["room"])
        await conn.send(f"id {conn.id}")

    async def on_message(self, conn, message):
        if message == "members":
            await conn.send(f"members {len(self.members(conn.state['room']))}")
        else:
            await self.publish(conn.state["room"], f"said {conn.state['name']} {message.split()[1]}")

    async def on_close(self, conn, code):
        await self.publish(conn.state["room"], f"left {conn.state['name']}")


class Talk(Service):
    """The part of the demo's protocol that talks, without a database."""

    path, codec = "/chat", "json"

    async def on_message(self, conn, message):
        match message:
            case {"op": "sign-in"}:
                await conn.send({"op": "welcome", "id": f"{conn.id:x}"})
            case {"op": "join", "room": str(room)}:
                await conn.join(room)
                await conn.send({"op": "users", "room": room})
            case {"op": "say", "room": str(room), "text": str(text)}:
                await self.publish(room, {"op": "said", "room": room, "text": text})
