"""Names and patterns of topics, against a reference that is too simple to be wrong."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipcbus.bus import pattern
from ipcbus.errors import ConfigError

WORDS = st.sampled_from(["a", "b", "eu"])
NAMES = st.lists(WORDS, min_size=1, max_size=4).map(".".join)


@st.composite
def patterns(draw):
    words = draw(st.lists(WORDS | st.just("*"), max_size=3))
    rest = draw(st.booleans())
    return ".".join([*words, ">"] if rest or not words else words)


def reference(wanted, name):
    """As a regular expression, in which a word is what has no dot."""
    word = r"[^.]+"
    parts = [word if part == "*" else rf"{word}(\.{word})*" if part == ">" else re.escape(part) for part in wanted.split(".")]
    return re.fullmatch(r"\.".join(parts), name) is not None


@given(patterns(), NAMES)
def test_matches_as_the_reference(wanted, name):
    assert pattern.matches(wanted, name) is reference(wanted, name)


@given(patterns() | NAMES, patterns() | NAMES, NAMES)
def test_what_covers_matches_all_that_the_other_matches(wide, narrow, name):
    if pattern.covers(wide, narrow) and reference(narrow, name):
        assert reference(wide, name)


@given(patterns() | NAMES, patterns() | NAMES)
def test_what_does_not_cover_misses_something(wide, narrow):
    if not pattern.covers(wide, narrow):
        # A word that no pattern has stands for all others, once and twice for '>'.
        fresh = [narrow.replace("*", "z").replace(">", more) for more in ("z", "z.z", "z.z.z.z")]
        assert not all(reference(wide, name) for name in fresh)


@given(patterns() | NAMES)
def test_checked_texts_are_taken(text):
    pattern.check_pattern(text)
    assert pattern.is_pattern(text) is ("*" in text or ">" in text)


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".a", "a..b", "a b", "ä", "a.>.b", ">.a", "a*", "a.b>", "**", "a/b", "a." * 100 + "b"]
)
def test_what_cannot_be_a_pattern(text):
    with pytest.raises(ConfigError):
        pattern.check_pattern(text)


@pytest.mark.parametrize("text", ["*", "a.*", "a.>", ">"])
def test_a_pattern_names_no_topic(text):
    with pytest.raises(ConfigError, match="publish to a name"):
        pattern.check_name(text)


@pytest.mark.parametrize(
    ("known", "wanted", "found"),
    [
        (["prices.>", "prices.eu.*", "*.eu.dax"], "prices.eu.dax", "prices.eu.*"),
        (["prices.>", "*.eu.dax"], "prices.eu.dax", "prices.>"),
        (["*.*", "a.*", "a.b", ">"], "a.b", "a.b"),
        (["*.*", ">"], "a.b", "*.*"),
        ([">", "a.>"], "a.b.c", "a.>"),
        (["a.b"], "a.c", None),
        (["a.*"], "a.>", None),
        (["a.>"], "a.*", "a.>"),
        ([], "a", None),
    ],
)
def test_the_best_is_the_most_exact(known, wanted, found):
    assert pattern.best(known, wanted) == found
    assert pattern.best(reversed(known), wanted) == found
