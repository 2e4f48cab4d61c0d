"""``python -m ipcbus.testing URL``: run the contract over a transport and print how each check went."""

from __future__ import annotations

import argparse
import sys
import textwrap
from typing import TYPE_CHECKING

from ipcbus.errors import IpcbusError
from ipcbus.plumbing.ports import free_port
from ipcbus.testing.contract import Subject, checks_for, methods_for
from ipcbus.testing.runner import run_apart

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the contract; return the number of failed checks, at most 100."""
    parser = argparse.ArgumentParser(prog="python -m ipcbus.testing", description="Run the contract over a transport.")
    parser.add_argument("url", help="the channel URL, such as pipe:, or zmq+tcp://127.0.0.1:{port} for a free port each")
    parser.add_argument("-k", dest="word", default="", help="run only checks with this in their name")
    chosen = parser.parse_args(arguments)
    url = (lambda: chosen.url.replace("{port}", str(free_port()))) if "{port}" in chosen.url else chosen.url
    try:
        capabilities = Subject(url).capabilities
    except IpcbusError as error:
        print(error, file=sys.stderr)  # noqa: T201  a command talks to its user
        return 2
    wanted = [check for check in checks_for(capabilities) if chosen.word in check.name]
    if not wanted:
        print(f"no check of {chosen.url} has {chosen.word!r} in its name", file=sys.stderr)  # noqa: T201  the same
        return 2
    failed = 0
    print(f"{'check':32} {'rules':12} {'start':12} {'seconds':>8}  result")  # noqa: T201  the same
    for check in wanted:
        for method in methods_for(check):
            verdict = run_apart(check, lambda method=method: Subject(url, method))  # type: ignore[misc]  # a default in a lambda
            start = "" if check.scope == "thread" else method
            rules = ",".join(map(str, check.rules))
            word = "passed" if verdict.passed else "FAILED"
            print(f"{check.name:32} {rules:12} {start:12} {verdict.seconds:8.2f}  {word}", flush=True)  # noqa: T201  the same
            if not verdict.passed:
                failed += 1
                print(textwrap.indent(f"{check.says}\n", "    "))  # noqa: T201  the same
                print(textwrap.indent(verdict.report.strip(), "    "), flush=True)  # noqa: T201  the same
    print(f"{failed} failed" if failed else "all passed")  # noqa: T201  the same
    return min(failed, 100)


if __name__ == "__main__":
    sys.exit(main())
