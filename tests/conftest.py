"""What every test gets: runtime files in a place of the session's own, and a look at what it left behind."""

import multiprocessing.util
import os
import shutil
import signal
import tempfile
from multiprocessing.util import Finalize

import hypothesis
import pytest

from ipcbus import endpoints
from ipcbus.directory import client as directory
from ipcbus.requests import callback, inbox
from ipcbus.testing import leaks

# A busy machine is slow now and then; what hangs is found by the time-out of each test.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


def pytest_configure(config):
    # Each worker of pytest-xdist has a thread of its own for the commands it gets, which is not ours to be warned of.
    if hasattr(config, "workerinput"):
        config.addinivalue_line("filterwarnings", "ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="session", autouse=True)
def _own_runtime_directory():
    """Keep names that other programs on this machine make out of sight. Short: a socket's path has 107 bytes."""
    multiprocessing.util.get_temp_dir()  # kept to the exit of the process, after this session's place is gone
    place = tempfile.mkdtemp(prefix="it-")
    names = ("TMPDIR", "XDG_RUNTIME_DIR")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, place))
    tempfile.tempdir = None
    leaks.warm_up("sqlalchemy.orm")  # which the chat of the demo needs, and which takes long to import
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    tempfile.tempdir = None
    # multiprocessing has a directory in there and removes it at exit; this comes after that.
    Finalize(None, shutil.rmtree, (place,), {"ignore_errors": True}, exitpriority=-200)


@pytest.fixture(scope="session", autouse=True)
def _interruptible():
    """Undo what a shell does to its background jobs: the programs that tests start would inherit that they ignore SIGINT."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_leaks(_own_runtime_directory, request):
    """Fail a test that leaves a descriptor, a thread, a process or a file behind."""
    before = leaks.snapshot()
    yield
    endpoints.destroy_closed()  # what a closed channel has a name for is kept to the exit of the process that made it
    callback.settle()
    inbox.settle()
    directory.settle()  # and so is what it shared
    if left := leaks.compare(before):
        pytest.fail(f"{request.node.name} left behind:\n" + "\n".join(left))
