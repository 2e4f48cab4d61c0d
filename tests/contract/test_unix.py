"""The contract, kept by unix."""

from ipcbus.testing.cases import ChannelContract


class TestUnix(ChannelContract):
    url = "unix:"
