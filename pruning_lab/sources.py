"""The source code of a program: what its modules import, where that lies, and a hash of it."""

import ast
import hashlib
import os
import sys
import sysconfig
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import packages_distributions, version
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

OWN = __name__.partition(".")[0]
"""This package."""

INSTALLED = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
INSIDE = tuple(f"{place}{os.sep}" for place in INSTALLED)
"""Path prefixes of installed files. Text, not Path: thousands of modules are compared with them."""


@cache
def digest_of_program(made: Any, target: str = "") -> str:
    """Hash the sources of a class or function, of a class's ancestors, and of all that they import.

    Imports are followed within this package and all that is not installed, also those that a
    function makes when it runs; of an installed package the version counts. ``target`` is the
    dotted name under which ``made`` was asked for: the modules in it count, too.
    """
    waiting = {
        getattr(each, "__module__", None) or "" for each in getattr(made, "__mro__", (made,))
    }
    waiting |= {target.rsplit(".", cut)[0] for cut in range(target.count(".") + 1)}
    sources: dict[str, str] = {}
    root = getattr(made, "__module__", None) or ""
    if root.partition(".")[0] != OWN:
        sources |= _versions(root)
    while waiting:
        name = waiting.pop()
        if name.partition(".")[0] != OWN and is_installed(name):
            continue
        if (source := _source(name)) is not None:
            sources[name] = source
            imported = _imports(name)
            waiting |= imported - sources.keys()
            if name.partition(".")[0] != OWN:
                sources |= {k: v for each in imported for k, v in _versions(each).items()}
    whole = "".join(sources[name] for name in sorted(sources))
    return hashlib.sha256(whole.encode()).hexdigest()[:12]


def remember() -> None:
    """Keep the sources of this package as they are now, when they have just been imported."""
    for name in [each for each in sys.modules if each.partition(".")[0] == OWN]:
        _source(name)


def is_installed(name: str) -> bool:
    """Whether a module is of Python itself or of an installed package."""
    if (file := file_of(name)) is None or file.startswith(INSIDE):
        return True
    lent = any(Path(file).is_relative_to(place) for place in _lent_places())
    return lent and name.partition(".")[0] in _distributions()


def file_of(name: str) -> str | None:
    """Where a module's code lies, whether it is imported already or not; nothing is imported."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None)
    spec = _spec(name)
    return spec.origin if spec is not None and spec.has_location else None


def _spec(name: str) -> ModuleSpec | None:
    """Where a module that is not imported would come from."""
    parent, _, tail = name.rpartition(".")
    if not tail or (parent and (places := _inside(parent)) is None):
        return None
    try:
        return PathFinder.find_spec(name, places if parent else None)
    except KeyError:  # a folder without __init__.py, in another one that is not imported
        return None


def _inside(package: str) -> list[str] | None:
    """Where the modules of a package lie; None for what is none."""
    if package in sys.modules:
        found = getattr(sys.modules[package], "__path__", None)
        return None if found is None else list(found)
    spec = _spec(package)
    if spec is not None and spec.loader is not None:
        return spec.submodule_search_locations
    parent, _, tail = package.rpartition(".")
    places = (_inside(parent) if parent else sys.path) or ()
    return [str(folder) for place in places if (folder := Path(place, tail)).is_dir()] or None


@cache
def _versions(name: str) -> dict[str, str]:
    """The version of the installed package that a module is of; nothing for other modules."""
    root = name.partition(".")[0]
    if root == OWN or not is_installed(root):
        return {}
    return {each: version(each) for each in _distributions().get(root, ())}  # none of Python itself


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(packages_distributions())


@cache
def _lent_places() -> set[str]:
    """Where something was installed outside the environment: for one user, or by PYTHONPATH."""
    return {place for place in sys.path if any(Path(place).glob("*.dist-info"))}


@cache  # as it was when it was first asked for: whoever edits it later does not change this process
def _source(name: str) -> str | None:
    """The source of a module that has one; of a compiled one a hash."""
    file = file_of(name)
    if (content := bytes_of(file)) is None:
        return None
    if Path(file or "").is_file() and str(file).endswith(".py"):
        return content.decode(errors="backslashreplace")
    return hashlib.sha256(content).hexdigest()


def bytes_of(file: str | None) -> bytes | None:
    """What a module's file holds; of one inside an archive what the archive does."""
    for place in (Path(file), *Path(file).parents) if file else ():
        if place.is_file():
            return place.read_bytes()
    return None


@cache
def _imports(name: str) -> frozenset[str]:
    """The names of modules that a module imports, and of what might be one."""
    own = name if Path(file_of(name) or "").stem == "__init__" else name.rpartition(".")[0]
    found = set[str]()
    for node in ast.walk(_parsed(name)):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            written = "." * node.level + (node.module or "")
            if node.level and not own:
                continue  # a script, where such an import cannot succeed
            origin = resolve_name(written, own) if node.level else written
            found |= {origin, *(f"{origin}.{each.name}" for each in node.names)}
    return frozenset(found)


def _parsed(name: str) -> ast.AST:
    try:
        return ast.parse(_source(name) or "")
    except (SyntaxError, ValueError):  # compiled, or for another Python and never imported
        return ast.Module([], [])
