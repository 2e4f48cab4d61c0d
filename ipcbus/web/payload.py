"""What WebSocket messages mean to a service: the codecs a service class names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ipcbus.errors import ConfigError, SerializerUnavailable
from ipcbus.options import nearest
from ipcbus.web.link import BINARY, TEXT

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BadPayload", "Codec", "codec"]

UNSUPPORTED_DATA = 1003
INVALID_DATA = 1007
REASON_BYTES = 123
"""Bytes of UTF-8 that a close frame has for a reason."""


class BadPayload(ValueError):
    """A client sent what the service's codec cannot read.

    Args:
        message: says so without a word of what was sent.
        code: the close code that says so.
        detail: where it is wrong, for the client itself.
    """

    def __init__(self, message: str, code: int, detail: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.detail = detail

    @property
    def reason(self) -> str:
        """The reason of the close frame, which has little room."""
        text = f"{self}: {self.detail}" if self.detail else str(self)
        return text.encode()[:REASON_BYTES].decode(errors="ignore")


class Codec(NamedTuple):
    """One way to read and write messages."""

    name: str
    decode: Callable[[str, bytes], Any]
    """Kind and bytes to a message; raises BadPayload."""
    encode: Callable[[Any], tuple[str, bytes]]
    """A message to kind and bytes; raises TypeError or ValueError for what it cannot express."""


def codec(name: str, message_type: Any = None) -> Codec:
    """Find a codec.

    Args:
        name: ``"json"`` (text frames), ``"text"`` (str), ``"bytes"`` (bytes, sent as binary, read from either kind),
            ``"msgpack"`` (binary frames), ``"protobuf"`` (binary frames) or ``"raw"`` (str for text, bytes for binary, both
            ways).
        message_type: what is read, for those that can check it (``json`` and ``msgpack``) or have to know (``protobuf``).

    Raises:
        ConfigError: there is no such codec, or it does not go with the type.
        SerializerUnavailable: it needs something that is not installed.
    """
    if name in _TYPED:
        return _TYPED[name](message_type)
    if name not in _MAKERS:
        raise ConfigError(f"no WebSocket codec is called {name!r}; {nearest(name, [*_TYPED, *_MAKERS])}")
    if message_type is not None:
        raise ConfigError(f"codec {name!r} has no message_type: its messages are what it says; use one of {', '.join(_TYPED)}")
    return _MAKERS[name]()


def _json(message_type: Any) -> Codec:
    msgspec = _msgspec("json")
    json = msgspec.json

    def encode(message: Any) -> tuple[str, bytes]:
        return TEXT, json.encode(message)

    return Codec(
        "json", _reader("JSON", TEXT, _decoder(json, message_type), msgspec.DecodeError, msgspec.ValidationError), encode
    )


def _msgpack(message_type: Any) -> Codec:
    msgspec = _msgspec("msgpack")
    msgpack = msgspec.msgpack

    def encode(message: Any) -> tuple[str, bytes]:
        return BINARY, msgpack.encode(message)

    return Codec(
        "msgpack",
        _reader("MessagePack", BINARY, _decoder(msgpack, message_type), msgspec.DecodeError, msgspec.ValidationError),
        encode,
    )


def _decoder(format_: Any, message_type: Any) -> Callable[[bytes], Any]:
    if message_type is None:
        return format_.decode  # type: ignore[no-any-return]  # of an optional module, untyped here
    try:
        return format_.Decoder(message_type).decode  # type: ignore[no-any-return]  # as above
    except TypeError as error:
        raise ConfigError(f"message_type = {message_type!r}: {error}") from error


def _protobuf(message_type: Any) -> Codec:
    try:
        from google.protobuf.message import DecodeError, Message
    except ImportError as error:
        raise SerializerUnavailable("codec 'protobuf' needs protobuf; run: pip install 'ipcbus[protobuf]'") from error
    if not (isinstance(message_type, type) and issubclass(message_type, Message)):
        raise ConfigError(f"codec 'protobuf' needs message_type = a message class, not {message_type!r}")

    def encode(message: Any) -> tuple[str, bytes]:
        if not isinstance(message, Message):
            raise TypeError(f"codec 'protobuf' sends protobuf messages, not {type(message).__qualname__}")
        return BINARY, message.SerializeToString()

    return Codec("protobuf", _reader("Protocol Buffers", BINARY, message_type.FromString, DecodeError), encode)


def _text() -> Codec:
    def encode(message: Any) -> tuple[str, bytes]:
        if not isinstance(message, str):
            raise TypeError(f"codec 'text' sends str, not {type(message).__qualname__}")
        return TEXT, message.encode()

    return Codec("text", _reader("text", TEXT, bytes.decode, UnicodeDecodeError), encode)


def _bytes() -> Codec:
    def encode(message: Any) -> tuple[str, bytes]:
        if not isinstance(message, (bytes, bytearray, memoryview)):
            raise TypeError(f"codec 'bytes' sends bytes, not {type(message).__qualname__}")
        return BINARY, bytes(message)

    return Codec("bytes", lambda _, data: data, encode)


def _raw() -> Codec:
    def decode(kind: str, data: bytes) -> str | bytes:
        return data.decode() if kind == TEXT else data

    def encode(message: Any) -> tuple[str, bytes]:
        if isinstance(message, str):
            return TEXT, message.encode()
        return binary.encode(message)

    binary = _bytes()
    return Codec("raw", decode, encode)


_TYPED: dict[str, Callable[[Any], Codec]] = {"json": _json, "msgpack": _msgpack, "protobuf": _protobuf}
_MAKERS: dict[str, Callable[[], Codec]] = {"text": _text, "bytes": _bytes, "raw": _raw}


def _reader(
    noun: str, wanted: str, loads: Callable[[bytes], Any], wrong: type[Exception], misfit: type[Exception] | tuple[()] = ()
) -> Callable[[str, bytes], Any]:
    frames = "text" if wanted == TEXT else "binary"

    def decode(kind: str, data: bytes) -> Any:
        if kind != wanted:
            raise BadPayload(f"{noun} comes in {frames} frames here", UNSUPPORTED_DATA)
        try:
            return loads(data)
        except misfit as error:
            raise BadPayload(f"{noun} that does not fit", INVALID_DATA, str(error)) from error
        except (wrong, ValueError, RecursionError) as error:
            raise BadPayload(f"not valid {noun}", INVALID_DATA) from error

    return decode


def _msgspec(name: str) -> Any:
    try:
        import msgspec.json
        import msgspec.msgpack
    except ImportError as error:
        raise SerializerUnavailable(f"codec {name!r} needs msgspec; run: pip install 'ipcbus[web]'") from error
    return msgspec
