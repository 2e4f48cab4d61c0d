"""Several WebSocket clients, each in a process of its own; what they receive is read here."""

import asyncio
from multiprocessing import Process

import ipcbus

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


def listen(port: int, name: str, replies: ipcbus.Channel) -> None:
    """Pass every message of one connection on; the process that reads them is another one."""
    from websockets.sync.client import connect

    with connect(f"ws://127.0.0.1:{port}", proxy=None) as websocket:
        websocket.send(name)
        for message in websocket:
            replies.send(message)


def main() -> None:
    with ipcbus.open("pipe:") as ready, ipcbus.open("auto:") as replies:
        server = Process(target=serve, args=(ready.sender,), daemon=True)
        server.start()
        port = ready.recv(timeout=30)
        clients = [Process(target=listen, args=(port, name, replies.sender)) for name in NAMES]
        for client in clients:
            client.start()
        expected = len(NAMES) * len(QUOTES)
        received = [replies.recv(timeout=30) for _ in range(expected)]
        for client in clients:
            client.join()
        server.terminate()
        server.join()
    for name in NAMES:
        print(*(message for message in received if message.startswith(name)), sep=", ")


if __name__ == "__main__":
    main()
