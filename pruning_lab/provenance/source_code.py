"""Find and hash the source code of a program: its modules and what they import."""

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
"""Name of this package."""

INSTALLED = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
INSIDE = tuple(f"{place}{os.sep}" for place in INSTALLED)
"""Path prefixes of installed files. Text, not Path: thousands of modules are compared with them."""


@cache
def digest_of_program(made: Any, target: str = "") -> str:
    """Hash the modules of a class or function, of a class's ancestors, and all that they import.

    Imports are followed within this package and all that is not installed, also those inside
    functions; of an installed package only the version counts. ``target`` is the dotted name by
    which ``made`` was requested: the modules in it count, too. Returns 12 hexadecimal digits.
    """
    waiting = {
        getattr(base, "__module__", None) or "" for base in getattr(made, "__mro__", (made,))
    }
    waiting |= {target.rsplit(".", cut)[0] for cut in range(target.count(".") + 1)}
    sources = _versions(getattr(made, "__module__", None) or "").copy()
    while waiting:
        name = waiting.pop()
        if is_installed(name) and not is_own(name):
            continue
        if (source := _source(name)) is not None:
            sources[name] = source
            imported = _imports(name)
            waiting |= imported - sources.keys()
            if not is_own(name):
                sources |= {k: v for module in imported for k, v in _versions(module).items()}
    text = "".join(sources[name] for name in sorted(sources))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def remember() -> None:
    """Cache the sources of this package as they are now, right after they were imported."""
    for name in filter(is_own, list(sys.modules)):
        _source(name)


def is_own(name: str) -> bool:
    """Return True if a module belongs to this package."""
    return name.partition(".")[0] == OWN


def is_installed(name: str) -> bool:
    """Return True if a module belongs to Python itself or to an installed package."""
    if (file := file_of(name)) is None or file.startswith(INSIDE):
        return True
    outside = any(Path(file).is_relative_to(place) for place in _lent_places())
    # a package's compiled modules may stand under another name: scipy._cyutility as _cyutility
    spec = getattr(sys.modules.get(name), "__spec__", None)
    full_name = name if spec is None else spec.name
    return outside and full_name.partition(".")[0] in _distributions()


def file_of(name: str) -> str | None:
    """Return the file of a module, imported or not, without importing it; None if it has none."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None)
    spec = _spec(name)
    return spec.origin if spec is not None and spec.has_location else None


def _spec(name: str) -> ModuleSpec | None:
    """Return the import spec of a module that is not imported yet; None if it is not found."""
    parent, _, tail = name.rpartition(".")
    if not tail or (parent and (places := _inside(parent)) is None):
        return None
    try:
        return PathFinder.find_spec(name, places if parent else None)
    except KeyError:  # a folder without __init__.py, in another one that is not imported
        return None


def _inside(package: str) -> list[str] | None:
    """Return the folders of a package's modules; None if it is not a package."""
    if package in sys.modules:
        path = getattr(sys.modules[package], "__path__", None)
        return None if path is None else list(path)
    spec = _spec(package)
    if spec is not None and spec.loader is not None:
        return spec.submodule_search_locations
    parent, _, tail = package.rpartition(".")
    places = (_inside(parent) if parent else sys.path) or ()
    return [str(folder) for place in places if (folder := Path(place, tail)).is_dir()] or None


@cache
def _versions(name: str) -> dict[str, str]:
    """Return {name: version} of a module's installed package; {} for other modules."""
    root = name.partition(".")[0]
    if is_own(root) or not is_installed(root):
        return {}
    return {dist: version(dist) for dist in _distributions().get(root, ())}  # {} for Python itself


_distributions = cache(packages_distributions)


@cache
def _lent_places() -> set[str]:
    """Return the folders on sys.path with installed packages, also a user's own or PYTHONPATH's."""
    return {place for place in sys.path if any(Path(place).glob("*.dist-info"))}


@cache  # as it was when first read: later edits do not affect this process
def _source(name: str) -> str | None:
    """Return a module's source, or a hash of a compiled module; None if it has no file."""
    file = file_of(name)
    if (content := bytes_of(file)) is None:
        return None
    if Path(file or "").is_file() and str(file).endswith(".py"):
        return content.decode(errors="backslashreplace")
    return hashlib.sha256(content).hexdigest()


def bytes_of(file: str | None) -> bytes | None:
    """Return the content of a module's file, or of the archive around it; None without a file."""
    for place in (Path(file), *Path(file).parents) if file else ():
        if place.is_file():
            return place.read_bytes()
    return None


@cache
def _imports(name: str) -> frozenset[str]:
    """Return the names that a module imports; some of them may not be modules."""
    try:
        tree = ast.parse(_source(name) or "")
    except (SyntaxError, ValueError):  # compiled, or for another Python and never imported
        return frozenset()
    package = name if Path(file_of(name) or "").stem == "__init__" else name.rpartition(".")[0]
    names = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            written = "." * node.level + (node.module or "")
            if node.level and not package:
                continue  # a script, where a relative import cannot succeed
            origin = resolve_name(written, package) if node.level else written
            names |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return frozenset(names)
