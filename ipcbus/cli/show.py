"""How ``ipcbus recv`` and ``ipcbus tap`` wait for messages and print them, one after the other, without losing one."""

import base64
import json
import os
import select
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, Self

import typer

from ipcbus.errors import ChannelEmpty, SerializationError
from ipcbus.message import Message
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.wakeup import Wakeup

if TYPE_CHECKING:
    from ipcbus.codec import Codec
    from ipcbus.transport import Frame, RecvLink

__all__ = ["Printer", "as_json", "follow"]


class _Output(Protocol):
    def __call__(self, message: Message) -> None: ...


def follow(
    link: "RecvLink",
    codec: "Codec",
    printer: "Printer",
    *,
    count: int | None,
    timeout: float | None,
    also: Callable[[], None] = lambda: None,
) -> NoReturn:
    """Print what comes until there were ``count`` messages, the channel ends, or somebody presses Ctrl-C.

    Nothing is taken while nobody reads the output any more, and between taking a message and printing it no signal ends
    this: what was taken is printed.

    Args:
        link: where messages come from.
        codec: rebuilds them.
        printer: where they go.
        count: None is without limit.
        timeout: seconds that each may take; None waits without limit. Without a ``count`` this is the end, if any came.
        also: called after each message.

    Raises:
        typer.Exit: always: with 0; 1 if too few came, or one could not be printed as it should; 130 after Ctrl-C.
        ChannelEmpty: nothing came in time.
    """
    left, seen = count, False
    with _Interrupts() as interrupts:
        while left is None or left > 0:
            try:
                frame = _take(link, Deadline(timeout), printer, interrupts)
            except ChannelEmpty:
                if count is None and seen:
                    break
                raise
            except EOFError:
                typer.echo("ipcbus: the channel was shut down", err=True)
                raise typer.Exit(1 if left else printer.code) from None
            message = printer.show(frame, codec)
            if message is not None and message.reply_to is not None:
                message.reply_to.refuse("it was received at a shell, which cannot answer")
            left = None if left is None else left - 1
            seen = True
            also()
    raise typer.Exit(printer.code)


def _take(link: "RecvLink", deadline: Deadline, printer: "Printer", interrupts: "_Interrupts") -> "Frame":
    poll = select.poll()
    poll.register(link.fileno(), select.POLLIN)
    poll.register(interrupts, select.POLLIN)
    if printer.fd is not None:
        poll.register(printer.fd, 0)  # only its end is told
    while True:
        if interrupts.signal:
            raise typer.Exit(128 + interrupts.signal)
        if printer.ended():
            raise typer.Exit(1)
        try:
            return link.recv(0)
        except ChannelEmpty:
            if deadline.expired:
                raise
        poll.poll(deadline.milliseconds())


class _Interrupts:
    """SIGINT and SIGTERM wait until what was taken is printed; the second of them does not."""

    def __init__(self) -> None:
        self.signal = 0
        self._bell = Wakeup()
        self._before: dict[int, Any] = {}

    def fileno(self) -> int:
        """Return what polls readable after a signal."""
        return self._bell.fileno()

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._bell.close()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        self._bell.set()


class Printer:
    """Prints messages to standard output.

    Args:
        as_json: one JSON document per line, instead of what Python shows.
        headers: whether a document has the headers in it, too.

    Attributes:
        fd: standard output's; None where it is not a file.
        code: what the command is to exit with.
    """

    def __init__(self, *, as_json: bool, headers: bool) -> None:
        self.code = 0
        self._headers = headers
        self._write: _Output = self._write_json if as_json else self._write_text
        try:
            self.fd: int | None = sys.stdout.fileno()
        except (OSError, AttributeError):
            self.fd = None
        if not as_json and sys.stdout.isatty():
            from rich.console import Console

            self._console = Console()
            self._write = self._write_pretty

    def ended(self) -> bool:
        """Tell whether nobody reads what is printed any more."""
        if self.fd is None:
            return False
        poll = select.poll()
        poll.register(self.fd, 0)
        return bool(poll.poll(0))

    def show(self, frame: "Frame", codec: "Codec") -> Message | None:
        """Print a message and return it; what cannot be rebuilt or printed is given as it came, for nobody else has it."""
        try:
            message = codec.decode_message(frame)
        except SerializationError as error:
            self._give_up(frame, str(error))
            return None
        try:
            self._write(message)
            sys.stdout.flush()
        except (OSError, KeyboardInterrupt) as error:
            self._give_up(frame, f"a message was received and could not be printed ({str(error) or 'interrupted'})")
            if self.fd is not None:
                os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), self.fd)  # what is left of it is not tried again
            raise typer.Exit(1) from error
        return message

    def _give_up(self, frame: "Frame", why: str) -> None:
        self.code = 1
        raw = base64.b64encode(b"".join(frame)).decode()
        typer.echo(f"ipcbus: {why}; this is the message as it travelled, in base64:\n{raw}", err=True)

    def _write_json(self, message: Message) -> None:
        body = as_json(message.body)
        sys.stdout.write(f'{{"headers": {as_json(dict(message.headers))}, "body": {body}}}\n' if self._headers else body + "\n")

    def _write_text(self, message: Message) -> None:
        text = _say(message.body) + _tail(message)
        sys.stdout.write(text.encode(sys.stdout.encoding or "utf-8", "backslashreplace").decode(sys.stdout.encoding or "utf-8"))
        sys.stdout.write("\n")

    def _write_pretty(self, message: Message) -> None:
        from rich.pretty import Pretty

        self._console.print(Pretty(message.body))
        if message.headers:
            self._console.print(_tail(message).strip(), style="dim", markup=False, highlight=False)


def as_json(value: object) -> str:
    """Return a value as JSON in one line; what JSON cannot hold is given as Python shows it."""
    try:
        return json.dumps(value, default=_say, allow_nan=False)
    except (TypeError, ValueError, RecursionError):  # a key, a number that is none, a circle, or too deep
        return json.dumps(_say(value))


def _tail(message: Message) -> str:
    return "".join(f"  {key}={value!r}" for key, value in message.headers.items())


def _say(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001  somebody's __repr__ may fail in any way, and the message is to be seen anyhow
        return object.__repr__(value)
