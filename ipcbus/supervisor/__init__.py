"""Supervisor: starts processes, waits until they are ready, starts them again when they die, and stops them in order.

::

    def work(jobs):                        # importable by its name, as for multiprocessing
        for job in jobs: ...

    with Supervisor([Program("worker", work, (jobs,), handshake=False)]) as supervisor:
        for occurrence in supervisor.events: ...

No process outlives its supervisor, however that ends: each has a :class:`~ipcbus.supervisor.line.Tether`.
"""

from __future__ import annotations

from ipcbus.errors import GaveUp, StartFailed
from ipcbus.supervisor.events import Events
from ipcbus.supervisor.life import TAKE_OVER, Life
from ipcbus.supervisor.program import Occurrence, Program
from ipcbus.supervisor.supervisor import Supervisor

__all__ = ["TAKE_OVER", "Events", "GaveUp", "Life", "Occurrence", "Program", "StartFailed", "Supervisor"]
