"""Importing the library changes nothing: no hook, no thread, no signal handler, no file."""

import subprocess
import sys

PROGRAM = """
import atexit, os, pkgutil, signal, sys, threading
done = []

def watch(owner, name):
    original = getattr(owner, name)

    def watched(*args, **kwargs):
        done.append((name, [str(getattr(what, "__module__", "")) for what in (*args, *kwargs.values())]))
        return original(*args, **kwargs)

    setattr(owner, name, watched)

watch(os, "register_at_fork")
watch(atexit, "register")
watch(signal, "signal")
watch(threading.Thread, "start")
import ipcbus
for module in pkgutil.walk_packages(ipcbus.__path__, "ipcbus."):
    if module.name.startswith(("ipcbus.plumbing", "ipcbus.requests", "ipcbus.bus", "ipcbus.directory", "ipcbus.supervisor")):
        __import__(module.name)
assert "ipcbus.plumbing.forks" in sys.modules and "ipcbus.requests.inbox" in sys.modules
print([one for one in done if any(module.startswith("ipcbus") for module in one[1])])
"""


def test_importing_arranges_for_nothing():
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.strip() == "[]"
