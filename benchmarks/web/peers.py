"""What people use instead, with two workers and Redis between them, speaking the same protocol as far as theirs allows.

python benchmarks/web/peers.py starlette|channels|socketio

Needs the extra ``bench`` and Debian's redis-server. It says where it is and who its processes are, again at each line it
reads, and ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections import defaultdict
from typing import Any

WORKERS = 2
PATHS = {"starlette": "/chat", "channels": "/chat", "socketio": "/socket.io/?EIO=4&transport=websocket"}
NEEDS = {"starlette": "starlette", "channels": "channels_redis", "socketio": "socketio"}


def starlette(redis_url: str) -> Any:
    """Rooms by hand: each worker has those of its own clients, and one subscription to all that is said."""
    import redis.asyncio
    from starlette.applications import Starlette
    from starlette.routing import WebSocketRoute
    from starlette.websockets import WebSocket, WebSocketDisconnect

    rooms: defaultdict[str, set[WebSocket]] = defaultdict(set)
    pool = redis.asyncio.BlockingConnectionPool.from_url(redis_url, max_connections=50, timeout=None)
    store = redis.asyncio.Redis(connection_pool=pool)
    tasks = []

    async def relay() -> None:
        async with store.pubsub() as subscription:
            await subscription.psubscribe("room.*")
            async for message in subscription.listen():
                if message["type"] != "pmessage":
                    continue
                text = message["data"].decode()
                for ws in tuple(rooms[message["channel"].decode()[5:]]):
                    await ws.send_text(text)

    async def chat(ws: WebSocket) -> None:
        if not tasks:
            tasks.append(asyncio.create_task(relay()))
        await ws.accept()
        try:
            while True:
                message = json.loads(await ws.receive_text())
                room = message["room"]
                if message["op"] == "say":
                    said = {"op": "said", "room": room, "name": "someone", "text": message["text"]}
                    await store.publish(f"room.{room}", json.dumps(said))
                    continue
                rooms[room].add(ws)
                await ws.send_text(json.dumps({"op": "users", "room": room, "count": len(rooms[room])}))
        except WebSocketDisconnect:
            for members in rooms.values():
                members.discard(ws)

    return Starlette(routes=[WebSocketRoute("/chat", chat)])


def channels(redis_url: str) -> Any:
    """Django Channels with its Redis layer that publishes once per group."""
    from django.conf import settings

    layer = {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer", "CONFIG": {"hosts": [redis_url]}}
    settings.configure(CHANNEL_LAYERS={"default": layer}, INSTALLED_APPS=["channels"], SECRET_KEY="for a benchmark")
    import django

    django.setup()
    from channels.generic.websocket import AsyncJsonWebsocketConsumer
    from channels.routing import ProtocolTypeRouter, URLRouter
    from django.urls import path

    class Chat(AsyncJsonWebsocketConsumer):
        async def receive_json(self, message: Any) -> None:
            room = message["room"]
            if message["op"] == "say":
                said = {"op": "said", "room": room, "name": "someone", "text": message["text"]}
                await self.channel_layer.group_send(room, {"type": "said", "message": said})
                return
            if message["op"] == "join":
                self.rooms = [*getattr(self, "rooms", ()), room]
                await self.channel_layer.group_add(room, self.channel_name)
            await self.send_json({"op": "users", "room": room, "count": 0})

        async def said(self, event: Any) -> None:
            await self.send_json(event["message"])

        async def disconnect(self, code: int) -> None:  # noqa: ARG002  the signature is the library's
            for room in getattr(self, "rooms", ()):
                await self.channel_layer.group_discard(room, self.channel_name)

    return ProtocolTypeRouter({"websocket": URLRouter([path("chat", Chat.as_asgi())])})


def socketio(redis_url: str) -> Any:
    """python-socketio with its Redis manager."""
    import socketio as library

    server = library.AsyncServer(async_mode="asgi", client_manager=library.AsyncRedisManager(redis_url))

    @server.event
    async def join(sid: str, room: str) -> None:
        await server.enter_room(sid, room)
        await server.emit("users", {"room": room, "count": 0}, to=sid)

    @server.event
    async def say(sid: str, message: Any) -> None:  # noqa: ARG001  the signature is the library's
        await server.emit("said", message, room=message["room"])

    return library.ASGIApp(server)


def worker(name: str, redis_url: str, fd: int) -> None:
    """Be one of the workers."""
    import uvicorn

    app = {"starlette": starlette, "channels": channels, "socketio": socketio}[name](redis_url)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        log_level="error",
        backlog=4096,
        lifespan="off",
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=fd)])


def main(name: str) -> None:
    redis = shutil.which("redis-server")
    if redis is None:
        sys.exit("redis-server is not installed; it is a Debian package of that name")
    sockets: list[socket.socket] = []
    for _ in range(WORKERS):  # on one port, over which the kernel spreads connections
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", sockets[0].getsockname()[1] if sockets else 0))
        sock.listen(4096)
        sockets.append(sock)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = [redis, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    running = {"redis": subprocess.Popen(words, stdout=subprocess.DEVNULL)}
    try:
        wait_for(port)
        for number, sock in enumerate(sockets):
            words = [sys.executable, __file__, name, f"redis://127.0.0.1:{port}/0", str(sock.fileno())]
            running[f"worker-{number}"] = subprocess.Popen(words, pass_fds=[sock.fileno()], stdin=subprocess.DEVNULL)
        url = f"ws://127.0.0.1:{sockets[0].getsockname()[1]}{PATHS[name]}"
        pids = {who: process.pid for who, process in running.items()} | {"launcher": os.getpid()}
        print(json.dumps({"url": url, "pids": pids}), flush=True)
        for _ in sys.stdin:
            print(json.dumps({"url": url, "pids": pids}), flush=True)
    finally:
        for process in reversed(running.values()):  # the store last, or its users complain
            process.kill()
            process.wait()


def wait_for(port: int) -> None:
    """Wait until something listens, which tells nobody that it does."""
    from time import monotonic, sleep

    deadline = monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if monotonic() > deadline:
                raise
            sleep(0.02)
        else:
            return


if __name__ == "__main__":
    main(sys.argv[1]) if len(sys.argv) == 2 else worker(sys.argv[1], sys.argv[2], int(sys.argv[3]))
