"""The codec: which serializer, what is accepted, what is refused, and what strangers cannot do."""

from __future__ import annotations

import collections
import copy
import functools
import os
import pickle
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import struct_pb2

import ipcbus
from ipcbus import frame as wire
from ipcbus.codec import Codec
from ipcbus.message import Message
from ipcbus.serializers.base import Serializer

from .rig import Amid

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEY = b"0123456789abcdef"
GAPS = memoryview(bytes(6))[::2], ()
COPIES = (copy.copy, copy.deepcopy, lambda message: pickle.loads(pickle.dumps(message)))
PICKLE_ID = 2


def make(serializer: str = "auto", accept: tuple[str, ...] | None = None, **more: Any) -> Codec:
    return Codec(serializer, accept, **{"private": True, "max_message": 1 << 20, **more})


@dataclass(eq=False)
class Holder:
    it: Any


class Endless(list[Any]):
    """It holds itself."""

    def __init__(self) -> None:
        super().__init__([self])


class Forgetful(Exception):
    def __init__(self, code: int, _line: int) -> None:
        super().__init__(code)


class TestAuto:
    @pytest.mark.parametrize(
        ("obj", "content_type"),
        [
            (b"bytes", "application/octet-stream"),
            (b"", "application/octet-stream"),
            (bytearray(b"x"), "application/x-python-pickle"),
            ({"a": (1, None)}, "application/x-python-pickle"),
            (None, "application/x-python-pickle"),
            (struct_pb2.Value(bool_value=True), "application/x-protobuf"),
        ],
    )
    def test_chooses_by_type(self, obj: Any, content_type: str) -> None:
        codec = make()
        message = codec.decode_message(codec.encode(obj))
        assert message.content_type == content_type
        assert message.body == obj
        assert type(message.body) is type(obj)

    @pytest.mark.parametrize(
        ("more", "default"),
        [
            ({}, "pickle"),
            ({"private": False}, "msgpack"),
            ({"private": False, "key": KEY}, "pickle"),
            ({"accept": ("json", "raw")}, "json"),
            ({"accept": ("protobuf",)}, "protobuf"),
            ({"accept": ("json", "pickle")}, "pickle"),
            ({"private": False, "accept": ("json", "msgpack")}, "msgpack"),
        ],
    )
    def test_default(self, more: dict[str, Any], default: str) -> None:
        assert make(**more).default == default

    def test_default_without_msgspec(self) -> None:
        code = "import sys; sys.modules['msgspec'] = None\nfrom ipcbus.codec import Codec\n"
        code += "print(Codec('auto', None, private=False, max_message=99).default)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
        assert done.stdout == "json\n"

    def test_sends_nothing_that_is_not_accepted(self) -> None:
        codec = make(accept=("pickle",))
        for obj in (b"x", struct_pb2.Value(bool_value=True)):
            message = codec.decode_message(codec.encode(obj))
            assert message.body == obj
            assert message.content_type == "application/x-python-pickle"

    def test_memory_for_types_is_bounded(self) -> None:
        codec = make()
        for n in range(5000):
            with pytest.raises(ipcbus.EncodeError):
                codec.encode(collections.namedtuple("Local", "x")(n))  # noqa: PYI024  made and thrown away
        assert len(codec._by_type) <= 4096
        assert codec.decode(codec.encode([1])) == [1]


class TestFrames:
    def test_small_message_costs_four_bytes(self) -> None:
        (frame,) = make().encode(b"abc")
        assert frame == b"\xb5\x01\x00\x01abc"

    def test_headers(self) -> None:
        codec = make()
        message = codec.decode_message(codec.encode(1, {"a": "ü"}))
        assert dict(message.headers) == {"a": "ü"}
        with pytest.raises(TypeError):
            message.headers["a"] = "b"  # type: ignore[index]  # the mistake that is tested

    @pytest.mark.parametrize("headers", [{"a": 1}, {1: "a"}, {"a": "\ud800"}])
    def test_headers_that_are_no_texts(self, headers: Any) -> None:
        with pytest.raises(ipcbus.EncodeError, match="nothing was sent"):
            make().encode(1, headers)

    def test_message_reports_its_size(self) -> None:
        codec = make()
        frame = codec.encode("x" * 40_000)
        assert codec.decode_message(frame).size == sum(map(len, frame))

    @pytest.mark.parametrize("form", [bytes, bytearray, memoryview, lambda b: memoryview(bytearray(b))])
    @pytest.mark.parametrize("obj", [{"a": 1}, "x" * 5000, b"raw"])
    def test_any_kind_of_buffer(self, form: Any, obj: Any) -> None:
        codec = make()
        frame = [form(b"".join(codec.encode(obj)))]
        for _ in range(2):  # the first of a kind goes the long way
            assert codec.decode(frame) == obj

    @pytest.mark.parametrize("frame", [[], [b""], [b"\xb5\x01\x00"], [b"\xb5\x01\x00\x00"], [b"junk junk"]])
    def test_junk(self, frame: list[bytes]) -> None:
        codec = make()
        with pytest.raises(ipcbus.DecodeError):
            codec.decode(frame)
        assert codec.decode(codec.encode(1)) == 1

    @pytest.mark.parametrize("size", [100, 200, 40_000])
    def test_max_message_counts_the_whole_frame(self, size: int) -> None:
        codec = make(max_message=size)
        codec.encode(bytes(size - 4))
        with pytest.raises(ipcbus.MessageTooLarge) as caught:
            codec.encode(bytes(size - 3))
        assert (caught.value.size, caught.value.limit) == (size + 1, size)
        with pytest.raises(ipcbus.MessageTooLarge):
            codec.encode(bytes(size - 4), {"a": "b"})


@pytest.mark.parametrize("again", COPIES, ids=["copy", "deepcopy", "pickle"])
def test_a_message_can_be_copied_and_pickled(again: Callable[[Message], Message]) -> None:
    message = Message([1], MappingProxyType({"a": "b"}), "text/x-any", 7, 2.5)
    other = again(message)
    assert other == message
    assert type(other.headers) is MappingProxyType
    assert other.body is message.body or again is not copy.copy
    assert again(Message(None)).headers == {}


class TestFailures:
    def test_encode_error_leaves_things_usable(self) -> None:
        codec = make()
        shared = ["same"]
        for _ in range(3):
            with pytest.raises(ipcbus.EncodeError) as caught:
                codec.encode([shared, threading.Lock()])
            assert isinstance(caught.value.__cause__, TypeError)
            assert codec.decode(codec.encode([shared, shared])) == [shared, shared]

    def test_culprits_are_named(self) -> None:
        with pytest.raises(ipcbus.EncodeError) as caught:
            make().encode({"job": [1, threading.Lock()]})
        (culprit,) = caught.value.culprits
        assert "['job'][1]" in culprit.path

    def test_reason_of_a_reducer_is_told(self) -> None:
        handler = __import__("logging").NullHandler()
        with pytest.raises(ipcbus.EncodeError, match="its handlers are those") as caught:
            make().encode({"h": handler})
        assert "['h']" in str(caught.value)

    def test_object_that_only_pickles(self) -> None:
        codec = make()
        with pytest.raises(ipcbus.DecodeError, match=r"OnlyPickles.*message was dropped") as caught:
            codec.decode(codec.encode(OnlyPickles()))
        assert caught.value.content_type == "application/x-python-pickle"
        assert caught.value.head.startswith(b"\x80\x05")
        assert codec.decode(codec.encode(1)) == 1

    def test_code_that_raises_while_pickling(self) -> None:
        with pytest.raises(ipcbus.EncodeError) as caught:
            make().encode(Raises())
        assert isinstance(caught.value.__cause__, ZeroDivisionError)

    def test_threads_share_a_codec(self) -> None:
        codec = make()
        wrong: list[Any] = []

        def work(n: int) -> None:
            for i in range(300):
                obj = {"n": n, "i": i, "nested": [[n] * 5, str(i)]}
                if codec.decode(codec.encode(obj)) != obj:
                    wrong.append(obj)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not wrong

    def test_pickling_inside_pickling(self) -> None:
        codec = make()
        inner = codec.decode(codec.encode([Nested(codec), "outer"]))
        assert inner[1] == "outer"
        assert codec.decode([inner[0]]) == [1, 2]

    @pytest.mark.parametrize(
        ("serializer", "obj", "said"),
        [
            ("json", {"a": [1, {"b": {2}}]}, r"^obj\['a'\]\[1\]\['b'\]: json cannot encode set: TypeError"),
            ("json", [1, Holder(threading.Lock())], r"^obj\[1\]: json cannot encode Holder: TypeError: Object"),
            ("json", {"a": {(1, 2): 3}}, r"^obj\['a'\]: json cannot encode dict: TypeError: keys must"),
            ("json", [Endless()], r"^obj\[0\]: json .*: ValueError: Circular"),
            ("json", threading.Lock(), r"^json cannot encode lock: "),
            ("msgpack", [{"a": 1 << 64}], r"^obj\[0\]\['a'\]: msgpack cannot encode int: OverflowError"),
            ("msgpack", [Holder([1j])], r"^obj\[0\]\.it\[0\]: msgpack cannot encode complex: TypeError"),
            ("cloudpickle", [Holder({"a": threading.Lock()})], r"^obj\[0\]\.it\['a'\]: cloudpickle .* lock: TypeError"),
            ("cloudpickle", ({1, Holder(1)}, [], (x for x in ())), r"^obj\[2\]: cloudpickle .* generator: TypeError"),
            ("raw", [b"x"], r"raw cannot encode list: TypeError"),
            ("protobuf", {"a": 1}, r"protobuf cannot encode dict: TypeError"),
        ],
    )
    def test_the_part_that_another_serializer_refuses_is_named(self, serializer: str, obj: Any, said: str) -> None:
        with pytest.raises(ipcbus.EncodeError, match=said) as caught:
            make(serializer).encode(obj)
        assert len(caught.value.culprits) == 1

    @pytest.mark.parametrize("serializer", ["json", "msgpack", "cloudpickle"])
    def test_what_is_nested_too_deep_for_another_serializer_says_so(self, serializer: str) -> None:
        deep: list[Any] = []
        for _ in range(20_000):
            deep = [deep]
        with pytest.raises(ipcbus.EncodeError, match=rf"{serializer} cannot encode list: .*recursion"):
            make(serializer).encode(deep)

    @pytest.mark.parametrize("obj", [{"result": Forgetful(1, 2)}, Forgetful(1, 2)])
    @pytest.mark.parametrize("serializer", ["pickle", "cloudpickle"])
    def test_what_pickles_and_cannot_be_rebuilt_says_what_to_do(self, obj: Any, serializer: str) -> None:
        codec = make(serializer)
        said = r"missing 1 required positional argument.*the message was dropped -> give it a __reduce__"
        for _ in range(2):  # the first of its kind, and the next
            with pytest.raises(ipcbus.DecodeError, match=said):
                codec.decode(codec.encode(obj))


class OnlyPickles:
    def __reduce__(self) -> Any:
        return _rebuild_fails, ()


def _rebuild_fails() -> Any:
    raise RuntimeError("OnlyPickles cannot be rebuilt")


class Raises:
    def __reduce__(self) -> Any:
        raise ZeroDivisionError


class Nested:
    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def __reduce__(self) -> Any:
        return bytes, (b"".join(self.codec.encode([1, 2])),)


class Canary:
    """Writes a file when a pickle of it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


class TestStrangers:
    """Pickle bytes reach every kind of receiver that must refuse them; loading one would leave a trace on disk."""

    @pytest.fixture
    def canary(self, tmp_path: Path) -> Any:
        path = tmp_path / "fired"
        yield pickle.dumps(Canary(path), 5)
        assert not path.exists()

    def frames(self, canary: bytes) -> list[list[Any]]:
        return [
            wire.encode(PICKLE_ID, "", canary),
            wire.encode(0, "application/x-python-pickle", canary),
            wire.encode(0, "application/x-python-cloudpickle", canary),
            wire.encode(PICKLE_ID, "", canary, [b"x" * 10]),
            wire.encode(PICKLE_ID, "", canary, (), wire.Sections(headers={"a": "b"}, checksum=True)),
        ]

    @pytest.mark.parametrize(
        "more",
        [
            {"private": False},
            {"private": False, "serializer": "json"},
            {"private": False, "serializer": "raw"},
            {"private": False, "serializer": "protobuf"},
            {"private": False, "accept": ("json", "msgpack")},
            {"private": True, "serializer": "json", "accept": ("json",)},
            {"private": True, "accept": ("protobuf", "raw")},
            {"private": True, "accept": ("msgpack",), "checksum": True},
            {"private": False, "key": KEY, "accept": ("json",)},
        ],
    )
    def test_nobody_else_loads_a_pickle(self, canary: bytes, more: dict[str, Any]) -> None:
        codec = make(**more)
        for frame in self.frames(canary):
            for decode in (codec.decode, codec.decode_message):
                with pytest.raises((ipcbus.ContentRefused, ipcbus.DecodeError)):
                    decode(frame)

    def test_receiver_with_a_key_wants_the_mac_before_it_loads(self, canary: bytes) -> None:
        codec = make("pickle", private=False, key=KEY)
        for frame in self.frames(canary):
            with pytest.raises(ipcbus.DecodeError, match="no MAC"):
                codec.decode(frame)
        forged = wire.encode(PICKLE_ID, "", canary, (), wire.Sections(key=KEY[::-1], stamp=(1, 1)))
        with pytest.raises(ipcbus.DecodeError, match="wrong MAC"):
            codec.decode(forged)

    def test_the_canary_sings_where_it_may(self, tmp_path: Path) -> None:
        # The proof that the tests above can fail.
        make().decode(wire.encode(PICKLE_ID, "", pickle.dumps(Canary(tmp_path / "fired"), 5)))
        assert (tmp_path / "fired").exists()

    @pytest.mark.parametrize("unsafe", ["pickle", "cloudpickle"])
    @pytest.mark.parametrize("role", ["serializer", "accept"])
    def test_asking_for_it_is_an_error(self, unsafe: str, role: str) -> None:
        wish: dict[str, Any] = {"serializer": unsafe} if role == "serializer" else {"accept": ("json", unsafe)}
        with pytest.raises(ipcbus.InsecureConfiguration, match="key_file=PATH"):
            make(**wish, private=False)
        make(**wish, private=False, key=KEY)
        make(**wish, private=True)

    def test_refusal_says_what_was_sent_and_what_is_accepted(self) -> None:
        frame = make("json").encode(1)
        with pytest.raises(ipcbus.ContentRefused, match=r"application/json.*accept=msgpack, raw") as caught:
            make(accept=("raw", "msgpack")).decode(frame)
        assert caught.value.content_type == "application/json"

    @pytest.mark.parametrize("frame", [made for n in (31, 32, 255) for made in [wire.encode(n, "", b"")]])
    def test_unknown_ids(self, frame: Any) -> None:
        with pytest.raises(ipcbus.ContentRefused, match="no installed serializer"):
            make().decode(frame)

    def test_content_type_by_name_from_a_program_that_knows_no_ids(self) -> None:
        assert make(private=False).decode(wire.encode(0, "application/json", b"[1]")) == [1]


class TestKeys:
    def pair(self) -> tuple[Codec, Codec]:
        return make(key=KEY), make(key=KEY)

    def test_both_ends_agree(self) -> None:
        sender, receiver = self.pair()
        for obj in (b"raw", {"a": 1}, "x" * 50_000):
            assert receiver.decode(sender.encode(obj)) == obj
            assert receiver.decode([b"".join(sender.encode(obj))]) == obj

    def test_wrong_key(self) -> None:
        with pytest.raises(ipcbus.DecodeError, match="wrong MAC"):
            make(key=KEY).decode(make(key=KEY[::-1]).encode(1))

    def test_missing(self) -> None:
        with pytest.raises(ipcbus.DecodeError, match="no MAC"):
            make(key=KEY).decode(make().encode(1))

    @pytest.mark.parametrize("at", range(0, 60, 7))
    def test_tampered(self, at: int) -> None:
        sender, receiver = self.pair()
        joined = bytearray(b"".join(sender.encode({"a": 1})))
        joined[at] ^= 1
        with pytest.raises(ipcbus.DecodeError):
            receiver.decode([bytes(joined)])

    def test_replayed(self) -> None:
        sender, receiver = self.pair()
        frames = [sender.encode(n) for n in range(3)]
        assert [receiver.decode(frame) for frame in frames] == [0, 1, 2]
        for frame in frames:
            with pytest.raises(ipcbus.DecodeError, match="replay"):
                receiver.decode(frame)
        assert receiver.decode(sender.encode(3)) == 3

    @pytest.mark.timeout(20)
    def test_a_signal_handler_receives_amid_a_look_for_replays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sender, receiver = self.pair()
        frames = [sender.encode(n) for n in range(2)]
        got: list[int] = []
        monkeypatch.setattr(
            receiver, "_seen_lock", Amid(receiver, "_seen_lock", lambda: got.append(receiver.decode(frames[1])))
        )
        got.append(receiver.decode(frames[0]))
        assert got == [1, 0]
        for frame in frames:
            with pytest.raises(ipcbus.DecodeError, match="replay"):
                receiver.decode(frame)

    def test_threads_of_a_sender_overtake_each_other(self) -> None:
        sender, receiver = self.pair()
        frames = [sender.encode(n) for n in range(6)]
        order = [3, 0, 5, 4, 1, 2]
        assert [receiver.decode(frames[n]) for n in order] == order
        for frame in frames:
            with pytest.raises(ipcbus.DecodeError, match="replay"):
                receiver.decode(frame)

    def test_far_too_late(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ipcbus.codec._WINDOW", 1024)
        sender, receiver = self.pair()
        old, *_, new = [sender.encode(n) for n in range(1100)]
        assert receiver.decode(new) == 1099
        with pytest.raises(ipcbus.DecodeError, match="replay"):
            receiver.decode(old)

    def test_forked_child_is_another_sender(self) -> None:
        sender, receiver = self.pair()
        first = sender.encode(1)
        sender.after_fork()
        assert receiver.decode(sender.encode(2)) == 2
        assert receiver.decode(first) == 1

    def test_key_stays_out_of_frames(self) -> None:
        assert KEY not in b"".join(make(key=KEY).encode({"a": 1}))


class TestChecksum:
    def test_damage_is_noticed(self) -> None:
        codec = make(checksum=True)
        frame = bytearray(b"".join(codec.encode("text")))
        assert codec.decode([bytes(frame)]) == "text"
        frame[-2] ^= 4
        with pytest.raises(ipcbus.DecodeError, match="checksum"):
            codec.decode([bytes(frame)])

    def test_is_checked_by_receivers_that_do_not_send_one(self) -> None:
        frame = bytearray(b"".join(make(checksum=True).encode("text")))
        frame[-2] ^= 4
        with pytest.raises(ipcbus.DecodeError, match="checksum"):
            make().decode([bytes(frame)])


class Reverse(Serializer):
    name = "reverse"
    content_type = "application/x-reverse"

    def dumps(self, obj: Any) -> Any:
        return memoryview(obj.encode()[::-1]), ()

    def loads(self, payload: Any, buffers: Any) -> Any:
        return bytes(payload)[::-1].decode()


class TestOwnSerializer:
    @pytest.fixture(autouse=True)
    def registered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(ipcbus.serializers.registry._things, "reverse", Reverse)

    @pytest.mark.parametrize("text", ["", "abc", "x" * 20_000])
    def test_is_named_by_its_content_type(self, text: str) -> None:
        codec = make("reverse")
        frame = codec.encode(text)
        assert frame[0][3] == 0
        assert make().decode(frame) == text
        assert make().decode([b"".join(frame)]) == text

    def test_its_errors_are_encode_errors(self) -> None:
        with pytest.raises(ipcbus.EncodeError, match=r"reverse cannot encode int.*nothing was sent"):
            make("reverse").encode(1)

    def test_an_id_that_two_have_is_told_and_not_guessed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("first", "second"):
            kind = type(name, (Reverse,), {"name": name, "content_type": f"x/{name}", "id": 77})
            monkeypatch.setitem(ipcbus.serializers.registry._things, name, kind)
        frame = make("second").encode("abc")
        with pytest.raises(ipcbus.ContentRefused, match=r"serializer id 77 is that of first and second here; name in accept= "):
            make().decode(frame)
        assert make(accept=("pickle", "second")).decode(frame) == "abc"
        assert make("second").decode(frame) == "abc"

    def test_their_kind_is_named_because_their_text_may_say_little(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Reverse, "dumps", lambda _self, obj: obj["name"])
        with pytest.raises(ipcbus.EncodeError, match=r"reverse cannot encode dict: KeyError: 'name'; nothing was sent"):
            make("reverse").encode({})

    def test_an_error_that_cannot_say_what_it_is_is_a_decode_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Mute(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no words")

        def refuse(_self: Reverse, _payload: Any, _buffers: Any) -> Any:
            raise Mute

        monkeypatch.setattr(Reverse, "loads", refuse)
        with pytest.raises(ipcbus.DecodeError, match="cannot be rebuilt in this process: Mute; the message was dropped"):
            make("reverse").decode(make("reverse").encode("abc"))

    @pytest.mark.parametrize("made", [b"bare", (None, ()), ("text", ()), (b"x", None), (b"x", ["text"]), ([1], ())])
    def test_what_is_no_payload_with_buffers_is_one_too(self, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Reverse, "dumps", lambda _self, _obj: made)
        with pytest.raises(ipcbus.EncodeError, match="nothing was sent"):
            make("reverse").encode("abc")

    @pytest.mark.parametrize("number", [0, 77])
    @pytest.mark.parametrize("made", [b"bare", (None, ()), ("text", ()), ("x" * 20_000, ()), (b"x", ["text"]), (5, ()), GAPS])
    def test_by_an_id_or_not(self, made: Any, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Reverse, "dumps", lambda _self, _obj: made)
        monkeypatch.setattr(Reverse, "id", number)
        with pytest.raises(ipcbus.EncodeError, match="nothing was sent"):
            make("reverse").encode("abc")


@pytest.mark.parametrize(
    "obj", [b"", b"x", {"a": [1]}, b"x" * 20_000, "x" * 16_380, bytearray(70_000)], ids=lambda obj: str(len(obj))
)
@pytest.mark.parametrize("options", [{}, {"checksum": True}, {"serializer": "json"}])
def test_headers_written_once_make_the_same_frame(obj: Any, options: dict[str, Any]) -> None:
    codec = make(**options)
    headers = {"topic": "prices.eu.dax", "n": "é"}
    if options.get("serializer") == "json" and not isinstance(obj, (dict, str)):
        obj = {"size": len(obj)}
    headed = wire.Headed(headers)
    for _ in range(2):
        quick, slow = codec.encode_headed(obj, headed), codec.encode(obj, headers)
        assert [bytes(part) for part in quick] == [bytes(part) for part in slow]
    assert codec.decode_message(quick).headers == headers


def test_headers_written_once_are_bounded() -> None:
    codec = make("raw", max_message=100)
    with pytest.raises(ipcbus.MessageTooLarge):
        codec.encode_headed(b"x" * 90, wire.Headed({"topic": "a"}))


@pytest.mark.parametrize("headers", [[("a", "b")], "text", 5])
def test_headers_that_are_no_dict_are_refused(headers: Any) -> None:
    with pytest.raises(ipcbus.EncodeError, match=r"headers are a dict of texts, not .*nothing was sent"):
        make().encode(1, headers)


class Interrupted:
    """Is interrupted by a signal when it is pickled, or rebuilt."""

    def __init__(self, *, when: str) -> None:
        self.when = when

    def __reduce__(self) -> tuple[Any, ...]:
        if self.when == "pickled":
            signal.raise_signal(signal.SIGUSR1)
        return signal.raise_signal, (signal.SIGUSR1,)


class Late:
    def __call__(self, *_: object) -> None:
        raise TimeoutError("took too long")

    def method(self, *_: object) -> None:
        self()


def send_and_receive(channel: ipcbus.Channel, obj: object) -> None:
    channel.send(obj, 0)
    channel.recv(0)


@pytest.mark.parametrize(
    "handler", [Late().method, Late(), functools.partial(Late.method, Late())], ids=["method", "object", "partial"]
)
@pytest.mark.parametrize("when", ["pickled", "rebuilt"])
def test_what_a_signal_handler_raises_is_not_taken_for_the_objects_error(when: str, handler: Callable[..., None]) -> None:
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with ipcbus.open("inproc:") as channel:
            with pytest.raises(TimeoutError, match="took too long") as raised:
                send_and_receive(channel, Interrupted(when=when))
            assert raised.value.__cause__ is None
    finally:
        signal.signal(signal.SIGUSR1, before)
