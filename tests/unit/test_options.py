"""URLs and typed options: what is understood, and what an error says about the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipcbus.errors import ConfigError
from ipcbus.options import URL, build, nearest, parse_url, rate


class TestURL:
    @pytest.mark.parametrize(
        ("text", "scheme", "address", "options"),
        [
            ("pipe:", "pipe", "", {}),
            ("pipe", "pipe", "", {}),
            ("QUEUE:?capacity=100", "queue", "", {"capacity": "100"}),
            ("zmq+tcp://127.0.0.1:5555", "zmq+tcp", "//127.0.0.1:5555", {}),
            ("zmq+tcp://[::1]:5555?key_file=/a/b+c&x=1", "zmq+tcp", "//[::1]:5555", {"key_file": "/a/b+c", "x": "1"}),
            ("shm:/name?a=x%26y%3Dz%20", "shm", "/name", {"a": "x&y=z "}),
            ("pipe:?accept=", "pipe", "", {"accept": ""}),
            ("pipe:?a=b=c", "pipe", "", {"a": "b=c"}),
            ("pipe:?", "pipe", "", {}),
        ],
    )
    def test_taken_apart(self, text: str, scheme: str, address: str, options: dict[str, str]) -> None:
        url = parse_url(text)
        assert (url.scheme, url.address, dict(url.options)) == (scheme, address, options)

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("", "not a channel URL"),
            (":", "not a channel URL"),
            ("1:", "not a channel URL"),
            ("two words", "not a channel URL"),
            ("pipe:?capacity", "key=value"),
            ("pipe:?=5", "key=value"),
            ("pipe:?a=1&&b=2", "key=value"),
            ("pipe:?a=1&a=2", "'a' is given twice"),
            ("pipe:?a=1&%61=2", "'a' is given twice"),
            ("pipe:?a=%ff", "not UTF-8"),
        ],
    )
    def test_refused(self, text: str, why: str) -> None:
        with pytest.raises(ConfigError, match=why):
            parse_url(text)

    @pytest.mark.parametrize("other", [None, 3, b"pipe:", ["pipe:"], iter(["pipe:"])])
    def test_what_is_no_text(self, other: Any) -> None:
        with pytest.raises(ConfigError, match="by a text"):
            parse_url(other)

    @given(
        st.from_regex(r"[a-z][a-z0-9+.-]{0,8}", fullmatch=True),
        st.from_regex(r"[a-z0-9/:@.\[\]_-]{0,12}", fullmatch=True),
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.text(st.characters(exclude_categories=["Cs"]))
        ),
    )
    def test_written_and_read_again(self, scheme: str, address: str, options: dict[str, str]) -> None:
        url = URL(scheme, address, options)
        again = parse_url(str(url))
        assert (again.scheme, again.address, dict(again.options)) == (scheme, address, options)

    @given(st.text())
    def test_any_text_is_a_url_or_a_config_error(self, text: str) -> None:
        try:
            parse_url(text)
        except ConfigError:
            pass


def test_nearest() -> None:
    assert nearest("capacty", ["capacity", "overflow"]) == "did you mean 'capacity'?"
    assert nearest("xyz", ["b", "a"]) == "known: a, b"
    assert nearest("xyz", []) == "nothing is known here"


@dataclass(frozen=True)
class Inner:
    seconds: float = 1.0


@dataclass(frozen=True)
class Options:
    needed: int
    size: int = 0
    fast: bool = False
    wait: float = 0.0
    share: float = rate(1.0, "things")
    name: str = ""
    mode: Literal["a", "b"] = "a"
    tags: tuple[str, ...] | None = None
    inner: Inner = field(default_factory=Inner)
    table: dict[str, Inner] = field(default_factory=dict)
    anything: Any = None
    made: int = field(default=3, init=False)

    def __post_init__(self) -> None:
        if self.needed < 0:
            raise ValueError("needed must not be negative")


class TestBuild:
    @pytest.mark.parametrize(
        ("key", "value", "expected"),
        [
            ("size", "100", 100),
            ("size", 100, 100),
            ("size", " 64KiB", 65_536),
            ("size", "1 M", 1 << 20),
            ("size", "2gb", 2 << 30),
            ("size", "7B", 7),
            ("fast", "yes", True),
            ("fast", "OFF", False),
            ("fast", True, True),
            ("wait", "0.5", 0.5),
            ("wait", 2, 2.0),
            ("name", "x", "x"),
            ("mode", "b", "b"),
            ("tags", "a, b,,", ("a", "b")),
            ("tags", "", ()),
            ("tags", ["a"], ("a",)),
            ("tags", None, None),
            ("inner", {"seconds": "3"}, Inner(3.0)),
            ("inner", Inner(4.0), Inner(4.0)),
            ("table", {"x": {"seconds": 5}}, {"x": Inner(5.0)}),
            ("anything", {1}, {1}),
        ],
    )
    def test_converts(self, key: str, value: Any, expected: Any) -> None:
        made = getattr(build(Options, {"needed": 1, key: value}, "here"), key)
        assert made == expected
        assert type(made) is type(expected)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"needed": 1, "sizes": 1}, "here: unknown key 'sizes'; did you mean 'size'?"),
            ({"needed": 1, "made": 1}, "here: unknown key 'made'"),
            ({}, "here: 'needed' is required"),
            ({"needed": "-1"}, "here: needed must not be negative"),
            ({"needed": "--1"}, "here: needed must be a whole number, not '--1'"),
            ({"needed": -1}, "here: needed must not be negative"),
            ({"needed": True}, "here: needed must be a whole number, not True"),
            ({"needed": 1.5}, "here: needed must be a whole number, not 1.5"),
            ({"needed": "1TB"}, "here: needed must be a whole number, not '1TB'"),
            ({"needed": 1, "fast": "maybe"}, "here: fast must be true or false, not 'maybe'"),
            ({"needed": 1, "fast": 1}, "here: fast must be true or false, not 1"),
            ({"needed": 1, "wait": "soon"}, "here: wait must be a number of seconds, not 'soon'"),
            ({"needed": 1, "wait": "nan"}, "here: wait must be a number of seconds, not 'nan'"),
            ({"needed": 1, "wait": math.nan}, "here: wait must be a number of seconds, not nan"),
            ({"needed": 1, "wait": math.inf}, "here: wait must be a number of seconds, not inf"),
            ({"needed": 1, "wait": 10**400}, "here: wait must be a number of seconds, not 1000"),
            ({"needed": "9" * 5000}, "here: needed must be a whole number, not '9999"),
            ({"needed": 1, "wait": "inf"}, "here: wait must be a number of seconds, not 'inf'"),
            ({"needed": 1, "share": "all"}, "here: share must be a number of things a second, not 'all'"),
            ({"needed": 1, "name": 5}, "here: name must be a text, not 5"),
            ({"needed": 1, "mode": "c"}, "here: mode must be one of 'a', 'b', not 'c'"),
            ({"needed": 1, "tags": 5}, "here: tags must be a list, not 5"),
            ({"needed": 1, "tags": [5]}, "here: tags must be a text, not 5"),
            ({"needed": 1, "inner": 5}, "here: inner must be a table, not 5"),
            ({"needed": 1, "inner": {"second": 5}}, "here: inner: unknown key 'second'; did you mean 'seconds'?"),
            ({"needed": 1, "table": 5}, "here: table must be a table, not 5"),
            ({"needed": 1, "table": {"x": {"seconds": "y"}}}, "here: table.x: seconds must be a number of seconds, not 'y'"),
        ],
    )
    def test_says_which_key_is_wrong(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            build(Options, values, "here")
        assert str(caught.value).startswith(message)
