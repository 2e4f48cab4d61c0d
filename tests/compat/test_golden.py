"""Frames of every version so far: they decode for ever, and the encoder of today still writes them byte for byte.

``golden.json`` holds each frame in hexadecimal, in one piece. A frame is never changed or removed there: a new wire format
gets a new version byte and new frames beside the old ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ipcbus import frame as wire
from ipcbus.codec import Codec
from ipcbus.serializers.protobuf import Protobuf

FRAMES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("golden.json").read_text(encoding="utf-8"))
KEY = b"golden key of 24 bytes.."


def sections(given: dict[str, Any]) -> wire.Sections:
    route = given.get("route")
    return wire.Sections(
        headers=given.get("headers"),
        route=(route[0], route[1].encode()) if route else None,
        deadline=given.get("deadline"),
        checksum=given.get("checksum", False),
        key=KEY if "stamp" in given else None,
        stamp=tuple(given.get("stamp", (0, 0))),
    )


@pytest.mark.parametrize("name", FRAMES)
def test_is_still_read(name: str) -> None:
    golden = FRAMES[name]
    parsed = wire.parse([bytes.fromhex(golden["frame"])], 1 << 20, KEY if "stamp" in golden else None)
    assert parsed.serializer == golden["serializer"]
    assert parsed.content_type == golden.get("content_type", "")
    assert bytes(parsed.payload).hex() == golden["payload"]
    assert [bytes(buffer).hex() for buffer in parsed.buffers] == golden.get("buffers", [])
    assert dict(parsed.headers) == golden.get("headers", {})
    assert parsed.route == sections(golden).route
    assert parsed.deadline == golden.get("deadline")
    assert parsed.stamp == (tuple(golden["stamp"]) if "stamp" in golden else None)


@pytest.mark.parametrize("name", FRAMES)
def test_is_still_written(name: str) -> None:
    golden = FRAMES[name]
    frame = wire.encode(
        golden["serializer"],
        golden.get("content_type", ""),
        bytes.fromhex(golden["payload"]),
        [bytes.fromhex(buffer) for buffer in golden.get("buffers", [])],
        sections(golden),
    )
    assert b"".join(frame).hex() == golden["frame"]


@pytest.mark.parametrize("name", [name for name, golden in FRAMES.items() if "object" in golden])
def test_still_means_the_same(name: str) -> None:
    golden = FRAMES[name]
    codec = Codec("pickle", None, private=True, max_message=1 << 20, key=KEY if "stamp" in golden else None)
    assert codec.decode([bytes.fromhex(golden["frame"])]) == golden["object"]


def test_buffers_are_given_to_the_serializer() -> None:
    codec = Codec("pickle", None, private=True, max_message=1 << 20)
    back = codec.decode([bytes.fromhex(FRAMES["pickle-with-buffers"]["frame"])])
    assert back == [bytearray(b"first"), bytearray(b"second")]


def test_protobuf() -> None:
    from google.protobuf import timestamp_pb2

    payload = bytes.fromhex(FRAMES["protobuf"]["payload"])
    assert Protobuf(private=False).loads(payload, ()) == timestamp_pb2.Timestamp(seconds=5)
    assert Protobuf(private=False).dumps(timestamp_pb2.Timestamp(seconds=5)) == (payload, ())


def test_every_section_has_a_golden_frame() -> None:
    seen = 0
    for golden in FRAMES.values():
        seen |= bytes.fromhex(golden["frame"])[2]
    assert seen == 0x7F
    assert {golden["serializer"] for golden in FRAMES.values()} >= {0, 1, 2, 3, 4, 5}
