"""How a story is told: a program file of the documentation, run as its users run it, over every transport."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import ipcbus

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "docs" / "examples"
PLAY = HERE / "programs" / "play.py"
PATIENCE = 45
"""Seconds for one program; a test has sixty."""


def _schemes():
    """Yield every scheme whose channels cross processes, those that lack something marked as skipped."""
    for scheme in ipcbus.transports:
        try:
            if ipcbus.transports.get(scheme).capabilities.crosses_processes:
                yield scheme
        except ipcbus.TransportUnavailable as error:
            yield pytest.param(scheme, marks=pytest.mark.skip(reason=str(error)))


@pytest.fixture(params=_schemes())
def url(request, tmp_path):
    """A URL for one channel on each transport; with a key where strangers could reach it."""
    scheme = request.param
    if not ipcbus.transports.get(scheme).capabilities.addressable:
        return f"{scheme}:"
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(32))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return f"{scheme}://127.0.0.1:{port}?key_file={key}"


@pytest.fixture
def many_url(url):
    """One that all channels of a program can have at once, and that requests can go through."""
    if "//" in url:
        pytest.skip("an address is for one channel, which strangers can reach; the program opens several private ones by it")
    return url


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def start_method(request):
    return request.param


@pytest.fixture
def tell(tmp_path):
    """Run a program and return the lines it printed; its transport is what the environment says."""

    def run(program, url, start_method, *, errors=""):
        done = subprocess.run(
            [sys.executable, PLAY, start_method, EXAMPLES / program],
            cwd=tmp_path,
            env={**os.environ, "IPCBUS_TRANSPORT": url},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert (errors in done.stderr) if errors else (not done.stderr), done.stderr
        return done.stdout.splitlines()

    return run


@pytest.fixture
def programs():
    return HERE / "programs"
