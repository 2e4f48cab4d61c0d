"""A room on several boxes: what is said on one is published on all. BOXES names this box's channel first, then the others'."""

import asyncio
import os

import ipcbus
from ipcbus.web import Connection, Service

OPTIONS = "?key_file=boxes.key&serializer=msgpack&overflow=drop_new"


class Room(Service):
    path = "/room"

    async def on_start(self) -> None:
        here, *others = os.environ["BOXES"].split()
        self.inbox = ipcbus.open(here + OPTIONS)
        self.others = [ipcbus.open(url + OPTIONS) for url in others]
        self.listening = asyncio.create_task(self.listen())

    async def listen(self) -> None:
        async for room, message in self.inbox.aio:
            await self.publish(room, message)

    async def publish_everywhere(self, room: str, message: object) -> None:
        await self.publish(room, message)
        for channel in self.others:
            await channel.aio.send([room, message])

    async def on_open(self, conn: Connection) -> None:
        await conn.join("everybody")
        await conn.send({"welcome": True})

    async def on_message(self, conn: Connection, message: object) -> None:
        await self.publish_everywhere("everybody", message)

    async def on_stop(self) -> None:
        self.listening.cancel()
        for channel in (self.inbox, *self.others):
            channel.close()
