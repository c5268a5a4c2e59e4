"""A room imports only rooms above it."""

import ast
from pathlib import Path

import pruning_lab

ROOMS = [
    "errors",
    "random_streams",
    "composition",
    "ranks",
    "atomic",
    "modes",
    "sources",
    "environment",
    "observed",
    "models",
    "datasets",
    "ledger",
    "graph",
    "cost",
    "attributions",
    "progress",
    "prunable",
    "schedules",
    "plan",
    "pruner",
    "network",
    "checkpoint",
    "data_parallel",
    "training",
    "track",
    "pictures",
    "rehearsal",
    "setup",
    "criteria",
    "identity",
    "resume",
    "baseline",
    "tracking",
    "compare",
    "study",
    "plain_text",
    "record",
    "speed",
    "dry_run",
    "runner",
    "truth",
    "sweep",
    "cache",
    "__main__",
]
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
    assert {room(path) for path in PACKAGE.rglob("*.py")} - {"__init__"} == set(ROOMS)


def test_imports_go_upwards_only():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in PACKAGE.rglob("*.py")
        if room(path) in ROOMS
        for other in imported_rooms(path)
        if other in ROOMS and ROOMS.index(other) > ROOMS.index(room(path))
    ]
    assert wrong == []


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
