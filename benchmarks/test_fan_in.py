"""Several senders, one receiver."""

from suites import Wish, each

SENDERS = (1, 2, 4, 8, 16, 32)


@each(*(Wish(("fan-in",), kind, (64, 1 << 16), senders=SENDERS) for kind in ("bytes", "dict")))
def test_fan_in(case, replay):
    replay(case)
