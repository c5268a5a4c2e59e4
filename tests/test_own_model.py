"""docs/own_model.md, followed to the letter."""

import re
from pathlib import Path

from pruning_lab.tracking import read_runs
from tests.test_own_criterion import run

PAGE = (Path(__file__).parents[1] / "docs/own_model.md").read_text()


def test_the_commands_do_what_the_page_says(tmp_path):
    code, commands, look = re.findall(r"^```(?:\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert "`small.py`" in PAGE
    (tmp_path / "small.py").write_text(code)
    plan, once, sweep = commands.splitlines()
    once = run(once, tmp_path)
    assert "'classifier.3' keeps all units, since the caller of the model sees" in once
    planned = run(plan, tmp_path)
    assert "48 removable units" in planned
    assert "Finished already" in planned
    assert "All 4 jobs finished" in run(sweep, tmp_path)
    runs = read_runs(f"sqlite:///{tmp_path}/mlflow.db", "pruning_lab")
    first = runs[runs["step"] == 0]
    assert sorted(first["width/features.0"]) == [8, 8, 16, 32, 32]
    assert "classifier.1: 32 x classifier.1" in run(look.strip(), tmp_path)
