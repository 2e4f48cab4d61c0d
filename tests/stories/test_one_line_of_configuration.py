"""The same program file, another value of IPCBUS_TRANSPORT, the same output."""

import os
import subprocess
import sys
from pathlib import Path

import ipcbus

EXPECTED = ["a 2", "and 2", "bird 2", "cat 2", "dog 2", "the 4"]
PROGRAM = Path(__file__).parents[2] / "docs" / "examples" / "one_line.py"


def test_the_output_is_the_same_over_every_transport(tell, url, start_method):
    assert tell("one_line.py", url, start_method) == EXPECTED


def test_a_file_says_it_too(tmp_path):
    for scheme in ("queue", "pipe"):
        (tmp_path / "ipcbus.toml").write_text(f'transport = "{scheme}:"\n')
        shown = ask(tmp_path, "-c", "import ipcbus; print(ipcbus.open().url)")
        assert shown == [f"{scheme}:"]
        assert ask(tmp_path, PROGRAM) == EXPECTED


def test_without_configuration_the_best_one_is_taken(tmp_path):
    best = max((ipcbus.transports.get(name) for name in ipcbus.transports), key=lambda transport: transport.preference)
    assert ask(tmp_path, "-c", "import ipcbus; print(ipcbus.open().url)") == [f"{best.scheme}:"]


def ask(folder, *arguments):
    env = {name: value for name, value in os.environ.items() if name not in ("IPCBUS_TRANSPORT", "IPCBUS_CONFIG")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout.splitlines()
