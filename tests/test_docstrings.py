"""Every public name is documented, with each of its parameters."""

import importlib
import inspect
import pkgutil
import re

import pytest

import pruning_lab


def public_names():
    for module in pkgutil.walk_packages(pruning_lab.__path__, "pruning_lab."):
        if module.name.endswith("__main__"):
            continue
        loaded = importlib.import_module(module.name)
        for name in getattr(loaded, "__all__", ()):
            value = getattr(loaded, name)
            if inspect.isclass(value) or inspect.isroutine(value):
                yield pytest.param(value, id=f"{module.name}.{name}")


def parameters(function):
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def undocumented(value, text):
    """Parameters that are neither named in backquotes nor in a list of arguments."""

    def named(name):
        return re.search(rf"`\*{{0,2}}{name}\b|^ *\*{{0,2}}{name}: ", text, flags=re.MULTILINE)

    return [name for name in parameters(value) if not named(name)]


def documentation(value):
    """Its docstring; of a class also those of its constructor and of the package's base classes."""
    if not inspect.isclass(value):
        return inspect.getdoc(value) or ""
    kinds = [kind for kind in value.__mro__ if kind.__module__.startswith("pruning_lab")]
    constructors = [vars(kind)["__init__"] for kind in kinds if "__init__" in vars(kind)]
    return "\n".join(inspect.getdoc(documented) or "" for documented in kinds + constructors)


@pytest.mark.parametrize("value", list(public_names()))
def test_every_public_name_documents_its_parameters(value):
    assert value.__doc__
    assert undocumented(value, documentation(value)) == []
