"""Several WebSocket connections, each in a process of its own; what they receive is read here."""

import asyncio
from contextlib import ExitStack
from multiprocessing import Process

import ipcbus
from ipcbus.web import connect

NAMES = ("ada", "bob", "cyd")
QUOTES = ("EUR 1.09", "GBP 1.27", "JPY 0.0067")


def serve(ready: ipcbus.Channel) -> None:
    """Greet each client by name and send it the quotes."""
    from websockets.asyncio.server import ServerConnection, serve

    async def talk(client: ServerConnection) -> None:
        name = await client.recv()
        for quote in QUOTES:
            await client.send(f"{name}: {quote}")

    async def run() -> None:
        async with serve(talk, "127.0.0.1", 0) as server:
            await ready.aio.send(server.sockets[0].getsockname()[1])
            await server.serve_forever()

    asyncio.run(run())


def main() -> None:
    with ipcbus.open("pipe:") as ready, ipcbus.open("auto:") as replies, ExitStack() as stack:
        server = Process(target=serve, args=(ready.sender,), daemon=True)
        server.start()
        url = f"ws://127.0.0.1:{ready.recv(timeout=30)}"
        hellos = [stack.enter_context(ipcbus.open("pipe:")) for _ in NAMES]
        received: dict[int, list[str]] = {number: [] for number in range(len(NAMES))}
        # 1000 is how this server says that it is done: it would be pointless to connect again.
        with connect([url] * len(NAMES), replies, hellos, processes=len(NAMES), give_up_on=(1000,)):
            for hello, name in zip(hellos, NAMES, strict=True):
                hello.send(name)
            going = len(NAMES)
            while going:
                news = replies.recv(timeout=30)
                if news.is_message:
                    received[news.connection].append(news.data)
                going -= news.kind == "ended"
        server.terminate()
        server.join()
    for messages in received.values():
        print(*messages, sep=", ")


if __name__ == "__main__":
    main()
