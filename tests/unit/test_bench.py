"""What ``ipcbus bench`` computes of what it measures: plans, paces, figures, tables, advice, plots."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

import ipcbus
from ipcbus.bench import plot
from ipcbus.bench.advice import advise
from ipcbus.bench.carriers import CAPACITY, room_for
from ipcbus.bench.case import SCENARIOS, Absent, Case, Outcome, Sample
from ipcbus.bench.channels import ChannelCarrier, able_serializers, installed
from ipcbus.bench.figures import Result, quantile, ratio
from ipcbus.bench.foreign import PEERS, bare_of
from ipcbus.bench.machine import describe, sentence
from ipcbus.bench.messages import KINDS, Message, Reading, count_bytes, same, say_bytes, takes_size
from ipcbus.bench.pace import Pace
from ipcbus.bench.plan import Wish, estimate, make_plan, turns
from ipcbus.bench.plot import check_plot, draw
from ipcbus.bench.report import blocks, data, say_rate, say_seconds
from ipcbus.bench.run import Effort
from ipcbus.errors import ConfigError, IpcbusError, UnknownTransport
from ipcbus.transport import Capabilities

BYTES = Message("bytes", 64)
QUEUE = "multiprocessing.Queue"


def result(carrier, *seconds, scenario="one-way", message=BYTES, slow=None, problem=None, **crowd):
    samples = [Sample(each, 100, slow, message.size) for each in seconds]
    return Result(Case(scenario, carrier, message, **crowd), samples, problem)


class TestMessages:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("size", [64, 1 << 10, 1 << 20])
    def test_each_kind_is_about_as_large_as_is_wished_and_equal_to_itself_made_anew(self, kind, size):
        import pickle

        message = Message(kind, size)
        assert same(message.make(), message.make())
        if size > 64:
            assert size <= len(pickle.dumps(message.make(), 5)) < size * 1.3 + 400

    def test_what_differs_is_not_the_same(self):
        import numpy as np

        array = Message("array", 64).make()
        assert not same(array + 1, array)
        assert not same(array.astype(np.float32), array)
        assert not same(list(array), array)
        assert not same(b"a", b"b")
        assert not same({"id": 12345}, Message("dataclass", 64).make())

    def test_an_object_that_compares_by_identity_is_judged_by_its_type(self):
        class Plain:
            pass

        assert same(Plain(), Plain())
        assert not same(object(), Plain())
        assert same({"job": [Plain()]}, {"job": [Plain()]})
        assert not same({"job": [object()]}, {"job": [Plain()]})

    def test_what_cannot_be_compared_as_a_whole_is_compared_by_its_parts(self):
        import numpy as np

        def anew(last=2.0, value=float("nan")):
            return {"samples": np.array([1.0, float("nan"), last]), "reading": Reading(1, "a", value, ["b"]), "pair": (1, [2])}

        assert same(anew(), anew(value=-float("nan")))
        assert not same(anew(last=3.0), anew())
        assert not same({**anew(), "pair": [1, [2]]}, anew())
        assert not same({**anew(), "more": 1}, anew())
        assert not same([np.zeros(2)], [np.zeros((2, 1))])
        assert not same([np.zeros(2)], [np.zeros(2, dtype=np.float32)])

    def test_what_holds_itself_is_compared_once(self):
        def loop(first):
            made: list[object] = [first]
            made += [made, {"it": made}]
            return made

        assert same(loop(1), loop(1))
        assert not same(loop(2), loop(1))
        assert not same(1, loop(1))

    @pytest.mark.parametrize("wrap", [lambda obj: [obj], lambda obj: (obj, obj)], ids=["deep", "shared"])
    def test_how_deep_it_is_nested_does_not_matter(self, wrap):
        import numpy as np

        def nested(value):
            made = np.array([value, float("nan")])
            for _ in range(2000):
                made = wrap(made)
            return made

        assert same(nested(1.0), nested(1.0))
        assert not same(nested(2.0), nested(1.0))

    @pytest.mark.parametrize(
        ("text", "size"), [("64", 64), ("1KiB", 1024), ("1 kib", 1024), ("64K", 65536), ("1.5MiB", 3 << 19), ("2GB", 2 << 30)]
    )
    def test_sizes(self, text, size):
        assert count_bytes(text) == size

    @pytest.mark.parametrize("text", ["", "KiB", "-1", "1TiB", "12q", "0"])
    def test_what_is_no_size(self, text):
        with pytest.raises(ConfigError, match="is no size; write it as"):
            count_bytes(text)

    def test_sizes_for_people(self):
        assert [say_bytes(size) for size in (64, 1024, 1536, 1 << 20, 64 << 20, 3 << 30)] == [
            "64 B", "1 KiB", "1.5 KiB", "1 MiB", "64 MiB", "3.0 GiB",
        ]  # fmt: skip

    def test_a_function_of_the_users(self, monkeypatch, tmp_path):
        (tmp_path / "ordering.py").write_text(
            "def plain(): return {'id': 7}\n"
            "def sized(size): return 'x' * size\n"
            "def optional(size=3): return size\n"
            "def two(a, b): pass\n"
            "def broken(): raise RuntimeError('no database here')\n"
            "thing = [1, 2]\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        assert Message("ordering:plain", None).make() == {"id": 7}
        assert Message("ordering:sized", 1000).make() == "x" * 1000
        assert Message("ordering:optional", None).make() == 3
        assert Message("ordering:thing", None).make() == [1, 2]
        assert [takes_size(f"ordering:{name}") for name in ("plain", "sized", "optional", "thing")] == [
            False,
            True,
            False,
            False,
        ]
        with pytest.raises(ConfigError, match="it wants a, b"):
            Message("ordering:two", 64).make()
        with pytest.raises(ConfigError, match="calling it failed: RuntimeError: no database here"):
            Message("ordering:broken", None).make()
        with pytest.raises(ConfigError, match="there is no 'plane'; did you mean 'plain'"):
            Message("ordering:plane", None).make()

    def test_a_kind_that_does_not_exist(self):
        with pytest.raises(ConfigError, match="no kind of message 'byte'; did you mean 'bytes'"):
            Message("byte", 64).make()


class TestPace:
    @pytest.mark.parametrize("each", [1e-7, 1e-5, 1e-3, 0.05])
    def test_it_comes_to_a_phase_of_about_the_wished_length(self, each):
        pace, phases = Pace(0.1), []
        while True:
            phases.append(pace.count)
            took = 0.002 + pace.count * each  # waking the processes takes time, too
            if pace.counts(took):
                break
        assert 0.05 <= took <= max(0.3, 4 * each)
        assert len(phases) < 10
        assert phases[1:] == sorted(phases[1:])  # the first opens connections, and is forgotten

    def test_the_phase_that_opens_connections_never_counts(self):
        pace = Pace(0.1)
        assert not pace.counts(5.0)
        assert pace.counts(5.0)

    def test_it_grows_no_further_than_allowed(self):
        pace = Pace(100.0, most=50)
        while not pace.counts(1e-6):
            assert pace.count <= 50
        assert pace.count == 50


class TestFigures:
    def test_median_and_spread(self):
        measured = result("pipe:", 1e-6, 2e-6, 5e-6)
        assert measured.seconds == 2e-6
        assert measured.rate == 500_000
        assert measured.spread == pytest.approx(1.0)

    def test_a_ratio_compares_rounds_not_medians(self):
        fast, slow = result("pipe:", 1e-6, 10e-6, 3e-6), result(QUEUE, 2e-6, 20e-6, 9e-6)
        assert ratio(fast, slow) == pytest.approx(2.0)
        assert ratio(slow, fast) == pytest.approx(0.5)

    def test_without_a_figure_there_is_no_ratio(self):
        assert ratio(result("pipe:", 1e-6), result(QUEUE, problem="stuck")) is None
        assert ratio(result("pipe:", 1e-6, problem="died in the second round"), result(QUEUE, 1e-6)) is None

    def test_quantiles(self):
        values = list(range(100))
        assert (quantile(values, 0.5), quantile(values, 0.99), quantile([7.0], 0.99)) == (50, 99, 7.0)


class TestPlan:
    def test_every_carrier_that_can_and_a_reason_for_each_that_cannot(self):
        carriers = [(ChannelCarrier(url), "auto") for url in ("pipe:", "unix:", "inproc:")]
        carriers += [(PEERS[name], "auto") for name in (QUEUE, "multiprocessing.Pipe", "memcpy")]
        plan = make_plan(Wish(("one-way", "fan-out"), "dict", (64, 1024), receivers=3), carriers)
        names = {(case.scenario, case.name) for case in plan.cases}
        assert names == {
            ("one-way", "pipe:"), ("one-way", "unix:"), ("one-way", QUEUE), ("one-way", "multiprocessing.Pipe"),
            ("fan-out", "unix:"), ("fan-out", QUEUE),
        }  # fmt: skip
        assert {case.receivers for case in plan.cases if case.scenario == "fan-out"} == {3}
        assert len(plan.cases) == 2 * len(names)
        assert Absent("inproc:", "does not cross processes", "one-way") in plan.absent
        assert {(one.name, one.scenario) for one in plan.absent} == {
            ("inproc:", "one-way"), ("inproc:", "fan-out"), ("pipe:", "fan-out"), ("multiprocessing.Pipe", "fan-out"),
        }  # fmt: skip

    def test_a_message_that_a_serializer_changes_is_left_out(self):
        carriers = [(ChannelCarrier("pipe:", name), name) for name in ("pickle", "msgpack", "json")]
        plan = make_plan(Wish(("one-way",), "dataclass", (64,)), carriers)
        assert [case.serializer for case in plan.cases] == ["pickle"]
        assert len(plan.absent) == 2

    def test_pickle_is_not_sent_where_strangers_could(self):
        pytest.importorskip("zmq")
        plan = make_plan(Wish(("one-way",), "array", (64,)), [(ChannelCarrier("zmq+tcp:"), "auto")])
        assert not plan.cases

    def test_arrays_have_sizes_of_their_own(self):
        plan = make_plan(Wish(("arrays",)), [(ChannelCarrier("unix:"), "auto"), (PEERS["memcpy"], "auto")])
        assert {case.message for case in plan.cases} == {Message("array", 1 << 20), Message("array", 64 << 20)}
        assert {case.carrier for case in plan.cases} == {"unix:", "memcpy"}

    def test_a_message_that_is_as_large_as_it_is_has_one_size(self):
        plan = make_plan(Wish(("one-way",), "json:dumps", sized=False), [(PEERS[QUEUE], "auto")])
        assert [case.message.size for case in plan.cases] == [None]

    def test_turns_go_forth_and_back(self):
        cases = [Case("one-way", name, BYTES) for name in "abc"]
        assert [case.carrier for _, case in turns(cases, 3)] == list("abccbaabc")

    def test_the_estimate_grows_with_what_is_to_be_done(self):
        small, large = Case("one-way", "pipe:", BYTES), Case("one-way", "pipe:", Message("bytes", 64 << 20))
        crowd = Case("fan-in", "pipe:", BYTES, senders=32)
        assert estimate([small], 1, 0.1) < estimate([crowd], 1, 0.1)
        assert 2 * estimate([small], 1, 0.1) < estimate([large], 1, 0.1)
        assert estimate([small, large], 3, 0.1) == pytest.approx(3 * (estimate([small], 1, 0.1) + estimate([large], 1, 0.1)))

    def test_large_messages_lower_the_capacity(self, tmp_path):
        assert room_for(b"", 64, 1, 1, tmp_path).capacity == CAPACITY
        assert room_for(b"", 1 << 20, 1, 1, tmp_path).capacity == 128
        assert room_for(b"", 1 << 30, 1, 1, tmp_path).capacity == 2

    def test_every_scenario_has_a_peer(self):
        for scenario in SCENARIOS:
            assert any(scenario in peer.scenarios for peer in PEERS.values()), scenario


class TestCarriers:
    def test_installed_are_those_that_cross_processes(self):
        urls, absent = installed()
        assert {"pipe:", "queue:", "unix:"} <= set(urls)
        assert "inproc:" not in urls
        assert not absent

    def test_the_bare_primitive_of_each(self):
        assert bare_of(ChannelCarrier("pipe:?capacity=3")) == "multiprocessing.Pipe"
        assert bare_of(ChannelCarrier("queue:")) == bare_of(ChannelCarrier("unix:")) == QUEUE
        assert bare_of(ChannelCarrier("zmq:")) in PEERS

    @pytest.mark.parametrize("name", ["Pipe send_bytes", "pyzmq send"])
    def test_bytes_go_without_pickle_through_those_that_can(self, name):
        assert PEERS[name].refuses("one-way", BYTES, 1, 1) is None
        assert PEERS[name].refuses("one-way", Message("dict", 64), 1, 1) == "is for bytes alone"

    def test_serializers_that_bring_the_object_back(self):
        assert "json" not in able_serializers(b"bytes")
        assert {"json", "msgpack", "pickle"} <= set(able_serializers({"a": [1, 2.5, None]}))
        assert "msgpack" not in able_serializers(Message("dataclass", 64).make())

    def test_an_address_is_for_one_channel(self):
        carrier = ChannelCarrier("zmq+tcp://127.0.0.1:5555")
        assert "write zmq+tcp: without one" in carrier.refuses("round-trip", BYTES, 1, 1)
        assert carrier.refuses("one-way", BYTES, 1, 1) is None

    def test_a_transport_that_does_not_exist(self):
        with pytest.raises(UnknownTransport, match="did you mean 'unix'"):
            ChannelCarrier("unixx:")


RESULTS = [
    result("pipe:", 2e-6, 2e-6),
    result("unix:", 1e-6, 1.2e-6),
    result("queue:", problem="the sender was killed by SIGKILL"),
    result(QUEUE, 4e-6, 4e-6),
    result("pyzmq send", 0.5e-6, 0.5e-6),
    result("multiprocessing.Pipe", 8e-6, 8e-6),
]


class TestReport:
    def test_a_block_is_ordered_by_speed_with_ratios_for_channels(self):
        (block,) = blocks(RESULTS)
        assert [row.name for row in block.rows] == ["pyzmq send", "unix:", "pipe:", QUEUE, "multiprocessing.Pipe", "queue:"]
        rows = {row.name: row for row in block.rows}
        assert (rows["pipe:"].figure, rows["pipe:"].bare, rows["pipe:"].peer) == ("500,000", "4.00x", "0.25x")
        assert (rows["unix:"].bare, rows["unix:"].spread) == ("3.67x", "±9%")
        assert (rows[QUEUE].bare, rows[QUEUE].peer) == ("", "")
        assert rows["queue:"].problem == "the sender was killed by SIGKILL"
        assert [row.name for row in block.rows if row.best] == ["unix:"]
        assert block.best_peer == "pyzmq send"

    def test_what_cannot_be_compared_is_in_blocks_of_its_own(self):
        trips = result("pipe:", 4e-5, scenario="round-trip", slow=9e-5)
        crowd = result("pipe:", 4e-6, scenario="fan-in", senders=8)
        made = blocks([RESULTS[0], trips, crowd])
        assert [(block.title, block.trips) for block in made] == [
            ("one-way", False), ("round-trip", True), ("fan-in, 8 senders", False),
        ]  # fmt: skip
        assert (made[1].rows[0].figure, made[1].rows[0].second) == ("40.0 µs", "90.0 µs")

    def test_a_copy_in_memory_is_no_peer_to_beat(self):
        array = Message("array", 1 << 20)
        (block,) = blocks([result("unix:", 2e-4, scenario="arrays", message=array),
                           result("memcpy", 1e-4, scenario="arrays", message=array)])  # fmt: skip
        assert block.best_peer is None

    def test_numbers_for_people(self):
        assert [say_rate(rate) for rate in (1234567.8, 123.4, 7.25)] == ["1,234,568", "123", "7.2"]
        assert [say_seconds(s) for s in (4e-6, 3.21e-4, 0.0123, 0.25, 2.5)] == [
            "4.0 µs",
            "321 µs",
            "12.3 ms",
            "250 ms",
            "2.50 s",
        ]

    def test_data_for_programs(self):
        made = json.loads(json.dumps(data({"Python": "3"}, Effort(2, 0.1), RESULTS, [Absent("nng:", "is not installed")])))
        rows = {row["carrier"]: row for row in made["results"]}
        assert rows["pipe:"]["seconds"] == 2e-6
        assert rows["pipe:"]["times_faster_than"] == {QUEUE: 2.0, "pyzmq send": 0.25, "multiprocessing.Pipe": 4.0}
        assert len(rows["pipe:"]["rounds"]) == 2
        assert rows["queue:"]["seconds"] is None
        assert made["absent"] == [{"name": "nng:", "why": "is not installed", "scenario": None}]

    def test_cases_and_outcomes_cross_processes_as_data(self):
        case = Case("fan-in", "pipe:", Message("shop:order", None), "json", 8)
        assert Case.of(json.loads(json.dumps(case.facts()))) == case
        for outcome in (Outcome(Sample(1e-6, 7, 2e-6, 64)), Outcome(problem="stuck", stuck=True)):
            assert Outcome.of(json.loads(json.dumps(outcome.facts()))) == outcome

    def test_the_machine(self):
        facts = describe([QUEUE, "pipe:"])
        assert facts["ipcbus"] == ipcbus.__version__
        assert facts["Python"] in sentence(facts)
        assert int(facts["cores"]) >= 1

    def test_of_a_peer_that_is_not_installed_it_tells_no_version(self, monkeypatch):
        monkeypatch.setattr(PEERS["pynng"], "module", "no_such_module")
        assert "pynng" not in describe(["pynng"])


TOUGH, FRAGILE = Capabilities(survives_kill=True), Capabilities(survives_kill=False)
CAN = {"pipe:": TOUGH, "unix:": TOUGH, "queue:": FRAGILE, "zmq+tcp:": Capabilities(addressable=True), "unix: json": TOUGH}


class TestAdvice:
    def test_the_fastest(self):
        advice = advise(RESULTS, CAN)
        assert (advice.url, advice.toml) == ("unix:", 'transport = "unix:"')
        assert advice.reasons[0] == "over all that was measured the fastest; next is pipe:, 1.8 times slower"

    def test_nothing_measured_nothing_recommended(self):
        assert advise([result(QUEUE, 1e-6), result("pipe:", problem="failed")], CAN) is None

    def test_one_that_survives_a_kill_is_taken_where_it_is_about_as_fast(self):
        advice = advise([result("queue:", 1e-6), result("pipe:", 1.1e-6)], CAN)
        assert advice.url == "pipe:"
        assert "which queue: cannot say" in " ".join(advice.reasons)

    def test_but_not_where_it_is_slower(self):
        advice = advise([result("queue:", 1e-6), result("pipe:", 1.5e-6)], CAN)
        assert advice.url == "queue:"
        assert "give its calls a timeout" in advice.reasons[-1]

    def test_one_that_strangers_cannot_reach_is_taken_where_it_is_about_as_fast(self):
        assert advise([result("zmq+tcp:", 1e-6), result("unix:", 1.1e-6)], CAN).url == "unix:"

    def test_one_that_needs_an_address_is_not_what_auto_can_mean(self):
        advice = advise([result("zmq+tcp:", 1e-6), result("unix:", 2e-6), result("pipe:", 3e-6)], CAN)
        assert (advice.url, advice.toml) == ("unix:", 'transport = "unix:"')
        assert advice.reasons[0] == "zmq+tcp: was 2.0 times faster, but each of its channels needs an address of its own"

    def test_there_is_no_line_for_one_that_needs_an_address(self):
        assert advise([result("zmq+tcp:", 1e-6)], CAN).toml is None
        named = "zmq+tcp://127.0.0.1:5555"
        assert advise([result(named, 1e-6)], {named: CAN["zmq+tcp:"]}).toml == f'transport = "{named}"'

    def test_all_that_was_measured_counts_alike(self):
        large = Message("bytes", 1 << 20)
        both = [
            result("pipe:", 1e-6),
            result("unix:", 2e-6),
            result("pipe:", 9e-4, message=large),
            result("unix:", 1e-4, message=large),
        ]
        advice = advise(both, CAN)
        assert advice.url == "unix:"
        assert "pipe: is 2.0 times faster in one-way with bytes of 64 B" in advice.reasons

    def test_one_that_failed_somewhere_is_not_taken(self):
        large = Message("bytes", 1 << 20)
        some = [result("pipe:", 1e-6), result("unix:", 5e-6), result("unix:", 1e-4, message=large)]
        assert advise(some, CAN).url == "unix:"

    def test_a_serializer_is_an_option_of_the_url(self):
        advice = advise([result("unix:", 1e-6, serializer="json")], CAN)
        assert advice.toml == 'transport = "unix:?serializer=json"'


SIZED = [
    result(carrier, seconds * factor, seconds * factor * 1.1, scenario=scenario, message=Message("bytes", size), slow=1e-3)
    for scenario in ("one-way", "round-trip")
    for size, factor in ((64, 1), (1 << 10, 2), (1 << 20, 300))
    for carrier, seconds in (("pipe:", 3e-6), ("unix:", 4e-6), (QUEUE, 9e-6))
]


@pytest.fixture(scope="module")
def _warm(tmp_path_factory):
    """Draw once: matplotlib keeps the files of the fonts that it has used open."""
    pytest.importorskip("matplotlib")
    draw(SIZED, tmp_path_factory.mktemp("warm") / "out.png", describe())


@pytest.mark.usefixtures("_warm")
class TestPlot:
    def test_png(self, tmp_path):
        from PIL import Image

        path = tmp_path / "out.png"
        draw(SIZED, path, describe())
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert picture.width > 2 * picture.height * 0.9
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 20

    @pytest.mark.parametrize("results", [SIZED, RESULTS], ids=["lines", "bars"])
    def test_svg(self, tmp_path, results):
        path = tmp_path / "out.svg"
        draw(results, path, describe())
        assert ET.parse(path).getroot().tag.endswith("}svg")

    def test_svg_has_a_line_for_each_carrier_in_each_panel(self, tmp_path, monkeypatch):
        import matplotlib as mpl

        monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")  # text stays text
        path = tmp_path / "out.svg"
        draw(SIZED, path, describe())
        texts = [element.text for element in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]
        for word in ("pipe:", "unix:", QUEUE, "one-way", "round-trip"):
            assert texts.count(word) == 1, word
        assert "64 B" in texts

    def test_the_title_has_the_size_that_is_on_no_axis(self, tmp_path, monkeypatch):
        import matplotlib as mpl

        monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")
        path = tmp_path / "out.svg"
        draw([result("pipe:", 1e-6), result("unix:", 2e-6)], path, describe())
        assert "ipcbus bench: bytes, 64 B" in path.read_text()

    def test_a_bar_has_a_line_from_its_slowest_round_to_its_fastest(self):
        from matplotlib.figure import Figure

        axes, shown = Figure().subplots(), [result("pipe:", 1e-6, 2e-6, 9e-6)]
        plot._bars(axes, shown, plot._styles(shown))
        (segment,) = axes.collections[0].get_segments()
        assert [x for x, _ in segment] == pytest.approx([1 / 9e-6, 1 / 1e-6])

    def test_html_is_one_page_that_needs_nothing_else(self, tmp_path):
        path = tmp_path / "out.html"
        draw(SIZED, path, describe())
        seen = []

        class Reader(HTMLParser):
            def handle_starttag(self, tag, attrs):
                seen.append(tag)
                outside = [
                    value for name, value in attrs if name in ("src", "href", "xlink:href") and not value.startswith("#")
                ]
                assert not outside

        Reader(convert_charrefs=True).feed(path.read_text())
        assert seen[0] == "html"
        assert seen.count("svg") == 1
        assert path.read_text().count("ipcbus bench: bytes") == 2  # the page's title, and the picture's

    def test_other_endings_and_directories_that_do_not_exist(self, tmp_path):
        with pytest.raises(ConfigError, match=r"must end in \.png, \.svg or \.html"):
            check_plot(tmp_path / "out.gif")
        with pytest.raises(ConfigError, match="there is no directory"):
            check_plot(tmp_path / "nowhere" / "out.png")

    def test_without_matplotlib_it_says_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
        with pytest.raises(IpcbusError, match=r"pip install 'ipcbus\[bench\]'"):
            check_plot(tmp_path / "out.png")
