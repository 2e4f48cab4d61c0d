"""Plain HTTP on the port of the WebSockets: a page, a health check, refusals."""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING

from websockets.datastructures import Headers
from websockets.http11 import Response

if TYPE_CHECKING:
    from collections.abc import Iterable

    from websockets.http11 import Request

__all__ = ["answer", "cookies", "is_upgrade", "page", "picked", "plain"]

_HTML = "text/html; charset=utf-8"
_TEXT = "text/plain; charset=utf-8"


def is_upgrade(request: Request) -> bool:
    """Tell whether a request asks for a WebSocket."""
    return any("websocket" in value.lower() for value in request.headers.get_all("Upgrade"))


def answer(
    request: Request, body: bytes, *, status: int = 200, kind: str = _TEXT, more: Iterable[tuple[str, str]] = ()
) -> Response:
    """Make a complete response; without its body for HEAD."""
    headers = Headers(
        [
            ("Date", formatdate(usegmt=True)),
            ("Connection", "close"),
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("X-Content-Type-Options", "nosniff"),
            *more,
        ]
    )
    return Response(status, _phrase(status), headers, b"" if request.method == "HEAD" else body)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return HTTPStatus(status // 100 * 100).phrase  # RFC 9110, section 15: that is how a client takes one it does not know


def plain(request: Request, status: int, text: str, *more: tuple[str, str]) -> Response:
    """Make a response of one line."""
    return answer(request, f"{text}\n".encode(), status=status, more=more)


def page(request: Request, body: bytes) -> Response:
    """Make a response of an HTML page that is asked for anew each time."""
    return answer(request, body, kind=_HTML, more=[("Cache-Control", "no-cache")])


def picked(request: Request, names: Iterable[str]) -> dict[str, str]:
    """Return the headers of a request that are on the list, by lower-case name; several of one name joined by commas."""
    found = {name.lower(): request.headers.get_all(name) for name in names}
    return {name: ", ".join(values) for name, values in found.items() if values}


def cookies(request: Request) -> dict[str, str]:
    """Return the cookies of a request by name; of a name given twice, the first: it is the one with the longer path."""
    found: dict[str, str] = {}
    for value in request.headers.get_all("Cookie"):
        for pair in value.split(";"):
            name, equals, text = pair.strip().partition("=")
            if equals:
                found.setdefault(name, text.strip('"'))
    return found
