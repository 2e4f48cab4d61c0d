"""The core with nothing else installed; ``nox -s minimal`` runs this as a script, in an environment of ipcbus alone."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import ipcbus

INSTALLERS = {"pip", "setuptools", "wheel"}
CHECKOUT = Path(__file__).resolve().parents[1]
TRANSPORTS = {"shm": str(CHECKOUT / "transports" / "ipcbus_shm"), "zmq": "'ipcbus[zmq]'", "zmq+tcp": "'ipcbus[zmq]'"}
"""What each needs, as pip wants to be told: the core was installed from the checkout, and so is what else lies there."""
SERIALIZERS = {"msgpack": "'ipcbus[msgpack]'", "protobuf": "'ipcbus[protobuf]'", "cloudpickle": "'ipcbus[cloudpickle]'"}
"""What needs an extra, and which."""
TIMEOUT = 20.0


def answer(questions: ipcbus.Channel, answers: ipcbus.Channel) -> None:
    for question in questions:
        answers.send(question + 1)
    answers.shutdown()


def nothing_else_is_installed() -> None:
    others = {distribution.name.lower() for distribution in distributions()} - INSTALLERS - {"ipcbus"}
    assert not others, f"this environment is to hold ipcbus alone, but has {sorted(others)}"


def one_process(url: str) -> None:
    with ipcbus.open(url) as channel:
        channel.send({"answer": 42}, timeout=TIMEOUT)
        assert channel.recv(timeout=TIMEOUT) == {"answer": 42}
        print(f"{url} is {channel.url} and works in one process")


def two_processes(url: str, method: str) -> None:
    context = multiprocessing.get_context(method)
    with ipcbus.open(url) as questions, ipcbus.open(url) as answers:
        child = context.Process(target=answer, args=(questions.receiver, answers.sender))
        child.start()
        assert questions.send_many(range(10), timeout=TIMEOUT) == 10
        questions.shutdown()
        assert [answers.recv(timeout=TIMEOUT) for _ in range(10)] == list(range(1, 11))
        child.join(TIMEOUT)
        assert child.exitcode == 0, child
    print(f"{url} works between processes, {method}")


def what_is_missing_is_named(registry: ipcbus.registry.Registry, name: str, needs: str, expected: type[Exception]) -> None:
    try:
        registry.get(name)
    except expected as error:
        said = str(error)
    else:
        said = f"nothing: {name} loaded, although it needs what is not installed"
    print(said)
    assert said.endswith(f"pip install {needs}")


def the_command_line_says_what_to_install() -> None:
    command = Path(sys.executable).with_name("ipcbus")
    done = subprocess.run([command, "transports"], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 1, done
    assert "pip install 'ipcbus[cli]'" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr


def main() -> None:
    nothing_else_is_installed()
    for url in ("inproc:", "queue:", "pipe:", "unix:", "auto:", "pipe:?serializer=json"):
        one_process(url)
    for url in ("queue:", "pipe:", "unix:"):
        for method in ("fork", "spawn", "forkserver"):
            two_processes(url, method)
    for name, needs in TRANSPORTS.items():
        what_is_missing_is_named(ipcbus.transports, name, needs, ipcbus.TransportUnavailable)
    for name, needs in SERIALIZERS.items():
        what_is_missing_is_named(ipcbus.serializers, name, needs, ipcbus.SerializerUnavailable)
    the_command_line_says_what_to_install()
    print("the core works alone")


if __name__ == "__main__":
    main()
