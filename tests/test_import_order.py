"""A room imports only rooms above it."""

import ast
import re
from pathlib import Path

import pruning_lab

ROOT = Path(__file__).parents[1]
MAP = (ROOT / "ARCHITECTURE.md").read_text()
ROOMS = re.findall(r"^\| `(\w+)` \|", MAP.partition("\n## One run")[0], re.MULTILINE)
"""The rooms in their order, from the map."""

INNER = ["estimation", "observation", "unit_groups", "base", "evidence", "criteria", "__init__"]
"""Of the attributions, which are a house of their own."""

PACKAGE = Path(pruning_lab.__file__).parent


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            if parts[0] == "pruning_lab" and len(parts) > 1:
                yield parts[1]


def test_every_room_stands_in_the_list():
    assert len(ROOMS) == len(set(ROOMS))
    assert {room(path) for path in PACKAGE.rglob("*.py")} - {"__init__"} == set(ROOMS)


def test_every_file_that_the_map_names_is_there():
    _, _, rest = MAP.partition("\n## One run")
    files = re.findall(r"^\| `(\w+)` \|", rest, re.MULTILINE)
    paths = [f"experiment/{name}.py" for name in files]
    paths += [name for name in re.findall(r"`([\w/]+\.py)`", rest) if "NAME" not in name]
    assert len(paths) > 20
    assert [path for path in paths if not (PACKAGE / path).is_file()] == []


def test_imports_go_upwards_only():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in PACKAGE.rglob("*.py")
        if room(path) in ROOMS
        for other in imported_rooms(path)
        if other in ROOMS and ROOMS.index(other) > ROOMS.index(room(path))
    ]
    assert wrong == []


def test_the_inner_rooms_of_the_attributions_stand_in_order():
    inside = PACKAGE / "attributions"
    for path in inside.rglob("*.py"):
        own = path.relative_to(inside).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            parts = (getattr(node, "module", None) or "").split(".")
            if isinstance(node, ast.ImportFrom) and parts[:2] == ["pruning_lab", "attributions"]:
                imported = parts[2] if len(parts) > 2 else "__init__"
                assert INNER.index(imported) <= INNER.index(own), f"{path} imports {imported}"


def test_no_room_is_called_utils():
    vague = {"utils", "helpers", "manager", "engine", "registry"}
    assert not vague & {path.stem for path in PACKAGE.rglob("*")}


def test_only_one_room_knows_mlflow():
    knows = {
        room(path)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom | ast.Import)
        and any(
            name.split(".")[0] == "mlflow"
            for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        )
    }
    assert knows == {"tracking"}
