"""The contract, executable: plain functions ``check_NAME(subject)`` that need no test framework.

The rules are numbered in :mod:`ipcbus.transport`. A check raises ``AssertionError`` when its rule is broken, leaves
nothing behind, and is bounded in time; it branches on declared capabilities only. What a transport does not declare is
checked too: it must raise ``Unsupported``.

>>> from ipcbus.testing import contract
>>> for check in contract.checks_for(ipcbus.transports.get("mine").capabilities):
...     with contract.Subject("mine:", start_method="spawn") as subject:
...         check.run(subject)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipcbus.testing.contract import bus, life, limits, manners, messages, processes, requests, topics, waiting
from ipcbus.testing.contract.registry import CHECKS, Check
from ipcbus.testing.subject import Subject

if TYPE_CHECKING:
    from ipcbus.testing.subject import StartMethod
    from ipcbus.transport import Capabilities

__all__ = [
    "CHECKS",
    "Check",
    "Subject",
    "bus",
    "checks_for",
    "life",
    "limits",
    "manners",
    "messages",
    "methods_for",
    "processes",
    "requests",
    "topics",
    "waiting",
]


def checks_for(capabilities: Capabilities) -> list[Check]:
    """Return the checks that a transport with these capabilities must pass."""
    return [check for check in CHECKS if check.applies(capabilities)]


def methods_for(check: Check) -> tuple[StartMethod, ...]:
    """Return the start methods to run a check under: where the kind does not matter, the quickest alone."""
    methods: dict[str, tuple[StartMethod, ...]] = {
        "thread": ("fork",),
        "process": ("forkserver",),
        "start method": ("fork", "spawn", "forkserver"),
    }
    return methods[check.scope]
