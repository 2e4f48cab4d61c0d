"""The contract, kept by zmq and zmq+tcp."""

import socket

from ipcbus.testing.cases import ChannelContract


def fresh_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"zmq+tcp://127.0.0.1:{server.getsockname()[1]}"


class TestZmq(ChannelContract):
    url = "zmq:"


class TestZmqTcp(ChannelContract):
    url = staticmethod(fresh_url)
