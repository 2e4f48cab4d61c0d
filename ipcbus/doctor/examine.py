"""Everything that is looked at, in the order in which it is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipcbus.doctor import machine, places
from ipcbus.doctor.finding import Finding, split
from ipcbus.doctor.trial import TIMEOUT, attempt
from ipcbus.selection import transports

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ipcbus.doctor.trial import Trial

__all__ = ["examine"]

_LOADING = "loading it"


def examine(*, clean: bool = False, timeout: float = TIMEOUT) -> Iterator[Finding]:
    """Look at this machine as ipcbus sees it, one finding after the other.

    Args:
        clean: whether to remove what killed processes left behind; nothing else is ever changed.
        timeout: seconds for each transport that is tried.
    """
    yield from machine.versions()
    yield from machine.kernel()
    yield from machine.start_method()
    yield from machine.descriptors()
    yield from machine.locked_memory()
    yield from machine.shared_memory()
    yield from places.runtime_directory()
    yield from places.leftovers(clean=clean)
    yield from places.buses()
    yield from places.configuration()
    # Not before this: what hangs when it is imported would hang this process, too.
    trials = [attempt(scheme, timeout=timeout) for scheme in transports]
    stuck = [trial.scheme for trial in trials if trial.hung == _LOADING]
    if stuck:
        said = f"every program that opens auto: hangs, because loading {', '.join(stuck)} does"
        yield Finding("auto:", "problem", said, "uninstall what provides it, or name a transport instead")
    else:
        yield from places.automatic()
    yield from machine.kernel_limits(without=stuck)
    yield from map(transport, trials)


def transport(trial: Trial) -> Finding:
    """Make a finding of a trial."""
    subject = f"{trial.scheme}:"
    if trial.problem is None:
        return Finding(subject, "ok", f"a message from {trial.sender} arrived after {trial.milliseconds:.1f} ms")
    said, advice = split(trial.problem)
    return Finding(subject, "note" if trial.missing else "problem", said, advice)
