"""Protocol Buffers messages and their containers, generated and dynamic, into a process that knows nothing of them."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, struct_pb2, timestamp_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from hypothesis import given
from hypothesis import strategies as st

import ipcbus
from ipcbus.codec import Codec
from ipcbus.serializers.protobuf import Protobuf, register_pool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from google.protobuf.message import Message

_fresh = itertools.count()

SCALARS = [
    ("double", [0.1, -1e300]),
    ("float", [0.5, -2.0]),
    ("int32", [1, -(2**31)]),
    ("int64", [1, -(2**63)]),
    ("uint32", [1, 2**32 - 1]),
    ("uint64", [1, 2**64 - 1]),
    ("sint32", [-1]),
    ("sint64", [-1]),
    ("fixed32", [1]),
    ("fixed64", [1]),
    ("sfixed32", [-1]),
    ("sfixed64", [-1]),
    ("bool", [True, False]),
    ("string", ["a", "ü"]),
    ("bytes", [b"a", b"\xff"]),
]


def make_file(package: str) -> descriptor_pb2.FileDescriptorProto:
    """Describe ``Person`` in one file: every scalar repeated, messages repeated, maps, an enum, and an import."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto2")
    file.dependency.append("google/protobuf/timestamp.proto")
    colour = file.enum_type.add(name="Colour")
    colour.value.add(name="RED", number=5)
    person = file.message_type.add(name="Person")
    person.field.add(name="name", number=1, type=Field.TYPE_STRING, label=Field.LABEL_OPTIONAL)
    person.field.add(
        name="born", number=2, type=Field.TYPE_MESSAGE, label=Field.LABEL_OPTIONAL, type_name=".google.protobuf.Timestamp"
    )
    person.field.add(
        name="friends", number=3, type=Field.TYPE_MESSAGE, label=Field.LABEL_REPEATED, type_name=f".{package}.Person"
    )
    inner = person.nested_type.add(name="Inner")
    inner.field.add(name="x", number=1, type=Field.TYPE_INT32, label=Field.LABEL_REQUIRED)
    person.field.add(
        name="inner", number=4, type=Field.TYPE_MESSAGE, label=Field.LABEL_OPTIONAL, type_name=f".{package}.Person.Inner"
    )
    person.field.add(name="colours", number=5, type=Field.TYPE_ENUM, label=Field.LABEL_REPEATED, type_name=f".{package}.Colour")
    for name, number, value in (("counts", 6, Field.TYPE_INT64), ("people", 7, Field.TYPE_MESSAGE)):
        entry = person.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=Field.TYPE_STRING, label=Field.LABEL_OPTIONAL)
        made = entry.field.add(name="value", number=2, type=value, label=Field.LABEL_OPTIONAL)
        if value == Field.TYPE_MESSAGE:
            made.type_name = f".{package}.Person"
        type_name = f".{package}.Person.{name.capitalize()}Entry"
        person.field.add(name=name, number=number, type=Field.TYPE_MESSAGE, label=Field.LABEL_REPEATED, type_name=type_name)
    for number, (kind, _) in enumerate(SCALARS, start=20):
        person.field.add(
            name=f"{kind}s", number=number, type=Field.Type.Value(f"TYPE_{kind.upper()}"), label=Field.LABEL_REPEATED
        )
    return file


def make_pool(package: str) -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(make_file(package).SerializeToString())
    return pool


def person_of(pool: Any, package: str) -> Any:
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.Person"))


def fill(kind: Any) -> Any:
    message = kind(name="Ada", counts={"a": 1}, colours=[5])
    message.born.seconds = 7
    message.friends.add(name="Bob")
    message.people["c"].name = "Cem"
    message.inner.x = 3
    for scalar, values in SCALARS:
        getattr(message, f"{scalar}s").extend(values)
    return message


@pytest.fixture
def dynamic() -> Any:
    """A filled message of a pool nobody else has."""
    package = f"dynamic{next(_fresh)}"
    return fill(person_of(make_pool(package), package))


def codec(serializer: str = "auto", *, private: bool = True) -> Codec:
    return Codec(serializer, None, private=private, max_message=1 << 24)


def there_and_back(obj: Any, one: Codec | None = None) -> Any:
    one = one or codec()
    return one.decode(one.encode(obj))


GENERATED = """
from google.protobuf import descriptor_pool, timestamp_pb2
from google.protobuf.internal import builder
DESCRIPTOR = descriptor_pool.Default().AddSerializedFile({data!r})
builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())
builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, {name!r}, globals())
"""


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A module as protoc writes it, which the children find but have not imported."""
    folder: Path = tmp_path_factory.mktemp("generated")
    (folder / "people_pb2.py").write_text(
        GENERATED.format(data=make_file("people").SerializeToString(), name="people_pb2"), encoding="utf-8"
    )
    sys.path.insert(0, str(folder))
    try:
        yield __import__("people_pb2")
    finally:
        sys.path.remove(str(folder))
        del sys.modules["people_pb2"]


@pytest.fixture(scope="module")
def child(generated: Any, child: Any) -> Any:
    return child


class TestMessages:
    @pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"deep": [m, (m,)]}], ids=["alone", "nested"])
    def test_generated_and_not_imported_over_there(self, generated: Any, child: Any, wrap: Any) -> None:
        sent = wrap(fill(generated.Person))
        assert child.run("result = obj", sent) == sent

    @pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"deep": [m, (m,)]}], ids=["alone", "nested"])
    def test_dynamic_and_unknown_over_there(self, dynamic: Any, child: Any, wrap: Any) -> None:
        sent = wrap(dynamic)
        assert child.run("result = obj", sent) == sent

    def test_top_level_messages_travel_as_protobuf(self, generated: Any, dynamic: Any) -> None:
        for message in (struct_pb2.Value(number_value=1), fill(generated.Person), dynamic):
            frame = codec().encode(message)
            assert frame[0][3] == Protobuf.id
            assert codec().decode_message(frame).content_type == "application/x-protobuf"
            assert codec().decode(frame) == message

    def test_what_the_child_sees(self, dynamic: Any, child: Any) -> None:
        code = "o = obj; result = o.name, o.born.seconds, list(o.doubles), dict(o.counts), o.people['c'].name"
        assert child.run(code, dynamic) == ("Ada", 7, [0.1, -1e300], {"a": 1}, "Cem")

    def test_well_known_types_need_no_import(self) -> None:
        code = (
            "import sys\n"
            "from ipcbus.codec import Codec\n"
            "codec = Codec('json', None, private=False, max_message=1 << 20)\n"
            "print(codec.decode([sys.stdin.buffer.read()]).seconds)"
        )
        frame = b"".join(codec(private=False).encode(timestamp_pb2.Timestamp(seconds=9)))
        done = subprocess.run([sys.executable, "-c", code], input=frame, capture_output=True, timeout=30, check=True)
        assert done.stdout == b"9\n"

    def test_empty_message(self) -> None:
        assert there_and_back(struct_pb2.Struct()) == struct_pb2.Struct()

    def test_any(self) -> None:
        packed = any_pb2.Any()
        packed.Pack(timestamp_pb2.Timestamp(seconds=1))
        assert there_and_back([packed]) == [packed]

    def test_unknown_fields_survive(self, generated: Any) -> None:
        message = generated.Person()
        message.MergeFromString(b"\xf8\xff\x03\x07")
        assert there_and_back(message).SerializeToString() == message.SerializeToString()

    def test_incomplete_message_is_refused_alone_and_kept_inside_a_pickle(self, generated: Any) -> None:
        message = generated.Person(inner={})
        with pytest.raises(ipcbus.EncodeError, match=r"inner\.x"):
            codec().encode(message)
        assert there_and_back([message]) == [message]

    def test_the_serializer_takes_nothing_else(self) -> None:
        with pytest.raises(ipcbus.EncodeError, match="not dict"):
            codec("protobuf").encode({})

    @given(
        st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda s: st.dictionaries(st.text(), s, max_size=3))
    )
    def test_any_struct(self, content: Any) -> None:
        message = struct_pb2.Struct()
        message.update({"content": content})
        assert there_and_back(message).SerializeToString(deterministic=True) == message.SerializeToString(deterministic=True)


class TestPools:
    def test_dynamic_answer_is_of_the_senders_class(self, dynamic: Any, child: Any) -> None:
        assert type(child.run("result = obj", dynamic)) is type(dynamic)

    def test_registered_pool_comes_first(self) -> None:
        package = f"registered{next(_fresh)}"
        theirs, ours = make_pool(package), make_pool(package)
        frame = codec().encode(fill(person_of(theirs, package)))
        register_pool(ours)
        register_pool(ours)
        arrived = codec().decode(frame)
        assert type(arrived) is person_of(ours, package)
        assert arrived == fill(person_of(ours, package))

    def test_registered_pool_does_not_take_over_generated_types(self) -> None:
        register_pool(make_pool(f"registered{next(_fresh)}"))  # it holds a Timestamp of its own
        assert type(there_and_back(timestamp_pb2.Timestamp(seconds=1))) is timestamp_pb2.Timestamp

    def test_default_pool_comes_before_descriptors_that_travelled(self, generated: Any, child: Any) -> None:
        same_name = fill(person_of(make_pool("people"), "people"))
        code = "import people_pb2; result = type(obj) is people_pb2.Person"
        assert child.run("import people_pb2") is None
        assert child.run(code, same_name) is True

    def test_two_types_of_one_file_fit_together_over_there(self, child: Any) -> None:
        package = f"pair{next(_fresh)}"
        pool = make_pool(package)
        inner = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.Person.Inner"))
        code = "person, inner = obj; person.inner.CopyFrom(inner); result = person.inner.x"
        assert child.run(code, (person_of(pool, package)(), inner(x=8))) == 8

    def test_two_schemas_of_one_name_stay_apart(self, child: Any) -> None:
        package = f"versions{next(_fresh)}"
        newer = make_file(package)
        newer.message_type[0].field.add(name="extra", number=99, type=Field.TYPE_STRING, label=Field.LABEL_OPTIONAL)
        pool = descriptor_pool.DescriptorPool()
        pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
        pool.AddSerializedFile(newer.SerializeToString())
        first, second = person_of(make_pool(package), package)(name="a"), person_of(pool, package)(name="b", extra="!")
        assert child.run("result = obj", [first, second]) == [first, second]
        assert child.run("result = hasattr(obj[0], 'extra'), obj[1].extra", [first, second]) == (False, "!")

    def test_pools_built_here_are_bounded(self) -> None:
        pools = sys.modules["ipcbus.serializers.pools"]
        decoder = Protobuf(private=False)
        for n in range(3 * pools._MAX_POOLS):
            file = descriptor_pb2.FileDescriptorProto(name="same.proto", syntax="proto3", package="same")
            file.message_type.add(name=f"M{n}")
            files = descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString()
            name = f"same.M{n}".encode()
            payload = b"\x02" + len(name).to_bytes(2, "little") + name + len(files).to_bytes(4, "little") + files
            assert decoder.loads(payload, ()).DESCRIPTOR.full_name == f"same.M{n}"
        assert len(pools._built) <= pools._MAX_POOLS

    def test_unknown_type_says_what_to_do(self) -> None:
        frame = [bytes((0xB5, 1, 0, Protobuf.id)) + b"\x00\x03\x00a.B"]
        with pytest.raises(ipcbus.DecodeError, match=r"'a\.B'.*register_pool"):
            codec().decode(frame)

    def test_strangers_import_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "canary_pb2.py").write_text("raise SystemExit('imported')", encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        payload = b"\x01\x03\x00a.B\x0a\x00canary_pb2"
        with pytest.raises(LookupError):
            Protobuf(private=False).loads(payload, ())
        other = b"\x01\x03\x00a.B\x04\x00this"
        with pytest.raises(LookupError):
            Protobuf(private=True).loads(other, ())
        assert "this" not in sys.modules

    def test_strangers_are_sent_no_module_names(self, generated: Any) -> None:
        frame = codec("protobuf", private=False).encode(fill(generated.Person))
        assert b"people_pb2" not in frame[0]

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b"\x00",
            b"\x80\x00\x00",
            b"\x00\xff\xff",
            b"\x02\x01\x00a\xff\xff\xff\xff",
            b"\x02\x01\x00a\x02\x00\x00\x00\xff\xff",
        ],
    )
    def test_damage_is_a_decode_error(self, payload: bytes) -> None:
        with pytest.raises(ipcbus.DecodeError):
            codec().decode([bytes((0xB5, 1, 0, Protobuf.id)) + payload])

    @given(st.binary(max_size=60))
    def test_noise_is_a_decode_error(self, noise: bytes) -> None:
        try:
            codec(private=False).decode([bytes((0xB5, 1, 0, Protobuf.id)) + noise])
        except ipcbus.DecodeError:
            pass

    def test_contradicting_descriptors(self) -> None:
        one = descriptor_pb2.FileDescriptorProto(name="x.proto", syntax="proto3")
        one.message_type.add(name="X").field.add(name="y", number=1, type=11, label=1, type_name=".Missing")
        files = descriptor_pb2.FileDescriptorSet(file=[one]).SerializeToString()
        payload = b"\x02\x01\x00X" + len(files).to_bytes(4, "little") + files
        with pytest.raises(ValueError, match="contradict"):
            Protobuf().loads(payload, ())


class TestContainers:
    @pytest.mark.parametrize("field", [*(f"{kind}s" for kind, _ in SCALARS), "colours", "friends", "counts", "people"])
    @pytest.mark.parametrize("filled", [True, False])
    def test_arrive_as_containers_that_compare_equal(self, dynamic: Any, child: Any, field: str, filled: bool) -> None:
        message = dynamic if filled else type(dynamic)()
        container = getattr(message, field)
        back = child.run("result = obj", {"c": container})["c"]
        assert type(back) is type(container)
        assert back == container
        assert len(back) == len(container)

    def test_generated_ones(self, generated: Any, child: Any) -> None:
        message = fill(generated.Person)
        sent = [message.friends, message.counts, message.people, message.strings]
        assert child.run("result = obj", sent) == sent

    def test_they_still_check_what_is_put_in(self, dynamic: Any, child: Any) -> None:
        code = """
try:
    obj[0].append('no number')
except TypeError:
    result = type(obj[1].add()).__name__, obj[1][-1].DESCRIPTOR.full_name
"""
        name = dynamic.DESCRIPTOR.full_name
        assert child.run(code, [dynamic.int32s, dynamic.friends]) == ("Person", name)

    def test_type_that_no_field_of_its_file_repeats(self, generated: Any) -> None:
        values = struct_pb2.ListValue()
        values.values.add(number_value=1)
        timestamps = _timestamps()
        back = there_and_back([timestamps, values.values])
        assert back == [timestamps, values.values]
        assert [type(one) for one in back] == [type(timestamps), type(values.values)]

    def test_parent_may_be_gone(self, dynamic: Any) -> None:
        for field in ("friends", "int32s", "counts", "people"):
            kind = type(dynamic)
            container = getattr(kind.FromString(dynamic.SerializeToString()), field)
            assert there_and_back([container]) == [getattr(dynamic, field)]

    def test_the_implementation_in_python(self) -> None:
        code = """
from google.protobuf.internal import api_implementation
assert api_implementation.Type() == "python"
from google.protobuf import struct_pb2, descriptor_pb2
from ipcbus.codec import Codec
codec = Codec("auto", None, private=True, max_message=1 << 20)
s = struct_pb2.Struct()
s.update({"a": [1, 2]})
f = descriptor_pb2.FileDescriptorProto(dependency=["x"], public_dependency=[1])
for obj in (s, s.fields, s.fields["a"].list_value.values, f.dependency, f.public_dependency, f.message_type):
    back = codec.decode(codec.encode([obj]))[0]
    assert back == obj and type(back) is type(obj), obj
"""
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def _timestamps() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name=f"holder{next(_fresh)}.proto", package="holder", syntax="proto3")
    file.dependency.append("google/protobuf/timestamp.proto")
    name = f"Holder{next(_fresh)}"
    file.message_type.add(name=name).field.add(
        name="times", number=1, type=Field.TYPE_MESSAGE, label=Field.LABEL_REPEATED, type_name=".google.protobuf.Timestamp"
    )
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    holder: Message = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"holder.{name}"))()
    times = holder.times  # type: ignore[attr-defined]  # the field was made three lines up
    times.add(seconds=4)
    return times
