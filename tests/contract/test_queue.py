"""The contract, kept by queue."""

from ipcbus.testing.cases import ChannelContract


class TestQueue(ChannelContract):
    url = "queue:"
