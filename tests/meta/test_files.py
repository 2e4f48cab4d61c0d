"""Habits that no linter of ours knows, kept by looking at the files."""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import tokenize

MOST_LINES = 500
SUPPRESSION = re.compile(r"#\s*(?:noqa(?::\s*[A-Z]+\d+(?:,\s*[A-Z]+\d+)*)?|type:\s*ignore(?:\[[\w, -]+\])?)(?P<rest>.*)")
REASON = re.compile(r"[a-z]{2,}.*\s.*[a-z]{2,}", re.IGNORECASE)
SOMEBODYS_PATH = re.compile(r"(?<![\w./<])/(?:home|root|Users|work|workspace|opt|mnt|media)/[\w.-]+")
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".html", ".js", ".c", ".h", ".cfg", ".txt", ".rst", ".css", ".proto", ""}


def calls(module):
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def test_files_stay_short(product):
    long = {module.name: lines for module in product if (lines := module.text.count("\n")) > MOST_LINES}
    assert not long, f"more than {MOST_LINES} lines: split by subject: {long}"


def test_deadlines_do_not_use_the_wall_clock(product):
    wrong = []
    for module in product:
        lines, taken = module.text.splitlines(), False
        for node in ast.walk(module.tree):
            taken |= isinstance(node, ast.ImportFrom) and node.module == "time" and any(n.name == "time" for n in node.names)
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if (called == "time.time" or (called == "time" and taken)) and "wall clock" not in lines[node.lineno - 1]:
                wrong.append(module.at(node))
    assert not wrong, f"use time.monotonic; if the time of day is meant, say 'wall clock' on the line: {wrong}"


def test_nothing_sleeps(product):
    wrong = []
    for module in product:
        if module.name.startswith("ipcbus.testing"):
            continue  # its checks make slow users of a channel on purpose
        imported = any(
            alias.name == "sleep" for node in ast.walk(module.tree) if isinstance(node, ast.ImportFrom) for alias in node.names
        )
        for node, name in calls(module):
            if not (name.endswith(".sleep") or (name == "sleep" and imported)):
                continue
            if name == "asyncio.sleep" and ast.unparse(node.args[0]) == "0":
                continue  # only lets other tasks run
            wrong.append(module.at(node))
    assert not wrong, f"wait for the event instead: {wrong}"


def test_no_error_is_swallowed_whole(product):
    wrong = []
    for module in product:
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.ExceptHandler) or not all(isinstance(item, ast.Pass) for item in node.body):
                continue
            if node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"):
                wrong.append(module.at(node))
        wrong += [
            module.at(node)
            for node, name in calls(module)
            if name.endswith("suppress") and {"Exception", "BaseException"} & {ast.unparse(argument) for argument in node.args}
        ]
    assert not wrong, f"name the error, and say why it does not matter: {wrong}"


def test_every_suppression_has_a_reason(tracked, root):
    wrong = []
    for path in tracked:
        if path.suffix != ".py":
            continue
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type != tokenize.COMMENT:
                continue
            found = SUPPRESSION.search(token.string)
            if found and not REASON.search(found["rest"]):
                wrong.append(f"{path.relative_to(root)}:{token.start[0]}: {token.string}")
    assert not wrong, "say why on the same line:\n" + "\n".join(wrong)


def test_no_path_of_somebodys_machine(tracked, root):
    wrong = []
    for path in tracked:
        if path.suffix not in TEXT or path == root / "tests" / "meta" / "test_files.py":
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if found := SOMEBODYS_PATH.search(line):
                wrong.append(f"{path.relative_to(root)}:{number}: {found[0]}")
    assert not wrong, "\n".join(wrong)


def test_the_gate_is_a_program(root):
    gate = root / ".ci" / "run"
    assert os.access(gate, os.X_OK)
    subprocess.run(["bash", "-n", gate], check=True, timeout=10)
