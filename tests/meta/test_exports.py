"""The public names are exactly those we mean, all documented, and importing them does nothing else."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import types

import pytest

import ipcbus
import ipcbus.web

LATER = {package.__name__: package._LATER for package in (ipcbus, ipcbus.web)}
"""Names that packages import at their first use."""

HEAVY = {
    "asyncio", "concurrent.futures", "importlib.metadata", "logging", "multiprocessing", "socket", "subprocess", "tomllib",
    "cloudpickle", "google.protobuf", "msgspec", "numpy", "prometheus_client", "rich", "sqlalchemy", "typer", "uvloop",
    "websockets", "zmq",
}  # fmt: skip
"""Modules that cost time or do something when imported; none is needed before it is used."""

MOST_MODULES = 110
"""How many modules `import ipcbus` may load: a bound on its time that does not depend on the machine."""

LOOK = """
import atexit, json, os, signal, sys, threading
def state():
    return {
        "modules": sorted(sys.modules),
        "threads": threading.active_count(),
        "fds": sorted(os.listdir("/proc/self/fd")),
        "exit hooks": atexit._ncallbacks(),
        "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "path": list(sys.path),
    }
before = state()
import ipcbus
print(json.dumps([before, state()]))
"""


def test_the_front_exports_exactly_its_all():
    public = {
        name
        for name, value in vars(ipcbus).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name not in ("annotations", "TYPE_CHECKING")
    }
    assert set(ipcbus.__all__) == public | set(ipcbus._LATER) | {"__version__"}


@pytest.mark.parametrize("package", [ipcbus, ipcbus.web])
def test_what_is_imported_later_is_there(package):
    for name, module in package._LATER.items():
        assert getattr(package, name) is getattr(sys.modules[module], name)
        assert name in dir(package)
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = package.Nonsense


def test_the_front_is_sorted_and_without_twins():
    assert ipcbus.__all__ == sorted(set(ipcbus.__all__))


def test_every_error_is_exported():
    from ipcbus import errors

    assert set(errors.__all__) <= set(ipcbus.__all__)
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert set(errors.__all__) == classes
    drawn = {name for name in errors.__all__ if f"{name} " in errors.__doc__ or f"{name}\n" in errors.__doc__}
    assert drawn == classes, f"not in the tree of the docstring: {sorted(classes - drawn)}"


def test_every_public_name_is_documented(product):
    wrong = []
    for module in product:
        names = _all(module)
        if names is None or any(part.startswith("_") for part in module.name.split(".")):
            continue
        documented, defined = _definitions(module)
        names = set(names) - set(LATER.get(module.name, ()))  # documented where they come from
        wrong += [f"{module.name}.{name} does not exist" for name in names if name not in defined]
        wrong += [f"{module.name}.{name} has no docstring" for name in names if name in defined and not documented[name]]
    assert not wrong, "\n".join(wrong)


def test_every_module_with_public_names_says_which(product):
    wrong = []
    for module in product:
        if module.name.startswith("ipcbus.testing."):
            continue  # checks enter themselves into CHECKS, and children are found by name
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        public = [node for node in module.tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
        if public and _all(module) is None:
            wrong.append(module.at(public[0]))
    assert not wrong, f"these need __all__: {wrong}"


def test_importing_does_nothing_else():
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=30, check=True)
    before, after = json.loads(done.stdout)
    assert not done.stderr
    loaded = set(after.pop("modules")) - set(before.pop("modules"))
    assert after == before
    assert not loaded & HEAVY
    assert len(loaded) <= MOST_MODULES, f"{len(loaded)} modules: {sorted(loaded)}"


def _all(module):
    for node in module.tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "__all__":
            return ast.literal_eval(node.value)
    return None


def _definitions(module):
    """Return what a module defines at its top: names to whether they are documented; imported names count as they are."""
    documented = {}
    defined = set()
    body = list(module.tree.body)
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names, has = [node.name], ast.get_docstring(node) is not None
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names, has = [alias.asname or alias.name for alias in node.names], True
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            said = isinstance(after, ast.Expr) and isinstance(getattr(after.value, "value", None), str)
            has = said or names == ["__version__"] or isinstance(node.value, ast.Attribute)  # another name for it
        else:
            continue
        defined.update(names)
        documented.update(dict.fromkeys(names, has))
    return documented, defined
