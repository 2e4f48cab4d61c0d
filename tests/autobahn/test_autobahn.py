"""What is read from the suite's reports, and the short profile where the suite is installed already."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("autobahn_suite", HERE / "suite.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there for their annotations
    spec.loader.exec_module(module)
    return module


suite = load()


def noted(behavior: str = "OK", closing: str = "OK") -> dict[str, Any]:
    return {"behavior": behavior, "behaviorClose": closing}


def test_a_good_report() -> None:
    verdict = suite.judge({"1.1.1": noted(), "6.4.1": noted("NON-STRICT"), "7.13.1": noted("INFORMATIONAL", "INFORMATIONAL")})
    assert verdict.ok
    assert str(verdict) == "3 cases: 1 INFORMATIONAL, 1 NON-STRICT, 1 OK"


def test_what_is_known_is_told_and_allowed() -> None:
    verdict = suite.judge({"1.1.1": noted(), "7.1.5": noted("FAILED", "WRONG CODE")})
    assert verdict.ok
    assert "7.1.5 failed, as is known" in str(verdict)


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"1.1.1": noted("FAILED")},
        {"1.1.1": noted(closing="UNCLEAN")},
        {"1.1.1": noted(closing="WRONG CODE")},
        {"1.1.1": noted("UNIMPLEMENTED", "FAILED BY CLIENT")},
    ],
)
def test_a_bad_report(index: dict[str, Any]) -> None:
    assert not suite.judge(index).ok


def test_failures_come_in_the_order_of_their_numbers() -> None:
    verdict = suite.judge({case: noted("FAILED") for case in ("10.1.1", "2.10", "2.9")})
    assert list(verdict.failed) == ["2.9", "2.10", "10.1.1"]


def test_without_python_2_it_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HOME", "PATH", "PYTHON27", "AUTOBAHN_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    with pytest.raises(suite.CannotRunError, match=r"no CPython 2\.7"):
        suite.install()


@pytest.mark.skipif(suite.installed() is None, reason="the Autobahn suite is not installed: nox -s autobahn does that")
@pytest.mark.parametrize("direction", [["--transport", "pipe:"], ["--client"]], ids=["server", "client"])
def test_the_short_profile(direction: list[str]) -> None:
    words = [sys.executable, str(HERE), "--profile", "smoke", *direction]
    done = subprocess.run(words, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "27 cases: 27 OK" in done.stdout
