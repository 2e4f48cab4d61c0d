"""The contract, kept by inproc."""

from ipcbus.testing.cases import ChannelContract


class TestInproc(ChannelContract):
    url = "inproc:"
