"""Protocol Buffers messages of all kinds cross a channel and compare equal on arrival."""

from multiprocessing import Process

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2, timestamp_pb2

import ipcbus
from ipcbus.serializers.protobuf import register_pool

POOL = descriptor_pool.DescriptorPool()
register_pool(POOL)  # so that messages of its types arrive as this process's own classes


def make_reading_class() -> type:
    """Make a message class that no generated module knows."""
    file = descriptor_pb2.FileDescriptorProto(name="plant.proto", package="plant", syntax="proto3")
    reading = file.message_type.add(name="Reading")
    field = descriptor_pb2.FieldDescriptorProto
    reading.field.add(name="sensor", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    reading.field.add(name="values", number=2, type=field.TYPE_DOUBLE, label=field.LABEL_REPEATED)
    POOL.Add(file)
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName("plant.Reading"))


Reading = make_reading_class()


def make_values() -> dict[str, object]:
    """Return what is sent; the receiver makes the same to compare with."""
    settings = struct_pb2.Struct()
    settings.update({"unit": "bar", "limit": 9.5})
    reading = Reading(sensor="boiler", values=[1.5, 2.5])
    return {
        "a generated message": timestamp_pb2.Timestamp(seconds=86_400),
        "a message of a dynamic pool": reading,
        "one nested in a dict": {"at": 1, "readings": [reading]},
        "a repeated field": reading.values,
        "a map field": settings.fields,
    }


def check(arrivals: ipcbus.Channel) -> None:
    expected = make_values()
    for name, value in arrivals:
        print(name, "is equal" if value == expected.pop(name) else f"is not equal: {value!r}")
    if expected:
        print("never came:", ", ".join(expected))


def main() -> None:
    with ipcbus.open("auto:") as channel:
        receiver = Process(target=check, args=(channel.receiver,))
        receiver.start()
        for name, value in make_values().items():
            channel.send((name, value))
        channel.shutdown()
        receiver.join()


if __name__ == "__main__":
    main()
