"""Imports point downwards, and plugins keep to what plugins may know."""

from __future__ import annotations

import ast
import sys

LAYERS = (
    {"ipcbus.errors", "ipcbus.plumbing"},
    {"ipcbus.directory"},
    {"ipcbus.transport", "ipcbus.options", "ipcbus.remedies"},
    {"ipcbus.registry", "ipcbus.config", "ipcbus.frame", "ipcbus.paths"},
    {"ipcbus.explain"},
    {"ipcbus.message", "ipcbus.serializers", "ipcbus.selection", "ipcbus.check"},
    {"ipcbus.codec", "ipcbus.settings"},
    {"ipcbus.plan"},
    {"ipcbus.endpoint", "ipcbus.endpoints"},
    {"ipcbus.channel", "ipcbus.batch", "ipcbus.aio", "ipcbus.requests"},
    {"ipcbus.pair", "ipcbus.wait"},
    {"ipcbus.bus"},
    {"ipcbus.supervisor"},
    {"ipcbus"},
    {"ipcbus.testing", "ipcbus.doctor"},
    {"ipcbus.bench"},
    {"ipcbus.web"},
    {"ipcbus.demo"},
    {"ipcbus.cli", "ipcbus.__main__"},
)
"""Lowest first. A module imports from its own layer and from those below it. A package stands for all its modules;
``ipcbus`` itself is the curated front, for what is built on top. Names that only annotations need may come from anywhere."""

OPEN_TO_PLUGINS = ("ipcbus.transport", "ipcbus.errors", "ipcbus.options", "ipcbus.plumbing")
DRIVERS = {"ipcbus_zmq": {"zmq"}}
"""What a plugin may import beside these and the standard library: the library that it is a plugin for."""


def imports(module):
    """Yield every import of a module that can happen at run time, as (node, dotted name)."""
    quiet = {id(node) for guard in ast.walk(module.tree) if _is_type_checking(guard) for node in ast.walk(guard)}
    for node in ast.walk(module.tree):
        if id(node) in quiet:
            continue
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module.at(node)}: relative import"
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def _is_type_checking(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def layer(name):
    """Return the rank of the layer that a dotted name belongs to, or None; the longest entry that fits decides."""
    fitting = [
        (len(entry), rank)
        for rank, entries in enumerate(LAYERS)
        for entry in entries
        if name == entry or (name.startswith(entry + ".") and entry != "ipcbus")
    ]
    return max(fitting)[1] if fitting else None


def resolve(name, modules):
    """Cut a dotted name down to the module that it comes from."""
    while name not in modules and "." in name:
        name = name.rpartition(".")[0]
    return name


def test_every_module_has_a_layer(core):
    homeless = [module.name for module in core if layer(module.name) is None]
    assert not homeless, f"say in LAYERS where these belong: {homeless}"


def test_every_layer_has_modules(core):
    names = {module.name for module in core}
    gone = [entry for entries in LAYERS for entry in entries if entry not in names]
    assert not gone, f"LAYERS knows modules that do not exist: {gone}"


def test_imports_point_downwards(core):
    names = {module.name for module in core}
    wrong = []
    for module in core:
        for node, name in imports(module):
            if name.split(".")[0] != "ipcbus":
                continue
            target = resolve(name, names)
            if layer(target) > layer(module.name):
                wrong.append(f"{module.at(node)}: {module.name} imports {target}, which is above it")
    assert not wrong, "\n".join(wrong)


def test_the_core_imports_no_plugin(core):
    wrong = [module.at(node) for module in core for node, name in imports(module) if name.startswith("ipcbus_")]
    assert not wrong, wrong


def test_plugins_import_the_contract_and_their_driver_only(plugins):
    assert plugins
    wrong = []
    for module in plugins:
        own = module.name.split(".")[0]
        allowed = {own} | DRIVERS.get(own, set()) | sys.stdlib_module_names
        for node, name in imports(module):
            if name.split(".")[0] == "ipcbus":
                if not any(name == entry or name.startswith(entry + ".") for entry in OPEN_TO_PLUGINS):
                    wrong.append(f"{module.at(node)}: {name} is not for plugins")
            elif name.split(".")[0] not in allowed:
                wrong.append(f"{module.at(node)}: {name}")
    assert not wrong, "\n".join(wrong)


def test_nobody_imports_the_folder(tracked, root):
    wrong = []
    for path in tracked:
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "transports" for name in names):
                wrong.append(f"{path.relative_to(root)}:{node.lineno}")
    assert not wrong, f"transports/ is a folder, not a package: {wrong}"
    assert not (root / "transports" / "__init__.py").exists()
