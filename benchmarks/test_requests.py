"""``Channel.request`` and its answer, beside calls through the managers of the standard library."""

from suites import Wish, each


@each(*(Wish(("request",), kind, (64, 1 << 16)) for kind in ("bytes", "dict")))
def test_request(case, replay):
    replay(case)
