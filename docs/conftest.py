"""Runs what the documentation shows: Python and console blocks, TOML files, and the programs in ``examples/``.

Python blocks of a page share one namespace. A block that is a whole program (it ends in a main guard) must be, word for
word, one of the files in ``examples/``, which are run as scripts. In console blocks, lines that start with ``$ ipcbus`` or
``$ python`` are run, in a copy of ``examples/``, and what they print is compared with what is shown; ``...`` stands for
anything. Other commands are for people: they install things or, like ``ipcbus serve``, never end.
"""

from __future__ import annotations

import doctest
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser, SkipParser

from ipcbus.config import Config, load

HERE = Path(__file__).parent
EXAMPLES = HERE / "examples"
RUN = ("ipcbus", "python")
GUARD = 'if __name__ == "__main__":'
PATIENCE = 45
"""Seconds for one command."""

collect_ignore = ["examples"]  # readers' files; test_examples.py runs them


run_python = PythonEvaluator()


def run_or_compare(example):
    """Compare programs with their files; run everything else."""
    if GUARD not in example.parsed:
        return run_python(example)
    files = {path.read_text().strip() for path in EXAMPLES.glob("*.py")}
    if example.parsed.strip() in files:
        return None
    return "this program is none of the files in docs/examples; copy it from there"


class PythonBlocks(PythonCodeBlockParser):
    """Blocks of Python, and of what was typed at its prompt."""

    def __init__(self):
        super().__init__(doctest_optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        self.codeblock_parser = CodeBlockParser("python", run_or_compare)


def run_console(example):
    """Run the commands of a console block, and compare what they print."""
    folder = example.namespace.get("folder")
    if folder is None:
        folder = example.namespace["folder"] = Path(tempfile.mkdtemp(prefix="ipcbus-docs-"), "examples")
        shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for command, shown in commands(example.parsed):
        words = shlex.split(command)
        variables = dict(word.split("=", 1) for word in words if "=" in word.split()[0] and word[0].isupper())
        words = [word for word in words if not ("=" in word and word[0].isupper())]
        if not words or words[0] not in RUN or words[1:2] == ["serve"] or words[1:] == ["demo"]:
            continue
        words[0] = str(Path(sys.executable).with_name(words[0]))
        done = subprocess.run(
            words,
            cwd=folder,
            env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        got = tidy(done.stdout)
        if not doctest.OutputChecker().check_output(tidy(shown), got, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE):
            return f"$ {command}\nprinted (exit code {done.returncode}):\n{got}\nbut the page shows:\n{shown}"
    return None


def commands(text):
    """Yield each command of a console block with what is shown below it."""
    for piece in ("\n" + textwrap.dedent(text)).split("\n$ ")[1:]:
        command, _, shown = piece.partition("\n")
        yield command, shown


def tidy(text):
    return "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"


def run_toml(example):
    """Read a configuration the way ipcbus does."""
    values = tomllib.loads(example.parsed)
    if "project" in values or "build-system" in values:
        return
    if "services" in values:
        from ipcbus.web.config import ServerConfig

        load(ServerConfig, values)
    else:
        load(Config, values)


def clean_up(namespace):
    if folder := namespace.get("folder"):
        shutil.rmtree(folder.parent)


def pytest_configure(config):
    """Collect README.md too, which lies above this folder."""
    pages = Sybil(
        path=str(HERE.parent),
        patterns=["README.md", "docs/*.md", "docs/*/*.md"],
        parsers=[
            SkipParser(),
            PythonBlocks(),
            CodeBlockParser("console", run_console),
            CodeBlockParser("toml", run_toml),
        ],
        teardown=clean_up,
    )

    class Pages:
        pytest_collect_file = staticmethod(pages.pytest())

    config.pluginmanager.register(Pages(), "ipcbus-pages")


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch):
    """Let no configuration of this machine decide what ``auto:`` is."""
    for name in ("IPCBUS_TRANSPORT", "IPCBUS_CONFIG"):
        monkeypatch.delenv(name, raising=False)
