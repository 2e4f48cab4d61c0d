"""``ipcbus bench``: every transport on the user's own message, beside what people use instead."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ipcbus.errors import ConfigError, TransportUnavailable, UnknownTransport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ipcbus.bench.advice import Advice
    from ipcbus.bench.carriers import Carrier
    from ipcbus.bench.figures import Result
    from ipcbus.bench.plan import Plan
    from ipcbus.bench.report import Block
    from ipcbus.bench.run import Effort

__all__ = ["bench"]

_SIZES = ("64", "1KiB", "64KiB", "1MiB")


def bench(
    *,
    target: Annotated[
        str,
        typer.Option(
            "--object",
            metavar="KIND|MODULE:FACTORY",
            help="What is sent: bytes, dict, dataclass, protobuf, array, or what a function of yours returns; one that has a "
            "parameter is told the size.",
        ),
    ] = "bytes",
    scenario: Annotated[
        list[str] | None,
        typer.Option(help="one-way, round-trip, request, fan-in, fan-out or arrays; may be repeated. Default: the first two."),
    ] = None,
    transport: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Only this channel; may be repeated. Default: every installed transport."),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(help="Of the message, as 64, 1KiB, 64MiB; may be repeated. Default: 64, 1KiB, 64KiB and 1MiB."),
    ] = None,
    serializer: Annotated[
        list[str] | None, typer.Option(help="May be repeated; 'all' is every one that brings the object back. Default: auto.")
    ] = None,
    senders: Annotated[int, typer.Option(help="Of a fan-in.", min=1, max=64)] = 8,
    receivers: Annotated[int, typer.Option(help="Of a fan-out.", min=2, max=64)] = 4,
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Measure what people use instead in the same run.")] = True,
    rounds: Annotated[int, typer.Option(help="How often to measure everything, in turn.", min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="How long one measurement counts.", min=0.001)] = 0.1,
    limit: Annotated[float, typer.Option(help="Seconds after which one that hangs is killed.", min=0.1)] = 30.0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures there; - prints them.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw throughput and latency against size: .png, .svg or .html.")
    ] = None,
) -> None:
    """Measure every transport on your own message, beside bare queues, pipes and sockets, and say which to take."""
    ...
