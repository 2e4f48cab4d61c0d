"""Configuration files, environment variables, and which of them wins."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ipcbus
from ipcbus.config import CONFIG_VARIABLE, TRANSPORT_VARIABLE, configured_transport, load, load_file
from ipcbus.errors import ConfigError
from ipcbus.settings import read_key

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Settings:
    size: int = 1
    name: str = ""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.delenv(TRANSPORT_VARIABLE, raising=False)
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestFiles:
    def test_toml_becomes_a_dataclass(self, tmp_path: Path) -> None:
        (tmp_path / "x.toml").write_text('size = "2KiB"\nname = "n"\n', encoding="utf-8")
        assert load_file(Settings, tmp_path / "x.toml") == Settings(2048, "n")
        assert load(Settings, {"size": 5}) == Settings(5)

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (b"size = ", "not valid TOML"),
            (b"size = " + b"[" * 10_000, "not valid TOML"),
            (b"name = '\xff'", "not valid TOML"),
            (b"sizes = 1", "did you mean 'size'"),
            (b"size = 'many'", "size must be a whole number"),
        ],
    )
    def test_errors_name_the_file(self, tmp_path: Path, content: bytes, why: str) -> None:
        path = tmp_path / "wrong.toml"
        path.write_bytes(content)
        with pytest.raises(ipcbus.ConfigError, match=why) as caught:
            load_file(Settings, path)
        assert str(path) in str(caught.value)

    def test_missing_file_and_directory(self, tmp_path: Path) -> None:
        for path in (tmp_path / "none.toml", tmp_path):
            with pytest.raises(ipcbus.ConfigError, match="cannot be read"):
                load_file(Settings, path)


@pytest.mark.parametrize("wrong", ["pipe:", None, 3])
def test_a_channel_is_not_made_by_its_class(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"write ipcbus\.open\("):
        ipcbus.Channel(wrong)


def test_opening_a_channel_takes_nothing_out_of_it() -> None:
    with ipcbus.open("inproc:") as channel:
        channel.send(1)
        wrong: Any = channel
        with pytest.raises(ipcbus.ConfigError, match="by a text"):
            ipcbus.open(wrong)
        assert channel.recv(0) == 1


@pytest.mark.parametrize(("url", "options"), [("pipe:?accept=", {}), ("pipe:", {"accept": ()}), ("inproc:", {"accept": []})])
def test_a_channel_that_accepts_nothing_is_a_mistake(url: str, options: dict[str, Any]) -> None:
    with pytest.raises(ipcbus.ConfigError, match="accept names no serializer, so nothing could be received; name one, or"):
        ipcbus.open(url, **options)


class TestAuto:
    def test_nothing_is_configured(self) -> None:
        assert configured_transport() is None

    def test_order(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "ipcbus.toml").write_text('transport = "pipe:"', encoding="utf-8")
        assert configured_transport() == "pipe:"
        named = tmp_path / "named.toml"
        named.write_text('transport = "queue:?capacity=7"', encoding="utf-8")
        monkeypatch.setenv(CONFIG_VARIABLE, str(named))
        assert configured_transport() == "queue:?capacity=7"
        monkeypatch.setenv(TRANSPORT_VARIABLE, "inproc:")
        assert configured_transport() == "inproc:"

    def test_named_file_must_exist(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "none"))
        with pytest.raises(ipcbus.ConfigError, match="cannot be read"):
            configured_transport()

    @pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nothing"), os.mkfifo])
    def test_what_has_its_name_and_is_no_file_is_told(self, make: Callable[[Path], None], tmp_path: Path) -> None:
        make(tmp_path / "ipcbus.toml")
        with pytest.raises(ipcbus.ConfigError, match=r"^ipcbus.toml: is no file that can be read; .* IPCBUS_CONFIG"):
            configured_transport()

    @pytest.mark.timeout(20)
    def test_what_is_named_and_no_file_is_told_and_not_waited_for(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        os.mkfifo(tmp_path / "fifo")
        monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "fifo"))
        with pytest.raises(ipcbus.ConfigError, match="/fifo: is no file that can be read; have IPCBUS_CONFIG name one"):
            configured_transport()

    @pytest.mark.parametrize("nothing", ["", os.devnull])
    def test_nothing_may_be_named(self, nothing: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(CONFIG_VARIABLE, nothing)
        assert configured_transport() is None

    def test_what_is_wrong_with_it_is_said_with_where_it_stands(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "ipcbus.toml").write_text('transport = "ppie:"', encoding="utf-8")
        with pytest.raises(ipcbus.UnknownTransport, match=r"^auto: is 'ppie:', says ipcbus.toml: no transport 'ppie'"):
            ipcbus.open()
        monkeypatch.setenv(TRANSPORT_VARIABLE, "pipe:?capacity")
        with pytest.raises(ipcbus.ConfigError, match=r"^auto: is 'pipe:\?capacity', says IPCBUS_TRANSPORT: "):
            ipcbus.open("auto:")
        monkeypatch.setenv(TRANSPORT_VARIABLE, "pipe:?capacity=3&speed=9")
        with pytest.raises(
            ipcbus.ConfigError, match=r"^auto: is 'pipe:\?capacity=3&speed=9', says IPCBUS_TRANSPORT: unknown option"
        ):
            ipcbus.open("auto:")

    def test_channel_takes_scheme_and_options_from_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(TRANSPORT_VARIABLE, "inproc:?capacity=3&overflow=fail")
        with ipcbus.open("auto:?capacity=5") as channel:
            assert channel.url == "inproc:"
            assert channel.stats().capacity == 5
            for n in range(5):
                channel.send(n)
            with pytest.raises(ipcbus.ChannelFull):
                channel.send(5)


def test_a_key_file_in_the_home_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "orders.key").write_bytes(b"k" * 16)
    (tmp_path / "orders.key").chmod(0o600)
    with ipcbus.open("pipe:?key_file=~/orders.key") as channel:
        channel.send("signed")
        assert channel.recv(timeout=10) == "signed"
    with pytest.raises(ConfigError, match=r"key_file '~nobody-of-this-name/key' cannot be found.*write the whole path"):
        ipcbus.open("pipe:", key_file="~nobody-of-this-name/key")


def test_white_space_at_the_ends_of_a_key_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b" \n" + b"k" * 15 + b"\n")
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=r"holds 15 bytes, white space at its ends left out; .* make one of 32"):
        read_key(str(file), "here")
    file.write_bytes(b"k" * 16 + b"\n")
    assert read_key(str(file), "here") == b"k" * 16


@pytest.mark.parametrize("least", ["capacity=-1", "max_message=-5"])
def test_a_number_below_what_is_possible_is_told_what_is(least: str) -> None:
    with pytest.raises(ConfigError, match=r"must be at least \d+ (message|bytes), not -"):
        ipcbus.open(f"pipe:?{least}")


def test_a_relative_key_file_is_found_by_a_process_that_works_elsewhere(
    clean: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clean / "orders.key").write_bytes(bytes(range(100, 132)))
    (clean / "orders.key").chmod(0o600)
    with ipcbus.open("pipe:?key_file=orders.key") as channel:
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        process = multiprocessing.get_context("spawn").Process(target=channel.sender.send, args=("signed",))
        process.start()
        process.join(30)
        assert process.exitcode == 0
        assert channel.recv(timeout=0) == "signed"
