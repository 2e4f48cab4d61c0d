"""One sender, several receivers that compete for the messages."""

from suites import Wish, each


@each(*(Wish(("fan-out",), kind, (64, 1 << 16), receivers=number) for kind in ("bytes", "dict") for number in (2, 4, 8)))
def test_fan_out(case, replay):
    replay(case)
