"""The contract, kept by pipe."""

from ipcbus.testing.cases import ChannelContract


class TestPipe(ChannelContract):
    url = "pipe:"
