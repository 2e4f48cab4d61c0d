"""A channel behaves as a bounded queue, whatever is done with it in whatever order."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from ipcbus.errors import IpcbusError
from ipcbus.plumbing.ports import free_port
from ipcbus.testing import mutants
from ipcbus.testing.model import model_of

URLS = {
    "inproc": "inproc:",
    "queue": "queue:",
    "pipe": "pipe:",
    "unix": "unix:",
    "shm": "shm:",
    "zmq": "zmq:",
    "zmq+tcp": lambda: f"zmq+tcp://127.0.0.1:{free_port()}",
}
SETTINGS = settings(
    max_examples=15,
    stateful_step_count=30,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    # No search for a shorter example: channels that fail linger, and a hundred of them outlast the time of the test, which
    # then ends without saying what failed.
    phases=[Phase.generate],
)


@pytest.mark.timeout(150)  # hundreds of channels, each of which may have to connect and to linger
@pytest.mark.parametrize("scheme", URLS)
def test_model(scheme):
    if scheme == "shm":
        pytest.importorskip("ipcbus_shm")
    run_state_machine_as_test(model_of(URLS[scheme]), settings=SETTINGS)


@pytest.mark.parametrize("scheme", ["mutant-duplicate", "mutant-capacity", "mutant-poison", "mutant-eager"])
def test_model_notices(scheme):
    mutants.register()
    # It ends with the first example that fails, one in twenty or so: among so many there is one.
    with pytest.raises((AssertionError, IpcbusError)):
        run_state_machine_as_test(model_of(scheme + ":"), settings=settings(SETTINGS, max_examples=1000))
