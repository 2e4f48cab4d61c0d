"""The error tree: as drawn, picklable, and caught by what people already catch."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import queue
import re
import subprocess
import sys
from typing import Any

import pytest

import ipcbus
from ipcbus import errors
from ipcbus.explain import Culprit
from ipcbus.testing.subject import Task

ALL = [getattr(errors, name) for name in errors.__all__]


def drawing() -> dict[str, tuple[str | None, list[str]]]:
    """Read the tree in the module's docstring: each class's parent there, and the built-in types beside it."""
    found: dict[str, tuple[str | None, list[str]]] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.fullmatch(r"(?P<indent>[ │├└─]*)(?P<name>[A-Z]\w+)(?: \((?P<mixed>[\w., ]+)\))?(?:  .*)?", line)
        if match is None or match["name"] not in errors.__all__:
            continue
        depth = len(match["indent"])
        above = [(at, name) for at, name in above if at < depth]
        found[match["name"]] = (above[-1][1] if above else None, re.split(r", ?", match["mixed"]) if match["mixed"] else [])
        above.append((depth, match["name"]))
    return found


def test_drawing_is_complete() -> None:
    assert sorted(drawing()) == sorted(errors.__all__)
    classes = [name for name, thing in vars(errors).items() if inspect.isclass(thing) and thing.__module__ == errors.__name__]
    assert sorted(classes) == sorted(errors.__all__)


@pytest.mark.parametrize("name", errors.__all__)
def test_tree_is_as_drawn(name: str) -> None:
    parent, mixed = drawing()[name]
    kind = getattr(errors, name)
    names = {"queue.Full": queue.Full, "queue.Empty": queue.Empty}
    wanted = ([getattr(errors, parent)] if parent else [Exception]) + [names.get(one) or _built_in(one) for one in mixed]
    assert list(kind.__bases__) == wanted


def _built_in(name: str) -> Any:
    import builtins

    return getattr(builtins, name)


FILLED: dict[str, dict[str, Any]] = {
    "ChannelBusy": {"pid": 7},
    "PeerDied": {"pid": 7, "exitcode": -9},
    "MessageTooLarge": {"size": 10, "limit": 5},
    "EncodeError": {"culprits": (Culprit("obj.x", "Lock", "a lock", "leave it out"),)},
    "DecodeError": {"content_type": "a/b", "size": 3, "head": b"abc"},
    "ContentRefused": {"content_type": "a/b"},
    "RemoteError": {"type_name": "ValueError", "remote_traceback": "Traceback ..."},
}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    "again", [*(lambda e, p=p: pickle.loads(pickle.dumps(e, p)) for p in (2, 5)), copy.copy], ids=["2", "5", "copy"]
)
def test_pickles_with_its_attributes(kind: Any, again: Any) -> None:
    attributes = FILLED.get(kind.__name__, {})
    error = kind("what happened", **attributes)
    error.url = "pipe:"
    error.add_note("a note")
    back = again(error)
    assert type(back) is kind
    assert str(back) == str(error) == "what happened"
    assert repr(back) == repr(error)
    assert back.args == error.args
    assert back.url == "pipe:"
    assert back.__notes__ == ["a note"]
    for name, value in attributes.items():
        assert getattr(back, name) == value
    if issubclass(kind, ImportError):
        assert back.msg == "what happened"


def test_channel_errors_have_a_url() -> None:
    assert errors.ChannelFull("x").url is None


def test_old_habits_still_catch() -> None:
    for kind, habits in {
        errors.ChannelFull: (queue.Full, TimeoutError, OSError),
        errors.ChannelEmpty: (queue.Empty, TimeoutError),
        errors.EndOfChannel: (EOFError,),
        errors.PeerDied: (errors.ChannelBroken, OSError),
        errors.MessageTooLarge: (ValueError,),
        errors.ConfigError: (ValueError,),
        errors.UnknownTransport: (LookupError,),
        errors.TransportUnavailable: (ImportError,),
    }.items():
        for habit in habits:
            assert issubclass(kind, habit)


def test_wait_for_one_channel_that_is_not_in_a_list_takes_nothing_from_it() -> None:
    with ipcbus.open("inproc:") as channel:
        channel.send(1)
        with pytest.raises(TypeError, match=r"write wait\(\[...\]\)"):
            ipcbus.wait(channel, timeout=0)
        assert channel.recv(timeout=0) == 1


def test_wait_for_nothing_is_no_wait_for_ever() -> None:
    waiting = Task(ipcbus.wait, ([],), {})
    with pytest.raises(ValueError, match="nothing to wait for and no timeout"):
        waiting.result(5)
    assert ipcbus.wait([], timeout=0) == []


@pytest.mark.parametrize("url", ["inproc:", "pipe:", "queue:", "unix:", "zmq:"])
def test_a_timeout_that_is_no_number_is_refused_by_who_would_wait(url: str) -> None:
    with ipcbus.open(url, capacity=1) as channel:
        channel.send(1)
        sending = Task(channel.send, (2,), {"timeout": math.nan})
        with pytest.raises(ValueError, match="a timeout is a number of seconds, not nan"):
            sending.result(5)


LACKING = """
import errno, os, sys, ipcbus
missing, call = sys.argv[1:]

class Lacking:
    def find_spec(self, name, path, target=None):
        if name == missing:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

channel = ipcbus.open("inproc:")
channel.send("kept")
lacking = Lacking()
sys.meta_path.insert(0, lacking)
try:
    eval(call)
except ipcbus.ChannelBroken as error:
    print(error)
sys.meta_path.remove(lacking)
assert channel.recv(5) == "kept"
channel.shutdown()
assert not channel.serve(print) and ipcbus.open().aio
"""


@pytest.mark.parametrize(
    ("missing", "call"),
    [
        ("ipcbus.requests.asking", "channel.request(1, 5)"),
        ("ipcbus.requests.asking", "channel.submit(1, 5)"),
        ("ipcbus.requests.serving", "channel.serve(print)"),
        ("ipcbus.requests.reply", "channel.serve(print)"),
        ("ipcbus.requests.reply", "channel.recv_message(5)"),
        ("ipcbus.aio", "channel.aio"),
        ("ipcbus.config", "ipcbus.open()"),
        ("ipcbus.requests.callback", "ipcbus.callback(print)"),
        ("ipcbus.bus.bus", "ipcbus.Bus()"),
        ("ipcbus.bus.home", "ipcbus.Bus()"),
        ("ipcbus.directory.client", "ipcbus.Bus.connect('/nowhere')"),
        ("ipcbus.bus.tap", "ipcbus.Bus().tap('orders')"),
        ("ipcbus.bus.route", "ipcbus.Bus().topic('prices').publish(1)"),
        ("ipcbus.bus.topics_home", "ipcbus.Topic('/nowhere', 'prices').subscribe()"),
    ],
)
def test_what_is_loaded_late_says_that_a_descriptor_is_lacking(missing: str, call: str) -> None:
    command = [sys.executable, "-c", LACKING, missing, call]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.endswith(
        " cannot be loaded: Too many open files; close some descriptors or raise 'ulimit -n', and try again\n"
    )
