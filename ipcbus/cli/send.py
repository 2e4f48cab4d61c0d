"""``ipcbus send``: messages from a shell."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ipcbus.channel import Channel
from ipcbus.cli.target import Address, Name, connect, opened
from ipcbus.errors import ConfigError

__all__ = ["send"]


def send(
    name: Name,
    value: Annotated[
        str | None,
        typer.Argument(help="What to send, in JSON; '-' sends each line of standard input.", show_default=False),
    ] = None,
    *,
    text: Annotated[bool, typer.Option("--text", help="Send VALUE, or each line, as the text that it is.")] = False,
    bytes_from: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Send what is in this file, as bytes.", show_default=False)
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A text to travel beside it; may be repeated.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="How long a message may wait for room. Default: for ever.", min=0),
    ] = None,
    address: Address = None,
) -> None:
    """Send a message to a channel of a bus, or one for each line of standard input."""
    headers = dict(_split(entry) for entry in header or ()) or None
    messages = _messages(value, bytes_from, text=text)
    # What was typed is looked at before anything is opened.
    first = [] if value == "-" else list(messages)
    bus = connect(address)
    with opened(bus, name, bus.channel) as channel:
        try:
            for message in first or messages:
                channel.send(message, timeout, headers=headers)
        finally:
            lost = _say_dropped(channel)
    if lost:
        raise typer.Exit(1)


def _say_dropped(channel: Channel) -> bool:
    """Say how many messages found no room, where the channel drops them, and return whether it was those sent here."""
    dropped, overflow = channel.stats().dropped, channel._end.options.overflow  # noqa: SLF001  as recv
    own = overflow == "drop_new"
    if dropped:
        what = "of these messages found no room and were dropped" if own else "older messages were dropped to make room"
        typer.echo(f"ipcbus: {dropped} {what}: this channel has overflow={overflow!r}", err=True)
    return own and dropped > 0


def _messages(value: str | None, file: Path | None, *, text: bool) -> Iterator[Any]:
    if (value is None) == (file is None):
        raise ConfigError("give one of VALUE and --bytes-from FILE; VALUE '-' is standard input")
    if file is not None:
        if text:
            raise ConfigError("--text and --bytes-from exclude each other: what is in a file is sent as bytes")
        yield _read(file)
    elif value == "-":
        yield from _lines(text=text)
    else:
        yield value if text else _parse(str(value), "VALUE")


def _lines(*, text: bool) -> Iterator[Any]:
    for number, line in enumerate(_stdin(), 1):
        content = line.removesuffix("\n")
        if text:
            yield content
        elif content.strip():
            yield _parse(content, f"line {number} of standard input")


def _stdin() -> Iterator[str]:
    if sys.stdin is None:  # closed by who started this
        raise ConfigError("VALUE '-' is standard input, which is closed here")
    try:
        yield from sys.stdin
    except OSError as error:
        raise ConfigError(f"standard input cannot be read: {error.strerror or error}") from error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {error}; --text sends it as it is") from error


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error


def _split(entry: str) -> tuple[str, str]:
    key, found, value = entry.partition("=")
    if not found or not key:
        raise ConfigError(f"--header {entry!r}: write KEY=VALUE")
    return key, value
