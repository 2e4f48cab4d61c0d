"""The contract, kept by zmq+tcp, each channel at a port of its own."""

from ipcbus.testing.cases import ChannelContract
from ipcbus.testing.subject import free_port


class TestZmqTcp(ChannelContract):
    url = staticmethod(lambda: f"zmq+tcp://127.0.0.1:{free_port()}")
