"""Every transport by every serializer that brings the object back."""

from suites import KINDS, every_serializer


@every_serializer(tuple(KINDS), (64, 1 << 16))
def test_serializer(case, replay):
    replay(case)
