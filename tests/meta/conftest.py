"""What the tests about the repository itself look at."""

from __future__ import annotations

import ast
import shutil
import subprocess
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@dataclass
class Module:
    """One Python file of a package."""

    path: Path
    name: str
    """As imported: ``ipcbus.plumbing.clock``; a package's ``__init__.py`` has the package's name."""
    text: str = field(repr=False)
    tree: ast.Module = field(repr=False)

    def at(self, node: ast.AST) -> str:
        return f"{self.path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def _read(path: Path, base: Path) -> Module:
    parts = list(path.relative_to(base).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    text = path.read_text()
    return Module(path, ".".join(parts), text, ast.parse(text))


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def tracked() -> list[Path]:
    """Every file of the repository, as git knows them."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the project cannot be told")
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="session")
def core() -> list[Module]:
    """The modules of ipcbus."""
    return [_read(path, ROOT) for path in sorted((ROOT / "ipcbus").rglob("*.py"))]


@pytest.fixture(scope="session")
def plugins() -> list[Module]:
    """The modules of every transport that lives here."""
    base = ROOT / "transports"
    return [_read(path, base) for path in sorted(base.glob("ipcbus_*/**/*.py"))]


@pytest.fixture(scope="session")
def product(core: list[Module], plugins: list[Module]) -> list[Module]:
    """Everything that is shipped."""
    return [*core, *plugins]


@pytest.fixture(scope="session")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())
