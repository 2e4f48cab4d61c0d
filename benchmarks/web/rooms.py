"""The service under load: it speaks the part of the chat demo's protocol that talks, and does nothing else."""

from __future__ import annotations

from typing import Any

from ipcbus.web import Connection, Service


class Rooms(Service):
    path, codec = "/chat", "json"

    async def on_message(self, conn: Connection, message: Any) -> None:
        match message:
            case {"op": "say", "room": str(room), "text": str(text)}:
                await self.publish(room, {"op": "said", "room": room, "name": "someone", "text": text})
            case {"op": "join", "room": str(room)}:
                await conn.join(room)
                await conn.send({"op": "users", "room": room, "count": len(self.members(room))})
            case {"op": "users", "room": str(room)}:
                await conn.send({"op": "users", "room": room, "count": len(self.members(room))})
