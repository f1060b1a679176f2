"""What a Python standard library defines: its sources read without running them, its C modules inspected."""

from __future__ import annotations

import ast
import inspect
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

# Neither documentation nor anything a program would import.
LEFT_OUT = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data", "ensurepip", "encodings", "this"}
    | {"antigravity", "site-packages", "dist-packages", "__pycache__", "__phello__"}
    # Samples for people who write C modules; and GNU readline, which may write to the terminal when imported.
    | {"xxsubtype", "xxlimited", "xxlimited_35", "readline"}
)


@dataclass
class Definition:
    """A class, function or method with what it says about itself.

    `bases` holds the base classes that are written with their module (``_socket.socket``).
    """

    kind: str
    signature: str
    docstring: str
    members: dict[str, Definition] = field(default_factory=dict)
    bases: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Module:
    """A module's own definitions, and the names that it takes from other modules.

    `taken` holds ``(module, name in it, name here)``; the name ``*`` stands for all public ones.
    """

    docstring: str = ""
    names: dict[str, Definition] = field(default_factory=dict)
    taken: list[tuple[str, str, str]] = field(default_factory=list)
    exported: list[str] | None = None


def read_library(root: Path | None = None) -> dict[str, Module]:
    """Every module of the standard library in `root` (default: that of the running Python), by name.

    Sources are parsed, never imported. Built-in and extension modules have no sources and are imported, which
    runs nothing of Python's own.
    """
    folder = root or Path(sysconfig.get_paths()["stdlib"])
    modules = {name: read_source(path) for name, path in _sources(folder)}
    taken = {source for module in modules.values() for source, _, _ in module.taken}
    bases = {
        source
        for module in modules.values()
        for definition in module.names.values()
        for source, _ in definition.bases
    }
    for name in sorted(set(_compiled(folder)) - modules.keys() - LEFT_OUT):
        if not name.startswith("_") or name in taken or name in bases:
            found = _inspect_module(name)
            if found is not None:
                modules[name] = found
    return modules


def read_source(path: Path) -> Module:
    """Parse one source file; a file that this Python cannot parse gives an empty module."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return Module()
    package = path.name == "__init__.py"
    module = Module(docstring=ast.get_docstring(tree) or "")
    name = _module_name_parts(path)
    for statement in _statements(tree.body):
        if isinstance(statement, ast.ImportFrom):
            source = _absolute(statement, name, package)
            module.taken += [(source, alias.name, alias.asname or alias.name) for alias in statement.names]
        elif isinstance(statement, ast.Assign | ast.AugAssign):
            _read_exports(statement, module)
        else:
            _read_definition(statement, module.names, in_class=False)
    return module


def _sources(folder: Path) -> Iterator[tuple[str, Path]]:
    for below, folders, files in os.walk(folder):
        # Pruned on the way down: installed packages may lie inside and be far larger than the library.
        folders[:] = sorted(
            name for name in folders if name not in LEFT_OUT and not name.startswith("config-")
        )
        for file in sorted(files):
            path = Path(below, file)
            if path.suffix != ".py" or path.stem == "__main__" or path.stem in LEFT_OUT:
                continue
            parts = path.relative_to(folder).with_suffix("").parts
            if parts[0] in sys.stdlib_module_names:
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _module_name_parts(path: Path) -> list[str]:
    """The dotted name of a source file, from the packages it lies in."""
    parts = [] if path.name == "__init__.py" else [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return parts


def _compiled(folder: Path) -> Iterator[str]:
    yield from sys.builtin_module_names
    for path in (folder / "lib-dynload").glob("*"):
        if any(path.name.endswith(suffix) for suffix in EXTENSION_SUFFIXES):
            yield path.name.partition(".")[0]


def _absolute(statement: ast.ImportFrom, name: list[str], package: bool) -> str:
    if not statement.level:
        return statement.module or ""
    base = name[: len(name) - statement.level + (1 if package else 0)]
    return ".".join([*base, *([statement.module] if statement.module else [])])


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a body and of the branches in it: whatever defines a name at that level."""
    for statement in body:
        if isinstance(statement, ast.If | ast.Try | ast.With):
            yield from _statements(statement.body)
            for handler in getattr(statement, "handlers", []):
                yield from _statements(handler.body)
            yield from _statements(getattr(statement, "orelse", []))
        else:
            yield statement


def _read_exports(statement: ast.Assign | ast.AugAssign, module: Module) -> None:
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
        constants = [
            node.value
            for node in ast.walk(statement.value)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        if constants:  # a list put together from other modules' lists cannot be read here
            module.exported = [*(module.exported or []), *constants]


def _read_definition(statement: ast.stmt, names: dict[str, Definition], in_class: bool) -> None:
    if not isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return
    docstring = ast.get_docstring(statement) or ""
    before = names.get(statement.name)
    if before is not None and (before.docstring or not docstring):
        return  # another branch, an overload or a setter: the first one that says something stays
    if isinstance(statement, ast.ClassDef):
        members: dict[str, Definition] = {}
        for member in _statements(statement.body):
            _read_definition(member, members, in_class=True)
        initialiser = members.get("__init__")
        names[statement.name] = Definition(
            "class",
            initialiser.signature if initialiser else "",
            docstring,
            members,
            [
                (base.value.id, base.attr)
                for base in statement.bases
                if isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name)
            ],
        )
        return
    decorators = {node.id for node in statement.decorator_list if isinstance(node, ast.Name)}
    signature = "" if "property" in decorators else _signature(statement.args, in_class, decorators)
    names[statement.name] = Definition("method" if in_class else "function", signature, docstring)


def _signature(arguments: ast.arguments, in_class: bool, decorators: set[str]) -> str:
    if in_class and "staticmethod" not in decorators:
        # self or cls, which a caller does not write
        if arguments.posonlyargs:
            arguments.posonlyargs = arguments.posonlyargs[1:]
        else:
            arguments.args = arguments.args[1:]
    return f"({ast.unparse(arguments)})"


def _inspect_module(name: str) -> Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some are deprecated; they are documented all the same
            found = import_module(name)
    except ImportError:  # built for another platform, or against a library that is not installed
        return None
    module = Module(docstring=inspect.cleandoc(found.__doc__ or ""))
    for public, current in sorted(vars(found).items()):
        # Programs replace some of these (sys.excepthook) and add others (exit, a notebook's display). The
        # originals stay under __name__, and what was added is written in Python.
        original = vars(found).get(f"__{public}__")
        value = original if inspect.isbuiltin(original) else current
        if not public.startswith("_") and (inspect.isbuiltin(value) or isinstance(value, type)):
            module.names[public] = _inspect(value, in_class=False)
    return module


def _inspect(value: Any, in_class: bool) -> Definition:
    if not isinstance(value, type):
        return Definition("method" if in_class else "function", _text_signature(value), _docstring(value))
    members = {
        name: _inspect(member, in_class=True)
        for name, member in sorted(vars(value).items())
        if not name.startswith("_") and not isinstance(member, type) and _is_method(member)
    }
    return Definition("class", _text_signature(value), _docstring(value), members)


def _is_method(member: Any) -> bool:
    return (
        inspect.isroutine(member)
        or inspect.isdatadescriptor(member)
        or isinstance(member, classmethod | staticmethod)
    )


def _docstring(value: Any) -> str:
    text = getattr(value, "__doc__", None)
    return inspect.cleandoc(text) if isinstance(text, str) else ""


def _text_signature(value: Any) -> str:
    signature = getattr(value, "__text_signature__", None)
    if not isinstance(signature, str):
        return ""
    inner = signature.strip("()").replace("$self, /, ", "").replace("$self, /", "").replace("$self, ", "")
    inner = inner.replace("$module, /, ", "").replace("$module, /", "").replace("$module, ", "")
    return f"({inner.replace('$type, /, ', '').replace('$type, /', '').replace('$type, ', '')})"
