"""A message there and one back, over two of them: how long it takes."""

from suites import ALL_SIZES, KINDS, Wish, each


@each(*(Wish(("round-trip",), kind, ALL_SIZES) for kind in KINDS))
def test_round_trip(case, replay):
    replay(case)
