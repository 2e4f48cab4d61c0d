"""URLs and typed options: how text becomes configuration, with errors that name the key and the nearest right one."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union
from urllib.parse import quote, unquote

from ipcbus.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["UNIT", "URL", "build", "is_scheme", "nearest", "parse_url", "rate"]

T = TypeVar("T")

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_URL = re.compile(rf"(?P<scheme>{_SCHEME.pattern}):(?P<address>[^?]*)(?:\?(?P<query>.*))?", re.IGNORECASE)
_SIZE = re.compile(r"(?P<number>-?\d{1,18})\s*(?P<unit>[KMG]i?B?|B)?", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
UNIT = "unit"
"""Under which a field's metadata says what a float counts; one that says nothing counts seconds."""
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclasses.dataclass(frozen=True, slots=True)
class URL:
    """A channel's URL, taken apart: ``scheme:address?options``."""

    scheme: str
    address: str
    options: Mapping[str, str]

    def __str__(self) -> str:
        query = "&".join(f"{quote(key)}={quote(value, safe='/:,')}" for key, value in self.options.items())
        return f"{self.scheme}:{self.address}" + (f"?{query}" if query else "")


def parse_url(text: str) -> URL:
    """Take a URL apart.

    Args:
        text: ``scheme:``, ``scheme:address``, ``scheme://host:port``, each with ``?key=value&key=value``. A bare
            ``scheme`` is understood as ``scheme:``. Keys and values may hold percent escapes; a plus is a plus.

    Raises:
        ConfigError: the text is no URL, or an option is given twice or without a value.
    """
    if not isinstance(text, str):  # as of a configuration, or a channel, which would be received from by what follows
        raise ConfigError(f"a channel is opened by a text such as 'pipe:', not by {text!r}")
    match = _URL.fullmatch(text if ":" in text or not text else text + ":")
    if match is None:
        raise ConfigError(f"{text!r} is not a channel URL; write 'pipe:', 'queue:?capacity=100' or 'zmq+tcp://host:port'")
    options: dict[str, str] = {}
    for pair in match["query"].split("&") if match["query"] else ():
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise ConfigError(f"{text!r}: the options after '?' must read key=value&key=value")
        try:
            key = unquote(name, errors="strict")
            if key in options:
                raise ConfigError(f"{text!r}: option {key!r} is given twice")
            options[key] = unquote(value, errors="strict")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{text!r}: the escapes in {pair!r} are not UTF-8") from error
    return URL(match["scheme"].lower(), match["address"], types.MappingProxyType(options))


def is_scheme(text: str) -> bool:
    """Tell whether a text is a scheme as ``parse_url`` returns one: in small letters."""
    return _SCHEME.fullmatch(text) is not None


def nearest(word: str, known: Iterable[str]) -> str:
    """Say ``did you mean 'x'?`` when something known is close to ``word``, else list what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}" if known else "nothing is known here"


def rate(default: float, what: str) -> Any:
    """Declare an option that says how much of something there is a second.

    Args:
        default: its value where nothing is said.
        what: what is counted, in the plural.
    """
    return dataclasses.field(default=default, metadata={UNIT: f"{what} a second"})


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make a frozen dataclass of options from text or TOML values.

    Strings are converted to the field's type (``"100"`` to int, ``"64KiB"`` to int, ``"yes"`` to bool, ``"a,b"`` to a
    tuple); a value of another type must fit the field as it is. A field that is itself a dataclass takes a mapping.

    Args:
        cls: a dataclass whose annotations are ``bool``, ``int``, ``float``, ``str``, ``Literal``, ``tuple[str, ...]``,
            ``dict[str, X]``, another such dataclass, or one of these ``| None``.
        values: the keys and values given.
        where: what is being configured, for the error message.

    Raises:
        ConfigError: a key is unknown, is missing, or its value does not fit.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]  # T is a dataclass, which typing cannot say
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}; {nearest(key, fields)}")
    made = {}
    for name, field in fields.items():
        if name in values:
            made[name] = _convert(values[name], hints[name], f"{where}: {name}", field.metadata.get(UNIT, "seconds"))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: {name!r} is required")
    try:
        return cls(**made)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _convert(value: Any, hint: Any, where: str, unit: str = "seconds") -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, Union):
        if value is None and type(None) in arguments:
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)), where, unit)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{where} must be one of {', '.join(map(repr, arguments))}, not {value!r}")
    if origin is tuple:
        items = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise ConfigError(f"{where} must be a list, not {value!r}")
        return tuple(_convert(item, arguments[0], where) for item in items)
    if origin is dict:
        if not hasattr(value, "items"):
            raise ConfigError(f"{where} must be a table, not {value!r}")
        return {key: _convert(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]  # is_dataclass cannot tell mypy that this one is a class
            return value
        if not hasattr(value, "items"):
            raise ConfigError(f"{where} must be a table, not {value!r}")
        return build(hint, value, where)  # type: ignore[arg-type]  # as above
    return _scalar(value, hint, where, unit)


def _scalar(value: Any, hint: Any, where: str, unit: str) -> Any:
    if hint is float and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    elif hint is Any or (isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool)):
        return value
    if isinstance(value, str):
        text = value.strip().lower()
        if hint is bool and text in _BOOLEANS:
            return _BOOLEANS[text]
        if hint is int and (match := _SIZE.fullmatch(text)):
            return int(match["number"]) * _UNITS[(match["unit"] or "")[:1]]
    names = {bool: "true or false", int: "a whole number", float: f"a number of {unit}", str: "a text"}
    raise ConfigError(f"{where} must be {names.get(hint, getattr(hint, '__name__', hint))}, not {value!r}")
