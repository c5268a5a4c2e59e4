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
    return [name for name in parameters(value) if not re.search(rf"`\*{{0,2}}{name}`", text)]


@pytest.mark.parametrize("value", list(public_names()))
def test_every_public_name_documents_its_parameters(value):
    text = inspect.getdoc(value) or ""
    if inspect.isclass(value) and "__init__" in vars(value):
        text += inspect.getdoc(value.__init__) or ""
    assert text
    assert undocumented(value, text) == []
