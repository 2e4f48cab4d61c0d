"""Large NumPy arrays, beside one copy of them in memory."""

from suites import Wish, each


@each(Wish(("arrays",), "array", (1 << 20, 8 << 20, 64 << 20)))
def test_arrays(case, replay):
    replay(case)
