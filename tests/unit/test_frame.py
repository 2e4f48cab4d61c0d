"""The wire format: what is written is what is read, however it was cut, and damage is only ever a DecodeError."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipcbus import frame as wire
from ipcbus.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMIT = 1 << 24
KEY = b"0123456789abcdef"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
sections = st.builds(
    wire.Sections,
    headers=st.none() | st.dictionaries(texts, texts, max_size=3),
    route=st.none() | st.tuples(st.integers(0, 2**64 - 1), st.binary(max_size=40)),
    deadline=st.none() | st.floats(allow_nan=False),
    checksum=st.booleans(),
    key=st.none() | st.just(KEY),
    stamp=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
)
kinds = st.tuples(st.integers(1, 255), st.just("")) | st.tuples(st.just(0), st.text("abcxyz/.-+", min_size=1, max_size=255))
payloads = st.binary(max_size=64) | st.integers(wire.JOIN_LIMIT - 2, wire.JOIN_LIMIT + 2).map(bytes)
buffers = st.lists(st.binary(max_size=40), max_size=4)


def refusal(frame: bytes, key: bytes | None) -> DecodeError | None:
    try:
        wire.parse([frame], LIMIT, key)
    except DecodeError as error:
        return error
    return None


def cut(frame: Sequence[Any], at: list[int]) -> list[bytes]:
    """Join a frame and cut it elsewhere, but never inside its first buffer's sections."""
    joined = b"".join(frame)
    start = len(frame[0])
    places = sorted({start + place % (len(joined) - start + 1) for place in at})
    return [joined[a:b] for a, b in zip([0, *places], [*places, len(joined)], strict=True)]


def same(parsed: wire.Parsed, kind: tuple[int, str], payload: bytes, parts: list[bytes], given: wire.Sections) -> None:
    assert (parsed.serializer, parsed.content_type) == kind
    assert bytes(parsed.payload) == payload
    assert [bytes(part) for part in parsed.buffers] == parts
    assert dict(parsed.headers) == dict(given.headers or {})
    assert parsed.route == given.route
    assert parsed.deadline == given.deadline
    assert parsed.stamp == (given.stamp if given.key else None)


@given(kinds, payloads, buffers, sections, st.lists(st.integers(0, 10**6), max_size=4))
def test_round_trip_however_it_is_cut(
    kind: tuple[int, str], payload: bytes, parts: list[bytes], given: wire.Sections, at: list[int]
) -> None:
    frame = wire.encode(*kind, payload, parts, given)
    for form in (frame, [b"".join(frame)], [memoryview(bytearray(b"".join(frame)))], cut(frame, at)):
        same(wire.parse(form, LIMIT, given.key), kind, payload, parts, given)


@given(kinds, payloads, buffers, sections, st.data())
def test_damage_is_a_decode_error_or_a_frame(
    kind: tuple[int, str], payload: bytes, parts: list[bytes], given: wire.Sections, data: st.DataObject
) -> None:
    joined = bytearray(b"".join(wire.encode(*kind, payload, parts, given)))
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, min(len(joined) - 1, 120)))
        joined[where] = data.draw(st.integers(0, 255))
    damaged = bytes(joined[: data.draw(st.integers(0, len(joined)))])
    for key in (None, KEY):
        error = refusal(damaged, key)
        if error is not None:
            assert (error.size, error.head) == (len(damaged), damaged[:64])


@given(st.lists(st.binary(max_size=80), max_size=3))
def test_noise_is_a_decode_error_or_a_frame(frame: list[bytes]) -> None:
    for form in (frame, [bytes((wire.MAGIC, wire.VERSION)) + part for part in frame]):
        try:
            wire.parse(form, LIMIT)
        except DecodeError:
            pass


@given(payloads, buffers, sections, st.data())
def test_one_changed_bit_is_noticed_under_a_key(
    payload: bytes, parts: list[bytes], given: wire.Sections, data: st.DataObject
) -> None:
    given = wire.Sections(given.headers, given.route, given.deadline, given.checksum, KEY, given.stamp)
    joined = bytearray(b"".join(wire.encode(2, "", payload, parts, given)))
    joined[data.draw(st.integers(0, len(joined) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DecodeError):
        wire.parse([bytes(joined)], LIMIT, KEY)


class TestLayout:
    def test_plain_frame_is_four_bytes_and_the_payload(self) -> None:
        assert wire.encode(2, "", b"abc") == [b"\xb5\x01\x00\x02abc"]
        assert wire.head(2) == b"\xb5\x01\x00\x02"

    def test_large_payload_is_not_copied(self) -> None:
        payload = bytes(wire.JOIN_LIMIT + 1)
        head, data = wire.encode(2, "", payload)
        assert data is payload
        assert len(head) == 4

    def test_sections_stand_in_the_order_of_their_flags(self) -> None:
        given = wire.Sections(headers={"k": "v"}, route=(7, b"back"), deadline=1.5, checksum=True)
        (frame, buffer) = wire.encode(0, "a/b", b"pay", [b"load"], given)
        body = (
            bytes((0xB5, 1, 0x3F, 0))
            + b"\x03a/b"
            + struct.pack("<I", 10)
            + b'{"k": "v"}'
            + struct.pack("<QH", 7, 4)
            + b"back"
            + struct.pack("<d", 1.5)
            + struct.pack("<IQQ", 1, 3, 4)
        )
        assert bytes(frame) == body + struct.pack("<I", zlib.crc32(body + b"payload")) + b"pay"
        assert buffer == b"load"

    def test_views_are_measured_in_bytes(self) -> None:
        view = memoryview(struct.pack("<3I", 1, 2, 3)).cast("I")
        frame = wire.encode(2, "", b"x", [view])
        assert bytes(wire.parse(frame, LIMIT).buffers[0]) == view.tobytes()

    def test_what_no_frame_holds_is_refused_when_writing(self) -> None:
        for wrong in (
            wire.Sections(headers={"a": 1}),  # type: ignore[dict-item]  # the mistake that is tested
            wire.Sections(headers={1: "a"}),  # type: ignore[dict-item]  # as above
            wire.Sections(headers={"a": "\ud800"}),
            wire.Sections(route=(1, bytes(65_536))),
        ):
            with pytest.raises((TypeError, ValueError)):
                wire.encode(2, "", b"", (), wrong)
        with pytest.raises(ValueError, match="256 bytes"):
            wire.encode(0, "x" * 256, b"")
        with pytest.raises(ValueError, match="out-of-band"):
            wire.encode(2, "", b"", [b""] * (wire.MAX_BUFFERS + 1))


def made(flags: int, body: bytes, serializer: int = 2) -> list[bytes]:
    return [bytes((wire.MAGIC, wire.VERSION, flags, serializer)) + body]


class TestRefused:
    @pytest.mark.parametrize(
        ("frame", "why"),
        [
            ([], "0 bytes"),
            ([b""], "0 bytes"),
            ([b"\xb5\x01\x00"], "3 bytes"),
            ([b"GET / HTTP/1.1"], "byte 0x47"),
            ([b"\xb5\x02\x00\x02"], "version 2"),
            (made(0x80, b""), "unknown flags 0x80"),
            (made(0, b"", 0), "either a serializer id or a content type"),
            (made(wire.TYPE, b"\x03a/b", 2), "either a serializer id or a content type"),
            (made(wire.TYPE, b"\x00", 0), "either a serializer id or a content type"),
            (made(wire.TYPE, b"\x04a\n\x1bb", 0), "its content type has control characters"),
            (made(wire.TYPE, b"\x09a/b", 0), "ends behind"),
            (made(wire.HEADERS, struct.pack("<I", 2**32 - 1)), "ends behind"),
            (made(wire.HEADERS, b"\x02\x00\x00\x00[]"), "object of texts"),
            (made(wire.HEADERS, b"\x07\x00\x00\x00" + b'{"a":1}'), "object of texts"),
            (made(wire.HEADERS, struct.pack("<I", 200_000) + b"[" * 200_000), "cut short or damaged"),
            (made(wire.ROUTE, struct.pack("<QH", 1, 9) + b"short"), "ends behind"),
            (made(wire.DEADLINE, b"\x00"), "cut short"),
            (made(wire.CHECKSUM, b"\x00\x00\x00"), "end behind"),
            (made(wire.CHECKSUM, b"\x00\x00\x00\x00payload"), "checksum"),
            (made(wire.MAC, bytes(47)), "end behind"),
            (made(wire.BUFFERS, struct.pack("<I", wire.MAX_BUFFERS + 1)), "at most"),
            (made(wire.BUFFERS, struct.pack("<I", wire.MAX_BUFFERS)), "cut short"),
            (made(wire.BUFFERS, struct.pack("<IQQ", 1, 1, 2**63)), "max_message"),
            (made(wire.BUFFERS, struct.pack("<IQQ", 1, 1, 1) + b"abc"), "table says 2"),
        ],
    )
    def test_says_why(self, frame: list[bytes], why: str) -> None:
        with pytest.raises(DecodeError, match=why):
            wire.parse(frame, LIMIT)

    def test_claims_allocate_nothing(self) -> None:
        bombs = [
            made(wire.HEADERS, struct.pack("<I", 2**32 - 1) + b"{}"),
            made(wire.BUFFERS, struct.pack("<I", wire.MAX_BUFFERS)),
            made(wire.BUFFERS, struct.pack("<I", 2**32 - 1) + bytes(64)),
            made(wire.BUFFERS, struct.pack("<IQQQ", 2, 2**40, 2**40, 2**40)),
        ]
        tracemalloc.start()
        try:
            for bomb in bombs:
                with pytest.raises(DecodeError):
                    wire.parse(bomb, LIMIT)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()

    def test_headers_of_strangers_are_not_even_parsed(self) -> None:
        frame = made(wire.HEADERS | wire.MAC, b"\x02\x00\x00\x00[]" + bytes(48))
        with pytest.raises(DecodeError, match="wrong MAC"):
            wire.parse(frame, LIMIT, KEY)


class TestMac:
    def test_is_wanted_where_there_is_a_key(self) -> None:
        with pytest.raises(DecodeError, match="no MAC"):
            wire.parse(wire.encode(2, "", b"x"), LIMIT, KEY)

    def test_is_not_checked_without_one(self) -> None:
        frame = wire.encode(2, "", b"x", (), wire.Sections(key=KEY, stamp=(1, 2)))
        parsed = wire.parse(frame, LIMIT)
        assert bytes(parsed.payload) == b"x"
        assert parsed.stamp is None

    def test_of_another_key(self) -> None:
        frame = wire.encode(2, "", b"x", (), wire.Sections(key=KEY, stamp=(1, 2)))
        with pytest.raises(DecodeError, match="another key"):
            wire.parse(frame, LIMIT, KEY[::-1])
