"""The contract, kept by zmq."""

from ipcbus.testing.cases import ChannelContract


class TestZmq(ChannelContract):
    url = "zmq:"
