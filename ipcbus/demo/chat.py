"""A chat with rooms: the example of what a service looks like, and what ``ipcbus demo`` runs."""

from __future__ import annotations

from typing import Any

from ipcbus.web import Connection, Service

__all__ = ["Chat"]


class Chat(Service):
    """Rooms, names, and who is where. A client may be in several rooms at once."""

    path, codec = "/chat", "json"

    async def on_open(self, conn: Connection) -> None:
        """Give the client the name it asks for, or one like it that is free."""
        wanted = " ".join(conn.query.get("name", "").split())[:24] or "guest"
        taken = {other.state.get("name") for other in self.connections}
        names = (wanted, *(f"{wanted} {number}" for number in range(2, len(taken) + 2)))
        conn.state["name"] = next(name for name in names if name not in taken)
        await conn.send({"op": "welcome", "name": conn.state["name"], "id": f"{conn.id:x}"})

    async def on_message(self, conn: Connection, message: Any) -> None:
        """Do what the client asks for."""
        name = conn.state["name"]
        match message:
            case {"op": "join", "room": str(room)} if 0 < len(room) <= 32 and len(conn.groups) < 16:
                if room not in conn.groups:
                    await conn.join(room)
                    await self.publish(room, {"op": "joined", "room": room, "name": name}, exclude=conn)
                await conn.send({"op": "users", "room": room, "users": self.users(room)})
            case {"op": "leave", "room": str(room)} if room in conn.groups:
                await conn.leave(room)
                await self.publish(room, {"op": "left", "room": room, "name": name})
            case {"op": "say", "room": str(room), "text": str(text)} if room in conn.groups and 0 < len(text) <= 2000:
                await self.publish(room, {"op": "said", "room": room, "name": name, "text": text})
            case {"op": "users", "room": str(room)} if room in conn.groups:
                await conn.send({"op": "users", "room": room, "users": self.users(room)})
            case _:
                await conn.send({"op": "error", "text": "That cannot be done here."})

    async def on_close(self, conn: Connection, code: int) -> None:  # noqa: ARG002  why it closed does not matter here
        """Tell the rooms that the client is gone."""
        for room in conn.groups:
            await self.publish(room, {"op": "left", "room": room, "name": conn.state["name"]})

    def users(self, room: str) -> list[str]:
        """Return the names of those in a room, sorted."""
        return sorted(conn.state["name"] for conn in self.members(room))
