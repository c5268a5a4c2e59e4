"""What `pip install .` carries."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "pruning_lab").rglob("__init__.py")
    }
    assert set(listed) == found | {"pruning_lab.conf"}


def test_the_wheel_carries_every_module_and_every_configuration(tmp_path):
    source = tmp_path / "source"  # a copy: building leaves files behind
    for folder in ("pruning_lab", "conf"):
        shutil.copytree(ROOT / folder, source / folder)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source / file)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", tmp_path, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("pruning_lab-*.whl")
    carried = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "pruning_lab").rglob("*.py")}
    configs = {
        f"pruning_lab/conf/{path.relative_to(ROOT / 'conf')}"
        for path in (ROOT / "conf").rglob("*.yaml")
    }
    assert len(configs) > 20
    assert modules | configs | {"pruning_lab/compare/report.html"} <= carried
