from __future__ import annotations

import pickle
import sys
import time

import pytest

from ipcbus.check import check
from ipcbus.errors import ConfigError, EncodeError
from ipcbus.explain import Culprit

MODULE = '''
import os, threading, time

class Point:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return self.x == other.x
    __hash__ = None

class Forgetful(Point):
    def __getstate__(self): return {"x": 0}

class Plain: pass

class Bad(Exception):
    def __init__(self, code, text): super().__init__(text)

class Mean:
    def __setstate__(self, state): raise ValueError("not here")
    def __getstate__(self): return {"a": 1}

def dies(code): os._exit(code)
def sleeps(seconds): time.sleep(seconds)
def shouts(text):
    print(text)
    return text
def _kill(): os.kill(os.getpid(), 9)

class Here:
    """Harmless in the process that made it."""
    def __init__(self, func, *args): self.call = func, args
    def __reduce__(self): return self.call
    __hash__ = None

MADE = type("MADE_HERE", (), {})
globals()["MADE_HERE"] = MADE
if os.environ.get("IPCBUS_TEST_PID") != str(os.getpid()):
    del MADE_HERE

point, plain, bad, mean, made = Point(3), Plain(), Bad(1, "no"), Mean(), MADE()
forgetful = Forgetful(7)
deadly, fatal, slow, loud = Here(dies, 3), Here(_kill), Here(sleeps, 60), Here(shouts, "hello")
locked = {"lock": threading.Lock()}
lambdas = [lambda: 1 for _ in range(40)]
class Holder: inner = Point(5)
def factory(): return [point]
def options(*args, key=1, **more): return {"key": key}
def needs(argument): return argument
async def later(): return 1
def broken(): raise RuntimeError("no luck")
def quits(): raise SystemExit
class Quitter:
    def __reduce__(self): raise SystemExit(0)
quitter = [Quitter()]
def raises_lock(): return (1, threading.Lock())
'''


@pytest.fixture
def shop(tmp_path, monkeypatch):
    import os

    (tmp_path / "ipcbus_shop.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("IPCBUS_TEST_PID", str(os.getpid()))
    yield "ipcbus_shop"
    sys.modules.pop("ipcbus_shop", None)


def test_what_travels(shop):
    report = check(f"{shop}:point")
    assert report.ok
    assert report.type_name == "ipcbus_shop.Point"
    assert report.size == len(pickle.dumps(sys.modules[shop].point, 5))
    assert report.equal is True
    assert str(report) == f"ipcbus_shop:point (ipcbus_shop.Point), {report.size} bytes, travels"
    assert pickle.loads(pickle.dumps(report)) == report


def test_dotted_objects(shop):
    assert check(f"{shop}:Holder.inner").type_name == "ipcbus_shop.Point"


def test_equality_informs_and_does_not_decide(shop):
    report = check(f"{shop}:forgetful")
    assert report.ok
    assert report.equal is False
    assert "not equal" in str(report)
    assert check(f"{shop}:plain").equal is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("factory", "list"),
        ("options", "dict"),
        ("needs", "function"),
        ("later", "function"),
        ("Point", "type"),
        ("Holder", "type"),
    ],
)
def test_factories_are_called_and_nothing_else_is(shop, name, kind):
    report = check(f"{shop}:{name}")
    assert report.ok
    assert report.type_name == kind


def test_culprits_carry_the_path_from_the_target(shop):
    report = check(f"{shop}:locked")
    assert not report.ok
    assert report.size is None
    assert [c.path for c in report.culprits] == ["locked['lock']"]
    assert report.remedy == report.culprits[0].remedy
    assert "locked['lock']: thread lock cannot travel" in str(report)
    assert [c.path for c in check(f"{shop}:raises_lock").culprits] == ["raises_lock()[1]"]


def test_more_culprits_than_anybody_reads_are_counted(shop):
    report = check(f"{shop}:lambdas")
    assert len(report.culprits) == 40
    assert str(report).count("\n") < 30
    assert str(report).endswith("\n  ... and 15 more")


def test_what_is_known_instead_is_what_the_module_defines(shop):
    with pytest.raises(ConfigError, match="there is no 'zzzz'; known: ") as caught:
        check(f"{shop}:zzzz")
    assert "lambdas" in str(caught.value)
    assert "__" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "error", "remedy"),
    [
        ("bad", "TypeError: Bad.__init__() missing 1 required positional argument: 'text'", "super().__init__"),
        ("mean", "ValueError: not here", "__setstate__"),
        ("made", "MADE_HERE", "top level"),
        ("deadly", "exit code 3", "nothing has been set up"),
        ("fatal", "killed by SIGKILL", "nothing has been set up"),
    ],
)
def test_what_cannot_be_rebuilt_elsewhere(shop, name, error, remedy):
    encode = (lambda obj: pickle.dumps(obj, 5)) if name != "made" else None
    report = check(f"{shop}:{name}", encode=encode)
    assert not report.ok
    assert report.culprits == ()
    assert error in str(report.decode_error)
    assert remedy in report.remedy
    assert report.equal is None
    assert report.remedy in str(report)


def test_a_class_of_main_is_not_known_elsewhere(shop, monkeypatch):
    cls = type("OnlyInTheScript", (), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "OnlyInTheScript", cls, raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "example", cls(), raising=False)
    report = check("__main__:example")
    assert "OnlyInTheScript" in str(report.decode_error)
    assert "out of the script" in report.remedy


def test_a_module_that_is_not_importable_there(shop, tmp_path, monkeypatch):
    check(f"{shop}:point")
    (tmp_path / "ipcbus_shop.py").unlink()
    report = check(f"{shop}:point")
    assert report.decode_error == "ModuleNotFoundError: No module named 'ipcbus_shop'"
    assert "PYTHONPATH" in report.remedy


def test_a_dynamic_protobuf_class_is_not_known_elsewhere(shop, monkeypatch):
    pb = pytest.importorskip("google.protobuf.descriptor_pb2")
    from google.protobuf import descriptor_pool, message_factory

    file = pb.FileDescriptorProto(name="ipcbus_dynamic.proto", package="ipcbus_dynamic", syntax="proto3")
    file.message_type.add(name="Order").field.add(name="n", number=1, type=5, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    order = message_factory.GetMessageClass(pool.FindMessageTypeByName("ipcbus_dynamic.Order"))(n=4)
    monkeypatch.setattr(sys.modules["__main__"], "order", order, raising=False)
    report = check("__main__:order")
    assert not report.ok
    assert report.remedy


def test_a_receiver_that_hangs_is_killed_in_time(shop):
    started = time.monotonic()
    report = check(f"{shop}:slow", timeout=1)
    assert report.decode_error == "not decoded after 1 s"
    assert time.monotonic() - started < 20


def test_what_the_other_side_prints_is_not_the_verdict(shop):
    assert check(f"{shop}:loud").ok


def test_another_codec(shop):
    report = check(f"{shop}:locked", encode=lambda obj: b"[1]", decode="json:loads")
    assert report.ok
    assert report.size == 3
    assert report.equal is False
    refused = check(f"{shop}:point", encode=lambda obj: b"[", decode="json.decoder:JSONDecoder.decode")
    assert "TypeError" in str(refused.decode_error)
    missing = check(f"{shop}:point", decode="no_such_module:loads")
    assert "no_such_module" in str(missing.decode_error)


def test_what_an_encoder_tells_comes_first(shop):
    culprit = Culprit("point.x", "int", "too odd", "make it even")

    def encode(obj):
        raise EncodeError("no", [culprit])

    def shrug(obj):
        raise OverflowError("too big")

    assert check(f"{shop}:point", encode=encode).culprits == (culprit,)
    assert [c.reason for c in check(f"{shop}:point", encode=shrug).culprits] == ["OverflowError: too big"]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nothing", "module:object"),
        (":x", "module:object"),
        ("no_such_module_here:x", "No module named 'no_such_module_here'"),
        ("ipcbus_shop:piont", "did you mean 'point'?"),  # codespell:ignore piont
        ("ipcbus_shop:broken", "RuntimeError: no luck"),
        ("ipcbus_shop:quits", "calling it failed: SystemExit"),
    ],
)
def test_targets_that_are_not_there(shop, target, words):
    with pytest.raises(ConfigError) as caught:
        check(target)
    assert words in str(caught.value)


def test_what_exits_when_it_is_encoded_does_not_end_who_checks(shop):
    report = check("ipcbus_shop:quitter")
    assert not report.ok
    assert "quitter: exits when it is encoded (SystemExit: 0) -> have its __reduce__" in str(report)


def test_a_script_that_exits_when_it_is_imported_is_told_so(tmp_path, monkeypatch):
    (tmp_path / "ipcbus_script.py").write_text("import sys\nexample = 1\nsys.exit()\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"'ipcbus_script' exits when it is imported \(SystemExit\); put what it does"):
        check("ipcbus_script:example")
