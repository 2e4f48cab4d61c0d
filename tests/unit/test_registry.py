"""Registries: found by name, through entry points, never overwritten silently."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import ipcbus
from ipcbus.errors import ConfigError, SerializerUnavailable, UnknownSerializer
from ipcbus.registry import Registry
from ipcbus.serializers.base import Serializer, serializers
from ipcbus.transport import Capabilities, Guarantees, NoOptions, Transport

from .rig import Amid

if TYPE_CHECKING:
    from pathlib import Path

MODULE = """
from ipcbus.serializers import Serializer
class Upper(Serializer):
    name = "upper"
    content_type = "text/x-upper"
    def dumps(self, obj): return obj.upper().encode(), ()
    def loads(self, payload, buffers): return bytes(payload).decode()
class Liar(Upper):
    name = "somebody-else"
class Nameless(Serializer):
    def dumps(self, obj): return b"", ()
nothing = 5
"""


def distribute(folder: Path, name: str, entries: str, metadata: str = "", modules: dict[str, str] | None = None) -> None:
    """Write what pip writes when it installs a distribution."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{metadata}", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[ipcbus.serializers]\n{entries}\n", encoding="utf-8")
    for module, text in (modules or {}).items():
        (folder / f"{module}.py").write_text(text, encoding="utf-8")


def ask(folder: Path, name: str) -> str:
    """Ask for a serializer in a process that has the folder in its path; return what came of it."""
    code = (
        "try:\n"
        "    codec = Codec(sys.argv[2], None, private=True, max_message=99)\n"
        "    print(codec.decode(codec.encode('abc')))\n"
        "except ipcbus.IpcbusError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    return run(folder, code, name).strip()


def run(folder: Path, code: str, *arguments: str) -> str:
    """Run code with codecs in a process that has the folder in its path; return what it prints."""
    begin = "import sys; sys.path.append(sys.argv[1])\nimport ipcbus\nfrom ipcbus.codec import Codec\n"
    command = [sys.executable, "-c", begin + code, str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


@pytest.mark.timeout(20)
def test_a_signal_handler_registers_amid_a_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    things: Registry[int] = Registry("ipcbus.none", "thing", UnknownSerializer, SerializerUnavailable, lambda *_: None)
    monkeypatch.setattr(things, "_lock", Amid(things, "_lock", lambda: things.register("other", 2)))
    things.register("one", 1)
    assert (things.get("one"), things.get("other")) == (1, 2)


class TestOutside:
    def test_installed_plugin_is_found(self, tmp_path: Path) -> None:
        distribute(tmp_path, "outside", "upper = outside:Upper", modules={"outside": MODULE})
        assert ask(tmp_path, "upper") == "ABC"

    def test_nearest_name_is_offered(self, tmp_path: Path) -> None:
        distribute(tmp_path, "outside", "upper = outside:Upper", modules={"outside": MODULE})
        assert ask(tmp_path, "uppr") == "UnknownSerializer no serializer 'uppr' is installed; did you mean 'upper'?"

    def test_what_is_missing_comes_with_the_pip_command(self, tmp_path: Path) -> None:
        modules = {"needy": "import something_not_installed"}
        distribute(tmp_path, "outside", "upper = needy:Upper", "Provides-Extra: upper\n", modules)
        answer = ask(tmp_path, "upper")
        assert answer.startswith("SerializerUnavailable serializer 'upper' cannot be used: No module named 'something_not_inst")
        assert answer.endswith("; try: pip install 'outside[upper]'")

    def test_what_lies_in_the_checkout_is_installed_from_there(self, tmp_path: Path) -> None:
        folder = tmp_path / "my checkout" / "plugins" / "apart"
        folder.mkdir(parents=True)
        distribute(tmp_path, "outside", "upper = apart:Upper", "Provides-Extra: upper\n")
        origin = {"url": (tmp_path / "my checkout").as_uri(), "dir_info": {}}
        (tmp_path / "outside-1.0.dist-info" / "direct_url.json").write_text(json.dumps(origin), encoding="utf-8")
        assert ask(tmp_path, "upper").endswith("; try: pip install 'outside[upper]'")  # nothing to install lies there
        (folder / "pyproject.toml").touch()
        assert ask(tmp_path, "upper").endswith(f"; try: pip install {shlex.quote(str(folder))}")

    @pytest.mark.parametrize(
        ("value", "why"),
        [
            ("outside:Missing", "cannot be loaded: AttributeError"),
            ("outside:nothing", "5 is not a Serializer class"),
            ("outside:Liar", "its class calls itself 'somebody-else'"),
            ("broken:Upper", "cannot be loaded: ZeroDivisionError"),
            ("outside:Nameless", "its class lacks name, content_type, loads"),
        ],
    )
    def test_plugin_that_is_not_what_it_claims(self, tmp_path: Path, value: str, why: str) -> None:
        distribute(tmp_path, "outside", f"upper = {value}", modules={"outside": MODULE, "broken": "1 / 0"})
        answer = ask(tmp_path, "upper")
        assert answer.startswith("ConfigError serializer 'upper'")
        assert why in answer

    def test_a_plugin_that_lacks_something_harms_nobody_but_who_asks_for_it(self, tmp_path: Path) -> None:
        entries = "nameless = outside:Nameless\nupper = outside:Upper"
        distribute(tmp_path, "outside", entries, modules={"outside": MODULE})
        code = (
            "upper, auto = (Codec(name, None, private=True, max_message=99) for name in ('upper', 'auto'))\n"
            "print(auto.decode(upper.encode('abc')))"
        )
        assert run(tmp_path, code) == "ABC\n"

    def test_without_descriptors_it_says_what_lacks(self, tmp_path: Path) -> None:
        lacking = "import errno, os\nraise OSError(errno.EMFILE, os.strerror(errno.EMFILE))"
        distribute(tmp_path, "outside", "upper = lacking:Upper", modules={"lacking": lacking})
        why = "serializer 'upper' cannot be loaded: Too many open files; close some descriptors"
        assert ask(tmp_path, "upper").startswith(f"ChannelBroken {why}")
        code = (
            "codec = Codec('raw', None, private=True, max_message=99)\n"
            "try: codec.decode([bytes((0xb5, 1, 0, 40)) + b'x'])\n"
            "except ipcbus.DecodeError as error: print(error)"
        )
        assert why in run(tmp_path, code)

    def test_two_distributions_with_one_name(self, tmp_path: Path) -> None:
        distribute(tmp_path, "outside", "upper = outside:Upper", modules={"outside": MODULE})
        distribute(tmp_path, "rival", "upper = rival:Upper", modules={"rival": MODULE})
        answer = ask(tmp_path, "upper")
        assert answer.startswith("ConfigError serializer 'upper' is offered by ")
        assert "outside (outside:Upper)" in answer
        assert "rival (rival:Upper)" in answer

    def test_taking_over_a_name_of_ours_is_noticed(self, tmp_path: Path) -> None:
        distribute(tmp_path, "rival", "json = rival:Upper", modules={"rival": MODULE})
        assert ask(tmp_path, "json").startswith("ConfigError serializer 'json' is offered by ")

    def test_broken_plugin_does_not_stop_decoding_others(self, tmp_path: Path) -> None:
        distribute(tmp_path, "broken", "aaa = broken:Upper", modules={"broken": "1 / 0"})
        code = (
            "codec = Codec('raw', None, private=True, max_message=99)\nprint(codec.decode([bytes((0xb5, 1, 0, 3)) + b'[1]']))"
        )
        assert run(tmp_path, code) == "[1]\n"


class TestOurs:
    @pytest.mark.parametrize(
        ("name", "module", "extra"),
        [
            ("msgpack", "msgspec", "msgpack"),
            ("protobuf", "google.protobuf", "protobuf"),
            ("cloudpickle", "cloudpickle", "cloudpickle"),
        ],
    )
    def test_missing_extra(self, name: str, module: str, extra: str) -> None:
        code = (
            f"import sys; sys.modules[{module!r}] = None\n"
            "import ipcbus\n"
            "try: ipcbus.open('inproc:', serializer=sys.argv[1])\n"
            "except ipcbus.SerializerUnavailable as error: print(error)"
        )
        command = [sys.executable, "-c", code, name]
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        assert f"serializer {name!r} cannot be used" in said
        assert f"pip install 'ipcbus[{extra}]'" in said

    def test_names(self) -> None:
        ours = {"raw", "pickle", "json", "msgpack", "protobuf", "cloudpickle"}
        assert ours <= set(serializers)
        assert serializers.names() == sorted(serializers)

    def test_ids_and_content_types_are_unique(self) -> None:
        kinds = [serializers.get(name) for name in ("raw", "pickle", "json", "msgpack", "protobuf", "cloudpickle")]
        assert [kind.id for kind in kinds] == [1, 2, 3, 4, 5, 0]
        assert len({kind.content_type for kind in kinds}) == len(kinds)
        assert {kind.name for kind in kinds if not kind.safe} == {"pickle", "cloudpickle"}

    @pytest.mark.parametrize("first", ["importlib.metadata", "ipcbus"])
    def test_what_is_installed_is_found_once_there_are_descriptors(self, first: str) -> None:
        code = (
            f"import {first}, ipcbus, os, resource\n"
            "held = []\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))\n"
            "try:\n"
            "    while True: held.append(os.dup(0))\n"
            "except OSError: pass\n"
            "try: ipcbus.open('inproc:')\n"
            "except ipcbus.ChannelBroken as error: print(error)\n"
            "for fd in held: os.close(fd)\n"
            "print(ipcbus.open('inproc:').url)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
        said, url = done.stdout.splitlines()
        assert said.startswith("what is installed cannot be looked through: Too many open files; close some descriptors")
        assert url == "inproc:"

    def test_importing_scans_nothing(self) -> None:
        code = "import sys, ipcbus; print('importlib.metadata' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
        assert done.stdout == "False\n"


def text(name: str, thing: object) -> str | None:
    return None if isinstance(thing, str) else f"{thing!r} is not a text"


@pytest.fixture
def registry() -> Registry[str]:
    return Registry("ipcbus.test.nobody", "text", UnknownSerializer, SerializerUnavailable, text)


class TestRegister:
    def test_nothing_is_overwritten_silently(self, registry: Registry[str]) -> None:
        registry.register("a", "one")
        registry.register("a", "one")
        with pytest.raises(ConfigError, match="registered already, as 'one'; pass replace=True"):
            registry.register("a", "two")
        assert registry.get("a") == "one"
        registry.register("a", "two", replace=True)
        assert registry.get("a") == "two"
        assert list(registry) == ["a"]

    def test_what_is_registered_is_validated(self, registry: Registry[Any]) -> None:
        with pytest.raises(ConfigError, match="5 is not a text"):
            registry.register("a", 5)
        with pytest.raises(UnknownSerializer, match="nothing is known here"):
            registry.get("a")

    @pytest.mark.parametrize(
        ("number", "content_type", "why"),
        [
            (5, "a/b", "ipcbus's own"),
            (256, "a/b", "32 to 255"),
            (-1, "a/b", "32 to 255"),
            (0, "", "ASCII"),
            (0, "a/ü", "ASCII"),
        ],
    )
    def test_ids_and_content_types_of_others(self, number: int, content_type: str, why: str) -> None:
        facts = {"name": "mine", "content_type": content_type, "id": number, "dumps": None, "loads": None}
        kind = type("Mine", (Serializer,), facts)
        with pytest.raises(ConfigError, match=why):
            ipcbus.serializers.register("mine", kind)
        assert "mine" not in ipcbus.serializers.names()


def transport(**facts: object) -> type[Transport]:
    """Return a transport with some of its facts replaced; what is None is left out."""
    sound = {
        "scheme": "mine",
        "capabilities": Capabilities(),
        "guarantees": Guarantees("at-most-once", *["nothing"] * 6),
        "options": NoOptions,
        "preference": 1_000_000,
        "create": classmethod(lambda _, __, ___: None),
    }
    return type("Mine", (Transport,), {name: fact for name, fact in {**sound, **facts}.items() if fact is not None})


class TestTransports:
    @pytest.mark.parametrize(
        ("facts", "why"),
        [
            ({"create": None}, "its class lacks create"),
            ({"capabilities": None}, "its class lacks capabilities"),
            ({"capabilities": Capabilities}, "its capabilities are <class .*>, not an ipcbus.transport.Capabilities"),
            ({"guarantees": {}}, "its guarantees are {}, not an ipcbus.transport.Guarantees"),
            ({"options": object}, "its options are <class 'object'>, not a dataclass; .* ipcbus.transport.NoOptions"),
            ({"scheme": "other"}, "its class is for scheme 'other'"),
        ],
    )
    def test_says_what_is_wrong_with_one(self, facts: dict[str, object], why: str) -> None:
        with pytest.raises(ConfigError, match=why):
            ipcbus.transports.register("mine", transport(**facts))

    @pytest.mark.parametrize("scheme", ["Mine", "my_own", "auto", "7up", ""])
    def test_a_scheme_can_stand_in_a_url(self, scheme: str) -> None:
        with pytest.raises(ConfigError, match="no URL can name it"):
            ipcbus.transports.register(scheme, transport(scheme=scheme))

    def test_one_that_makes_no_handle_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(ipcbus.transports._things, "mine", transport())
        with pytest.raises(ConfigError, match=r"transport 'mine': its create\(\) returned None, not a Handle"):
            ipcbus.open("mine:")

    def test_auto_passes_over_one_that_is_broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        get = ipcbus.transports.get

        def broken(name: str) -> type[Transport]:
            if name == "pipe":
                raise ConfigError("transport 'pipe': it is broken")
            return get(name)

        monkeypatch.setattr(ipcbus.transports, "get", broken)
        with ipcbus.open("auto:") as channel:
            assert not channel.url.startswith("pipe")
