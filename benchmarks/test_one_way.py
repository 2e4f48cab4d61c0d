"""One sender, one receiver: how many messages of each kind and size go through."""

from suites import ALL_SIZES, KINDS, Wish, each


@each(*(Wish(("one-way",), kind, ALL_SIZES) for kind in KINDS))
def test_one_way(case, replay):
    replay(case)
