"""One room: everybody hears what the others say."""

from ipcbus.web import Connection, Service


class Room(Service):
    path = "/room"

    async def on_open(self, conn: Connection) -> None:
        conn.state["name"] = conn.query.get("name", "somebody")
        await conn.join("everybody")
        await self.publish("everybody", {"joined": conn.state["name"]}, exclude=conn)

    async def on_message(self, conn: Connection, message: object) -> None:
        match message:
            case {"text": str(text)}:
                await self.publish("everybody", {"from": conn.state["name"], "text": text}, exclude=conn)
            case _:
                await conn.send({"error": 'say {"text": "..."}'})

    async def on_close(self, conn: Connection, code: int) -> None:
        await self.publish("everybody", {"left": conn.state["name"]})
