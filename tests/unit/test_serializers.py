"""Every serializer brings back what it took, and says so when it does not take it."""

from __future__ import annotations

import datetime as dt
import math
import subprocess
import sys
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ipcbus
from ipcbus.codec import Codec

texts = st.text(st.characters(exclude_categories=["Cs"]))
whole = st.integers(-(2**63), 2**64 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)


def nested(leaves: Any, keys: Any) -> Any:
    return st.recursive(leaves, lambda s: st.lists(s, max_size=4) | st.dictionaries(keys, s, max_size=4), max_leaves=20)


json_like = nested(st.none() | st.booleans() | st.integers() | finite | texts, texts)
utc = st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30), timezones=st.just(dt.UTC))  # noqa: DTZ001  bounds of the strategy
msgpack_like = nested(
    st.none() | st.booleans() | whole | st.floats(allow_nan=False) | texts | st.binary() | utc, texts | whole | st.binary()
)
hashable = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.uuids()
anything = st.recursive(
    hashable | st.complex_numbers(allow_nan=False) | st.binary().map(bytearray) | st.datetimes() | st.decimals(allow_nan=False),
    lambda s: (
        st.lists(s, max_size=4)
        | st.tuples(s, s)
        | st.dictionaries(hashable, s, max_size=4)
        | st.frozensets(hashable, max_size=4)
        | st.sets(hashable, max_size=4)
    ),
    max_leaves=20,
)


def codec(name: str, *, private: bool = True) -> Codec:
    return Codec(name, None, private=private, max_message=1 << 24)


CODECS = {name: codec(name) for name in ("raw", "pickle", "cloudpickle", "json", "msgpack")}


def check(name: str, obj: Any) -> None:
    one = CODECS[name]
    frame = one.encode(obj)
    for form in (frame, [b"".join(frame)], [memoryview(bytearray(b"".join(frame)))]):
        back = one.decode(form)
        assert back == obj
        assert type(back) is type(obj)


@given(st.binary())
def test_raw(obj: bytes) -> None:
    check("raw", obj)


@given(anything)
def test_pickle(obj: Any) -> None:
    check("pickle", obj)


@given(anything)
def test_cloudpickle(obj: Any) -> None:
    check("cloudpickle", obj)


@given(json_like)
def test_json(obj: Any) -> None:
    check("json", obj)


@given(msgpack_like)
def test_msgpack(obj: Any) -> None:
    check("msgpack", obj)


@pytest.mark.parametrize("name", ["raw", "json", "msgpack", "protobuf"])
@given(st.binary(max_size=200))
def test_safe_serializers_survive_noise(name: str, noise: bytes) -> None:
    try:
        codec(name, private=False).decode(
            [bytes((0xB5, 1, 0, {"raw": 1, "json": 3, "msgpack": 4, "protobuf": 5}[name])) + noise]
        )
    except ipcbus.DecodeError:
        pass


class TestRaw:
    @pytest.mark.parametrize("obj", [bytearray(b"abc"), memoryview(b"abc"), memoryview(b"xaxbxcx")[1::2]])
    def test_arrives_as_bytes(self, obj: Any) -> None:
        assert CODECS["raw"].decode(CODECS["raw"].encode(obj)) == b"abc"

    def test_is_a_snapshot(self) -> None:
        obj = bytearray(b"abc")
        frame = CODECS["raw"].encode(obj)
        obj[0] = 0
        assert CODECS["raw"].decode(frame) == b"abc"

    def test_takes_nothing_else(self) -> None:
        with pytest.raises(ipcbus.EncodeError, match="takes bytes, not str"):
            CODECS["raw"].encode("text")


class TestJson:
    @pytest.mark.parametrize("obj", [math.nan, math.inf, {1, 2}, b"x", object(), "\ud800", {(1, 2): 3}, 1j])
    def test_refuses_what_json_has_not(self, obj: Any) -> None:
        with pytest.raises(ipcbus.EncodeError, match="json cannot encode"):
            CODECS["json"].encode(obj)

    def test_refuses_circles_and_depth(self) -> None:
        circle: list[Any] = []
        circle.append(circle)
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]
        for obj in (circle, deep):
            with pytest.raises(ipcbus.EncodeError):
                CODECS["json"].encode(obj)

    @pytest.mark.parametrize("text", [b"", b"NaN", b"[Infinity]", b"{", b"1 2", b"\xff", b"[" * 100_000, b"1" * 10_000])
    def test_refuses_what_is_not_json(self, text: bytes) -> None:
        with pytest.raises(ipcbus.DecodeError):
            CODECS["json"].decode([b"\xb5\x01\x00\x03" + text])

    def test_says_what_changes(self) -> None:
        one = CODECS["json"]
        assert one.decode(one.encode({1: (2, 3), None: True})) == {"1": [2, 3], "null": True}

    def test_is_written_plainly(self) -> None:
        assert CODECS["json"].encode({"ü": [1, None]})[0] == b'\xb5\x01\x00\x03{"\xc3\xbc":[1,null]}'


class TestMsgPack:
    @pytest.mark.parametrize("obj", [2**64, object(), 1j, "\ud800"])
    def test_refuses(self, obj: Any) -> None:
        with pytest.raises(ipcbus.EncodeError, match="msgpack cannot encode"):
            CODECS["msgpack"].encode(obj)

    def test_says_what_changes(self) -> None:
        one = CODECS["msgpack"]
        number = uuid.UUID(int=5)
        assert one.decode(one.encode([(1,), {2}, number])) == [[1], [2], str(number)]

    @pytest.mark.parametrize(
        "bomb", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 100_000]
    )
    def test_claims_allocate_nothing(self, bomb: bytes) -> None:
        code = (
            "import resource, sys\n"
            "import ipcbus\n"
            "from ipcbus.codec import Codec\n"
            "codec = Codec('msgpack', None, private=False, max_message=1 << 24)\n"
            "codec.encode(1)\n"
            "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
            "try: codec.decode([b'\\xb5\\x01\\x00\\x04' + sys.stdin.buffer.read()])\n"
            "except ipcbus.DecodeError as error: sys.exit(isinstance(error.__cause__, MemoryError))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], input=bomb, capture_output=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr


class TestPickle:
    def test_memory_of_a_large_message_does_not_slow_the_next_ones(self) -> None:
        one = codec("pickle")
        one.encode([str(n) for n in range(50_000)])
        assert one._default._idle == []  # type: ignore[attr-defined]  # the pickler that grew is gone
        one.encode(1)
        assert len(one._default._idle) == 1  # type: ignore[attr-defined]  # and a small one is kept

    @pytest.mark.parametrize("name", ["json", "msgpack", "raw"])
    def test_out_of_band_buffers_are_for_pickles(self, name: str) -> None:
        from ipcbus import frame as wire

        number = {"raw": 1, "json": 3, "msgpack": 4}[name]
        with pytest.raises(ipcbus.DecodeError, match="out-of-band"):
            CODECS[name].decode(wire.encode(number, "", b"1", [b"x"]))
