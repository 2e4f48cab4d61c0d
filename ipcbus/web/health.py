"""What ``/healthz`` and ``/readyz`` answer: is this process alive, and should it get clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["health"]


def health(path: str, away: Sequence[str], *, draining: bool = False) -> tuple[int, str] | None:
    """Return status and text of the answer, or None if the path is neither of the two.

    ``/healthz`` is for who starts processes again: a front end that can answer needs no help, whatever its services do.
    (While a limit is reached the doors turn away whoever asks with 503: they do not know yet what it is about.)
    ``/readyz`` is for who distributes clients: only a front end whose services are all there should get more of them.

    Args:
        path: of the request, without the query.
        away: names of the services that are not attached.
        draining: whether the front end is about to stop.
    """
    if path == "/healthz":
        return 200, "ok"
    if path != "/readyz":
        return None
    if draining:
        return 503, "stopping"
    return (503, f"waiting for: {', '.join(away)}") if away else (200, "ok")
