"""The documentation says what the code says."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HEADINGS = [
    "What it is",
    "When to choose it",
    "URL and options",
    "Guarantees",
    "What a killed process can do to it",
    "Limits",
    "How it works",
]


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "_generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_tables_are_fresh(generator):
    pages = generator.pages()
    assert sum("<!-- generated:" in page.read_text() for page in pages) > 5
    stale = [page.name for page in pages if page.read_text() != generator.rewrite(page.read_text())]
    assert not stale, f"run python docs/_generate.py and commit what it writes: {stale}"


def test_a_stale_table_is_noticed(generator):
    page = (DOCS / "guarantees.md").read_text()
    stale = page.replace("| at most once", "| exactly once")
    assert stale != page
    assert generator.rewrite(stale) == page


def test_tables_know_every_scheme(generator):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(generator.SCHEMES) == set(project["entry-points"]["ipcbus.transports"])


def test_transport_pages_have_the_same_headings(generator):
    pages = sorted((DOCS / "transports").glob("*.md"))
    packages = {generator.transport(scheme).__module__.removeprefix("ipcbus_") for scheme in generator.SCHEMES}
    assert {page.stem for page in pages} == packages
    for page in pages:
        assert re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE) == HEADINGS, page.name


def test_every_error_is_on_its_page():
    import ipcbus

    page = (DOCS / "reference" / "errors.md").read_text()
    errors = {
        name
        for name in ipcbus.__all__
        if isinstance(getattr(ipcbus, name), type) and issubclass(getattr(ipcbus, name), Exception)
    }
    assert set(re.findall(r"^\.\. autoexception:: (\w+)$", page, re.MULTILINE)) == errors


def test_everything_public_is_in_the_reference():
    import ipcbus

    pages = "".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    documented = set(re.findall(r"^\.\. (?:auto\w+|py:data):: (?:ipcbus\.)?(\w+)(?:\(\))?$", pages, re.MULTILINE))
    assert set(ipcbus.__all__) - {"__version__"} <= documented


def test_every_example_is_shown_on_a_page():
    pages = "".join(path.read_text() for path in DOCS.rglob("*.md") if "_build" not in path.parts)
    unseen = [path.name for path in (DOCS / "examples").glob("*.*") if f"examples/{path.name}" not in pages]
    assert not unseen
