"""The contract, kept by shm."""

import pytest

from ipcbus.testing.cases import ChannelContract

pytest.importorskip("ipcbus_shm")


class TestShm(ChannelContract):
    url = "shm:"
