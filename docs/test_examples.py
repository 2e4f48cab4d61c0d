"""The programs in examples/ do what the pages say."""

import asyncio
import json
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipcbus.plumbing.ports import free_port

EXAMPLES = Path(__file__).parent / "examples"
PATIENCE = 45
"""Seconds for one program."""


@pytest.mark.parametrize("shown", sorted(EXAMPLES.glob("*.txt")), ids=lambda path: path.stem)
def test_a_program_prints_what_lies_beside_it(shown, tmp_path):
    done = subprocess.run(
        [sys.executable, shown.with_suffix(".py")], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert done.stdout == shown.read_text()


def test_every_program_has_its_output():
    programs = {path.stem for path in EXAMPLES.glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    assert programs == {path.stem for path in EXAMPLES.glob("*.txt")}


@pytest.fixture
def folder(tmp_path):
    """A copy, far from the configuration of this project."""
    return Path(shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__")))


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("test_*.py")))
def test_the_readers_tests_pass(folder, name):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d+ passed", done.stdout), done.stdout


def test_the_room_is_served(folder):
    with serving(folder / "app.toml") as address:
        asyncio.run(asyncio.wait_for(talk(address), PATIENCE))


def test_the_guest_book_remembers(folder):
    for number in range(2):
        with serving(folder / "guestbook.toml") as address:
            asyncio.run(asyncio.wait_for(write(address, [f"guest {before}" for before in range(number)]), PATIENCE))


def test_a_room_spans_boxes(folder):
    (folder / "boxes.key").write_bytes(secrets.token_bytes(32))
    (folder / "boxes.key").chmod(0o600)
    one, two = (f"zmq+tcp://127.0.0.1:{free_port()}" for _ in range(2))
    app = folder / "boxes.toml"
    with serving(app, BOXES=f"{one} {two}") as here, serving(app, BOXES=f"{two} {one}") as there:
        asyncio.run(asyncio.wait_for(relay(here, there), PATIENCE))


@contextmanager
def serving(app, **environment):
    """Serve a configuration of the examples on any port that is free, and yield its address."""
    app.write_text(app.read_text().replace(":8080", ":0"))
    command = Path(sys.executable).with_name("ipcbus")
    with subprocess.Popen(
        [command, "serve", app],
        cwd=app.parent,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as server:
        try:
            assert server.stdout is not None
            assert select.select([server.stdout], [], [], PATIENCE)[0], "the server did not say where it is"
            said = server.stdout.readline()
            yield said.partition("http://")[2].partition("/")[0]
        finally:
            server.send_signal(signal.SIGINT)
            assert server.wait(PATIENCE) == 0


async def write(address, before):
    from websockets.asyncio.client import connect

    async with connect(f"ws://{address}/book", proxy=None) as guest:
        assert json.loads(await guest.recv()) == before
        await guest.send(json.dumps(f"guest {len(before)}"))
        assert json.loads(await guest.recv()) == [f"guest {len(before)}"]


async def relay(here, there):
    from websockets.asyncio.client import connect

    async with connect(f"ws://{here}/room", proxy=None) as ada, connect(f"ws://{there}/room", proxy=None) as bob:
        for guest in (ada, bob):
            assert json.loads(await guest.recv()) == {"welcome": True}
        for speaker in (ada, bob):
            await speaker.send('"hello"')
            assert [json.loads(await guest.recv()) for guest in (ada, bob)] == ["hello", "hello"]


async def talk(address):
    from websockets.asyncio.client import connect

    async with connect(f"ws://{address}/room?name=ada", proxy=None) as ada:
        await ada.send("{}")
        assert "error" in json.loads(await ada.recv())  # an answer: she is in the room
        async with connect(f"ws://{address}/room?name=bob", proxy=None) as bob:
            assert json.loads(await ada.recv()) == {"joined": "bob"}
            await ada.send(json.dumps({"text": "hello"}))
            assert json.loads(await bob.recv()) == {"from": "ada", "text": "hello"}
        assert json.loads(await ada.recv()) == {"left": "bob"}
