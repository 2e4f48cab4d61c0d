"""The benchmark of the server: its rules, and that it runs."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "web"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(BENCHMARK), *sys.path])
    spec = importlib.util.spec_from_file_location("benchmark_web", BENCHMARK / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, loaded)
    spec.loader.exec_module(loaded)
    return loaded


def library() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ipcbus-benchmark" / "node_modules" / "ws"


def test_targets(module: Any) -> None:
    figure = module.Figure
    assert not figure("no target", 1e9, "ms").missed
    assert figure("at most", 10.1, "ms", 10.0).missed
    assert not figure("at most", 10.0, "ms", 10.0).missed
    assert figure("at least", 99.9, "%", 100.0, at_least=True).missed
    assert not figure("at least", 100.0, "%", 100.0, at_least=True).missed
    assert "MISSED" in str(figure("at most", 11.0, "ms", 10.0))
    assert "MISSED" not in str(figure("at most", 9.0, "ms", 10.0))


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.skipif(not library().exists(), reason="npm's ws is not installed: nox -s bench does that")
def test_it_runs() -> None:
    words = [sys.executable, BENCHMARK, "load", "--quick", "--json", "--no-targets"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stderr
    found = {figure["what"]: figure["value"] for figure in json.loads(done.stdout)["figures"]}
    for server in ("one bare process", "unix:"):
        assert found[f"load, {server}: delivered"] == 100
        assert found[f"load, {server}: latency, median"] > 0
    assert found["load, unix:: processor per delivery, all processes"] > 0
