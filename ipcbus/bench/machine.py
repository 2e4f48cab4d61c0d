"""The machine and the versions that a measurement was made with: figures mean nothing without."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import ipcbus
from ipcbus.bench.foreign import PEERS

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["describe", "sentence"]


def describe(carriers: Iterable[str] = ()) -> dict[str, str]:
    """Return what to know about this machine and what is measured on it, by what it is.

    Args:
        carriers: the names of what is measured; of the peers among them the versions are told.
    """
    facts = {
        "ipcbus": ipcbus.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "load": f"{os.getloadavg()[0]:.1f}",
    }
    for name in carriers:
        peer = PEERS.get(name)
        if peer is not None and peer.distribution is not None and peer.missing() is None:
            facts[peer.distribution] = peer.version() or "?"
    return facts


def sentence(facts: dict[str, str]) -> str:
    """Write the facts in a line."""
    named = [f"{name} {value}" for name, value in facts.items() if name not in ("system", "processor", "cores", "load")]
    where = f"{facts['system']}, {facts['processor']}, {facts['cores']} cores, load {facts['load']} when it began"
    return f"{', '.join(named)}\n{where}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
