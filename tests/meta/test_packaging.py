"""What is declared in several places is the same in all of them, and nothing is left out of a gate."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import entry_points, version

import ipcbus

TOP = {
    ".ci", ".gitignore", ".pre-commit-config.yaml", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "benchmarks",
    "docs", "ipcbus", "noxfile.py", "pyproject.toml", "tests", "transports",
}  # fmt: skip


def test_top_level(tracked, root):
    assert {path.relative_to(root).parts[0] for path in tracked} == TOP


def test_the_sdist_has_all_that_its_tests_look_at(pyproject):
    assert not TOP & set(pyproject["tool"]["hatch"]["build"]["targets"]["sdist"]["exclude"])


def test_one_version(pyproject, root):
    newest = re.search(r"^## \[(?P<version>\d+\.\d+\.\d+)\]", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert pyproject["project"]["version"] == ipcbus.__version__ == newest["version"] == version("ipcbus")


def test_every_plugin_is_shipped_typed_and_checked(pyproject, root):
    folders = {path.name for path in (root / "transports").iterdir() if path.is_dir() and path.name != "__pycache__"}
    targets = pyproject["tool"]["hatch"]["build"]["targets"]
    own = {path.parent.name for path in (root / "transports").glob("*/pyproject.toml")}
    assert {f"transports/{name}" for name in folders - own} | {"ipcbus"} == set(targets["wheel"]["packages"])
    assert folders | {"ipcbus"} == set(pyproject["tool"]["mypy"]["packages"])
    untyped = [name for name in folders if not (root / "transports" / name / "py.typed").is_file()]
    assert not untyped
    offered = {value.split(":")[0] for value in pyproject["project"]["entry-points"]["ipcbus.transports"].values()}
    assert offered == folders


def test_distributions_of_their_own_say_what_the_core_says(pyproject, root):
    said = pyproject["project"]
    for path in (root / "transports").glob("*/pyproject.toml"):
        own = tomllib.loads(path.read_text())["project"]
        for key in ("version", "requires-python", "license", "license-files", "authors"):
            assert own[key] == said[key], f"{path}: {key}"
        for name in own["license-files"]:
            assert (path.parent / name).read_text() == (root / name).read_text()
        offered = own["entry-points"]["ipcbus.transports"]
        assert offered.items() <= said["entry-points"]["ipcbus.transports"].items()
        for scheme in offered:
            assert said["optional-dependencies"][scheme][0].startswith(own["name"])


def test_everything_compiled_is_built(root):
    for path in (root / "transports").glob("*/pyproject.toml"):
        (module,) = tomllib.loads(path.read_text())["tool"]["setuptools"]["ext-modules"]
        found = {str(file.relative_to(path.parent)) for file in path.parent.glob("native/*.[ch]")}
        assert set(module["sources"]) | set(module["depends"]) == found


def test_every_entry_point_leads_somewhere(pyproject):
    for group, declared in pyproject["project"]["entry-points"].items():
        installed = {entry.name: entry for entry in entry_points(group=group) if entry.dist and entry.dist.name == "ipcbus"}
        assert set(installed) == set(declared), f"{group}: reinstall, entry points are metadata"
        for name, entry in installed.items():
            assert entry.value == declared[name]
            assert entry.load().__doc__


def test_all_means_all(pyproject):
    extras = dict(pyproject["project"]["optional-dependencies"])
    (everything,) = extras.pop("all")
    del extras["bench"]  # competitors and what draws: heavy, and no part of a program needs them
    compiled = {extra for extra, needs in extras.items() if any(need.startswith("ipcbus-") for need in needs)}
    assert everything == f"ipcbus[{','.join(extra for extra in extras if extra not in compiled)}]"


def test_pre_commit_runs_what_lint_runs(pyproject, root):
    text = (root / ".pre-commit-config.yaml").read_text()
    pinned = set(re.findall(r'additional_dependencies: \["([^"]+)"\]', text))
    assert pinned == set(pyproject["dependency-groups"]["lint"])


def test_nothing_is_excluded(pyproject):
    tools = pyproject["tool"]
    assert not {"exclude", "extend-exclude"} & set(tools["ruff"])
    assert not {"exclude", "overrides"} & set(tools["mypy"])
    assert tools["mypy"]["strict"] is True
    assert tools["pytest"]["ini_options"]["filterwarnings"][0] == "error"
