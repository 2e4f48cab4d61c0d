"""What ours is measured against: one process, the same library, the same protocol, rooms in a dict, and nothing between."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import defaultdict

import msgspec
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed

from ipcbus.web.loop import loop_factory

rooms: defaultdict[str, set[ServerConnection]] = defaultdict(set)
decode, encode = msgspec.json.decode, msgspec.json.encode


async def talk(ws: ServerConnection) -> None:
    try:
        while True:
            message = decode(await ws.recv(decode=False))
            room = message["room"]
            if message["op"] == "say":
                said = {"op": "said", "room": room, "name": "someone", "text": message["text"]}
                broadcast(rooms[room], encode(said), text=True)
                continue
            if message["op"] == "join":
                rooms[room].add(ws)
            await ws.send(encode({"op": "users", "room": room, "count": len(rooms[room])}), text=True)
    except ConnectionClosed:
        pass
    finally:
        for members in rooms.values():
            members.discard(ws)


async def main() -> None:
    async with serve(talk, "127.0.0.1", 0, compression=None, backlog=4096) as server:
        port = server.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        while True:
            print(json.dumps({"url": f"ws://127.0.0.1:{port}/", "pids": {"bare": os.getpid()}}), flush=True)
            if not await loop.run_in_executor(None, sys.stdin.readline):
                os._exit(0)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main())
