"""Generated and dynamic messages, nested ones, repeated and map fields: all arrive, and all are equal."""


def test_every_kind_compares_equal(tell, url, start_method):
    kinds = ("a generated message", "a message of a dynamic pool", "one nested in a dict", "a repeated field", "a map field")
    assert tell("protobuf_values.py", url, start_method) == [f"{kind} is equal" for kind in kinds]
