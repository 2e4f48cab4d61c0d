"""Every check of the project; ``nox -l`` lists them, CONTRIBUTING.md says when to run which."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "faults", "lint", "typing", "native", "docs", "wheel", "minimal", "pythons"]

HERE = Path(__file__).parent
SHM = "./transports/ipcbus_shm"
"""The transport that is compiled, and therefore a distribution of its own."""
PYPROJECT = nox.project.load_toml(HERE / "pyproject.toml")
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
WORKERS = ("-n", "5", "--dist", "worksteal")
"""Most tests wait more than they work, so two processors carry five; ``-n 0`` behind ``--`` runs them one by one."""
OTHERS = [version for version in nox.project.python_versions(PYPROJECT) if version != RUNNING]


def group(*names: str) -> list[str]:
    """Return the requirements of dependency groups; pip learned to read them itself only in 25.1."""
    return list(nox.project.dependency_groups(PYPROJECT, *names))


@nox.session
def tests(session: nox.Session) -> None:
    """Run the suite, but for the tests that kill processes at random instants: ``faults`` runs those, often enough."""
    session.install("-e", ".[all]", SHM, *group("test"))
    session.run("pytest", "--ignore=tests/faults", *WORKERS, *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Kill processes at random instants as often as is promised, forty times each, and at every named point of the C code."""
    session.install("-e", ".[all]", SHM, *group("test"))
    session.run("pytest", "tests/faults", "--timeout=240", *WORKERS, *session.posargs, env={"IPCBUS_KILLS": "40"})


@nox.session
def lint(session: nox.Session) -> None:
    """Look for what is wrong, untidy or misspelt without running anything."""
    session.install(*group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("codespell")
    session.run("validate-pyproject", "pyproject.toml")


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types of every package, plugins included, and of what users write."""
    session.install("-e", ".[all]", SHM, *group("typing"))
    session.run("mypy")
    session.run("mypy", "tests/typing")


@nox.session
def native(session: nox.Session) -> None:
    """Check the C code: strict warnings, traffic under sanitizers, hostile memory, the extension's tests under sanitizers."""
    session.install("-e", ".[all]", SHM, *group("test"))
    session.run("python", "tests/native/run.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation without a warning, and run every example in it."""
    session.install("-e", ".[all]", SHM, *group("docs", "test"))
    session.run("sphinx-build", "-n", "-W", "--keep-going", "-q", "docs", "docs/_build/html")
    session.run("pytest", "docs", "README.md", "-n", "2", "--dist", "loadfile", *session.posargs)  # a page is one story


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the distributions, and check the wheel as a user gets it: installed, and far from the checkout."""
    session.install("build>=1.2,<2")
    with tempfile.TemporaryDirectory(prefix="ipcbus-wheel-") as scratch:
        for source in (".", SHM):
            session.run("python", "-m", "build", "--outdir", scratch, source, silent=True)
        (built,) = Path(scratch).glob("ipcbus-*.whl")
        (compiled,) = Path(scratch).glob("ipcbus_shm-*-cp311-abi3-*.whl")
        check_names(session, built)
        python = make_venv(session, sys.executable, Path(scratch, "venv"))
        for wanted in (f"{built}[all]", str(compiled)):  # one after the other, as in pythons
            session.run(python, "-m", "pip", "install", "-q", wanted, external=True)
        session.chdir(scratch)
        session.run(python, str(HERE / "tests" / "installed.py"), scratch, external=True)


@nox.session
def minimal(session: nox.Session) -> None:
    """Use the core with nothing else installed: no extras, no test tools."""
    session.install(".")
    session.run("python", "tests/minimal.py")


@nox.session(python=False)
@nox.parametrize("version", OTHERS, ids=OTHERS)
def pythons(session: nox.Session, version: str) -> None:
    """Run the contract and the unit tests on another Python."""
    found = find_python(version)
    if found is None:
        session.skip(f"no Python {version} that runs was found on this machine")
    python = make_venv(session, found, HERE / ".nox" / f"pythons-{version}")
    # One after the other: the pip that comes with an interpreter may be too old to see that the one provides the other.
    session.run(python, "-m", "pip", "install", "-q", "-e", ".[all]", *group("test"))
    session.run(python, "-m", "pip", "install", "-q", SHM)
    session.run(python, "-m", "pytest", "tests/contract", "tests/unit", *WORKERS, *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run every benchmark once with small counts, to see that they run; the figures mean nothing."""
    session.install("-e", ".[all,bench]", SHM, *group("bench"))
    session.run("pytest", "benchmarks", *(session.posargs or ("--smoke", "-q")))
    session.run("python", "benchmarks/targets.py", "--smoke")
    if shutil.which("npm"):
        session.run("python", "benchmarks/web", "--quick", "--no-targets")
    else:
        session.warn("benchmarks/web was not run: its load comes from a program for Node, and npm is not installed")


@nox.session
def demo(session: nox.Session) -> None:
    """Run the chat over every transport and check what arrives."""
    session.install("-e", ".[all]", SHM)
    session.run("ipcbus", "demo", "--check", *session.posargs)


@nox.session
def autobahn(session: nox.Session) -> None:
    """Run the Autobahn test suite against an echo service over every transport, and for the client."""
    if find_python("2.7") is None and not os.environ.get("PYTHON27"):
        session.skip("no CPython 2.7, on which alone the Autobahn test suite runs, was found on this machine")
    session.install("-e", ".[all]", SHM)
    session.run("python", "tests/autobahn", *session.posargs)


def check_names(session: nox.Session, built: Path) -> None:
    """Fail unless the wheel holds our packages and nothing else, each with what it needs beside its code."""
    names = set(zipfile.ZipFile(built).namelist())
    packages = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    expected = {Path(package).name for package in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}
    if packages != expected or not all(name == "ipcbus" or name.startswith("ipcbus_") for name in packages):
        session.error(f"{built.name} holds {sorted(packages)}, not {sorted(expected)}")
    needed = {f"{package}/{file}" for package in packages for file in ("__init__.py", "py.typed")} | {"ipcbus/demo/page.html"}
    if missing := needed - names:
        session.error(f"{built.name} lacks {', '.join(sorted(missing))}")


def make_venv(session: nox.Session, interpreter: str, folder: Path) -> str:
    """Make a virtual environment where nox would not, and return its Python."""
    session.run(interpreter, "-m", "venv", str(folder), external=True)
    return str(folder / "bin" / "python")


def find_python(version: str) -> str | None:
    """Return a Python of this version that really runs: a version manager's shim may be on PATH and do nothing."""
    candidates = [shutil.which(f"python{version}"), *sorted(Path.home().glob(f".pyenv/versions/{version}*/bin/python"))]
    say = "import sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in filter(None, candidates):
        asked = [candidate, "-c", say]
        probe = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603  our own command
        if probe.returncode == 0 and probe.stdout.strip() == version:
            return str(candidate)
    return None
