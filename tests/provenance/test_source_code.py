"""Modules of installed packages are told apart from the user's code."""

from pathlib import Path

import scipy.special

from pruning_lab.provenance import source_code


def test_a_compiled_module_of_a_package_is_installed_under_any_name(monkeypatch):
    monkeypatch.setattr(source_code, "INSIDE", ())  # as if the packages were another environment's
    packages = str(Path(scipy.__file__).parents[1])
    monkeypatch.setattr(source_code, "_lent_places", lambda: {packages})
    assert source_code.is_installed("_cyutility")
    assert source_code.is_installed("scipy.special")
    assert not source_code.is_installed("tests.running")
