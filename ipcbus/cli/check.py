"""``ipcbus check``: whether an object can be sent, and rebuilt by a process that knows nothing yet."""

from typing import Annotated, Any

import typer

from ipcbus.codec import Codec
from ipcbus.settings import PRIVATE_MAX_MESSAGE

__all__ = ["check", "decode"]


def check(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:OBJECT",
            help="What to try: an object, or a function without arguments that makes one.",
            show_default=False,
        ),
    ],
    *,
    serializer: Annotated[str, typer.Option(help="The channel's serializer.")] = "auto",
    timeout: Annotated[float, typer.Option(help="Seconds the fresh process may take.", min=0.1, max=86_400)] = 30.0,
) -> None:
    """Encode an object here, decode it in a fresh process, and say what cannot travel and what to do."""
    import sys

    from ipcbus import check as engine

    if "" not in sys.path:
        sys.path.insert(0, "")  # the module is most likely in the directory in which this is typed
    codec = Codec(serializer, None, private=True, max_message=PRIVATE_MAX_MESSAGE)
    report = engine.check(
        target, timeout=timeout, encode=lambda obj: b"".join(codec.encode(obj)), decode="ipcbus.cli.check:decode"
    )
    typer.echo(str(report), err=not report.ok)
    if not report.ok:
        raise typer.Exit(1)


def decode(data: bytes) -> Any:
    """Rebuild the object of a frame as a receiver on a private channel does; the frame says by which serializer."""
    return Codec("auto", None, private=True, max_message=PRIVATE_MAX_MESSAGE).decode([data])
