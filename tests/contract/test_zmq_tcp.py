"""The contract, kept by zmq+tcp, each channel at a port of its own."""

from ipcbus.plumbing.ports import free_port
from ipcbus.testing.cases import ChannelContract


class TestZmqTcp(ChannelContract):
    url = staticmethod(lambda: f"zmq+tcp://127.0.0.1:{free_port()}")
