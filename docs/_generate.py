"""Writes the tables of the documentation from the code: ``python docs/_generate.py``.

A page says where a table goes, and what stands between the two lines is replaced::

    <!-- generated: guarantees -->
    <!-- end -->

``tests/meta/test_docs.py`` fails while a page is not what this would write.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
from pathlib import Path

import ipcbus
from ipcbus.options import UNIT
from ipcbus.settings import ChannelOptions
from ipcbus.transport import Capabilities, Transport
from ipcbus.web.config import FrontConfig, ServerConfig, ServiceConfig
from ipcbus.web.database import DatabaseConfig
from ipcbus.web.metrics import MetricsConfig

HERE = Path(__file__).parent
SCHEMES = ("inproc", "queue", "pipe", "unix", "shm", "zmq", "zmq+tcp")
"""In the order of the tables. A scheme that is declared in pyproject.toml and missing here fails the meta test."""

REGION = re.compile(r"(?P<head><!-- generated: (?P<what>[^>]+?) -->\n).*?(?P<foot><!-- end -->)", re.DOTALL)

LABELS = {
    "delivery": "Delivery",
    "order": "Order",
    "accepted": "Where a message is when `send` has returned",
    "sender_dies": "Lost when a sender is killed",
    "receiver_dies": "Lost when a receiver is killed",
    "home_dies": "Lost when the process that made the channel is killed",
    "machine_dies": "Lost when the machine stops",
}


def transport(scheme: str) -> type[Transport]:
    return ipcbus.transports.get(scheme)


def said_of_fields(cls: type) -> dict[str, str]:
    """Return the first sentence of the string below each field of a dataclass."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    said = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            said[field.target.id] = " ".join(str(text.value.value).replace("``", "`").split())
    return said


def word(value: object) -> str:
    if value is None or value == ():
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def capabilities() -> str:
    said = said_of_fields(Capabilities)
    head = ["", *(f"`{scheme}:`" for scheme in SCHEMES)]
    rows = [
        [f"`{name}`", *(word(getattr(transport(scheme).capabilities, name)) for scheme in SCHEMES)]
        for name in (field.name for field in dataclasses.fields(Capabilities))
    ]
    meanings = "\n\n".join(f"`{name}`\n: {said[name]}" for name in said)
    return f"{table(head, rows)}\n\n{meanings}"


def guarantees() -> str:
    """One row per promise, one column per set of schemes that promise the same."""
    groups: list[list[str]] = []
    for scheme in SCHEMES:
        twin = next((group for group in groups if promises(group[0]) == promises(scheme)), None)
        if twin is None:
            groups.append([scheme])
        else:
            twin.append(scheme)
    head = ["", *(", ".join(f"`{scheme}:`" for scheme in group) for group in groups)]
    rows = [[f"**{label}**", *(promises(group[0])[name] for group in groups)] for name, label in LABELS.items()]
    survives = ["**Goes on after a kill**", *(word(transport(group[0]).capabilities.survives_kill) for group in groups)]
    return table(head, [*rows, survives])


def promises(scheme: str) -> dict[str, str]:
    return {name: text.replace("-", " ") if name == "delivery" else text for name, text in plain(scheme).items()}


def plain(scheme: str) -> dict[str, str]:
    return dataclasses.asdict(transport(scheme).guarantees)


def facts(*schemes: str) -> str:
    """The promises and capabilities of a page's own schemes."""
    head = ["", *(f"`{scheme}:`" for scheme in schemes)]
    rows = [[label, *(promises(scheme)[name] for scheme in schemes)] for name, label in LABELS.items()]
    rows += [
        [f"`{field.name}`", *(word(getattr(transport(scheme).capabilities, field.name)) for scheme in schemes)]
        for field in dataclasses.fields(Capabilities)
    ]
    return table(head, rows)


def fields(cls: type) -> str:
    said = said_of_fields(cls)
    rows = []
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = "(required)" if required else "none" if field.default is dataclasses.MISSING else literal(field.default)
        meaning = said.get(field.name, "")
        kind = spell(field.type)
        rows.append([f"`{field.name}`", field.metadata.get(UNIT, "seconds") if kind == "float" else kind, default, meaning])
    return table(["key", "value", "default", "meaning"], rows)


def spell(annotation: object) -> str:
    """Say what to write, in the words of a configuration file."""
    text = str(annotation).removesuffix(" | None")
    if text.startswith("Literal["):
        return " or ".join(f"`{choice}`" for choice in ast.literal_eval(text.removeprefix("Literal")))
    words = {"str": "text", "int": "number", "float": "float", "bool": "`true` or `false`", "tuple[str, ...]": "texts"}
    return words.get(text, "table")


def literal(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value!r}`".replace("'", '"')


def options(scheme: str) -> str:
    kind = transport(scheme).options
    return fields(kind) if dataclasses.fields(kind) else f"`{scheme}:` has no options of its own."


def errors() -> str:
    """The tree, as ipcbus.errors draws it."""
    tree = inspect.getdoc(importlib.import_module("ipcbus.errors")).split("::\n\n", 1)[1].split("\n\nErrors keep", 1)[0]
    return f"```text\n{textwrap.dedent(tree).rstrip()}\n```"


GENERATORS = {
    "capabilities": capabilities,
    "guarantees": guarantees,
    "facts": facts,
    "options": options,
    "errors": errors,
    "channel options": lambda: fields(ChannelOptions),
    "server": lambda: fields(ServerConfig),
    "front": lambda: fields(FrontConfig),
    "database": lambda: fields(DatabaseConfig),
    "metrics": lambda: fields(MetricsConfig),
    "service": lambda: fields(ServiceConfig),
}


def rewrite(text: str) -> str:
    """Return a page with every generated region as it should be."""

    def fill(match: re.Match[str]) -> str:
        what = match["what"]
        name = what if what in GENERATORS else what.split()[0]
        return f"{match['head']}\n{GENERATORS[name](*what[len(name) :].split())}\n\n{match['foot']}"

    return REGION.sub(fill, text)


def pages() -> list[Path]:
    return sorted(path for path in HERE.rglob("*.md") if "_build" not in path.parts)


def main() -> None:
    for page in pages():
        before = page.read_text()
        after = rewrite(before)
        if after != before:
            page.write_text(after)
            print(f"wrote {page.relative_to(HERE)}")


if __name__ == "__main__":
    sys.exit(main())
