"""``ipcbus check``: whether an object can be sent, and rebuilt by a process that knows nothing yet."""

from typing import Annotated

import typer

__all__ = ["check"]


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
    timeout: Annotated[float, typer.Option(help="Seconds the fresh process may take.", min=0.1)] = 30.0,
) -> None:
    """Encode an object here, decode it in a fresh process, and say what cannot travel and what to do."""
    import sys

    from ipcbus import check as engine

    if "" not in sys.path:
        sys.path.insert(0, "")  # the module is most likely in the directory in which this is typed
    report = engine.check(target, timeout=timeout)
    typer.echo(str(report), err=not report.ok)
    if not report.ok:
        raise typer.Exit(1)
