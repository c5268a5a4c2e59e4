"""docs/own_criterion.md, followed to the letter."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab import tracking
from pruning_lab.config.build import find_target
from tests.commands import python

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/own_criterion.md").read_text()


def block(language):
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return dict(fences)[language]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the two files under the names that the page gives them."""
    folder = tmp_path_factory.mktemp("own")
    for name, language in (("loudest.py", "python"), ("my_conf/metric/loudest.yaml", "yaml")):
        assert f"`{name}`" in PAGE
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(block(language))
    return folder


def run(command, place):
    """Run a command of a page, with little fine-tuning."""
    words = shlex.split(command)
    assert words[0] == "python"
    if words[1:3] == ["-m", "pruning_lab"]:
        words.append("finetune.steps=8")
    done = python(place, *words[1:])
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_the_commands_do_what_the_page_says(place):
    prune, plan, judge = block("").splitlines()
    assert "Scoring 2 layers by loudest" in run(prune, place)
    frame = tracking.find_runs(f"sqlite:///{place}/mlflow.db", ["pruning_lab"]).frame
    assert (frame["run_id"].nunique(), set(frame["metric"])) == (1, {"loudest"})
    assert "scored by loudest" in run(plan, place)
    told = run(judge, place)
    rows = {line.split("|")[1].strip() for line in told.splitlines() if line.startswith("| ")}
    assert {"loudest", "Taylor", "Weight norm", "Random orders"} < rows


def test_its_scores_by_hand(place, monkeypatch):
    monkeypatch.syspath_prepend(place)
    kind = find_target("loudest.LoudestAttributionMetric", "metric")
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-3.0]]))
    batches = [(torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1]))]
    found = kind(model, batches, F.cross_entropy, "cpu").run(model[0])
    np.testing.assert_allclose(found, [1.5, 4.5])


def test_every_base_and_example_is_there():
    rows = re.findall(
        r"^\| [^|]+ \| `(\w+)\.(\w+)` \| [^|]+ \| `(\w+)` \|$", PAGE, flags=re.MULTILINE
    )
    assert len(rows) == 6
    for module, name, example in rows:
        find_target(f"pruning_lab.attributions.evidence.{module}.{name}", "base")
        source = (ROOT / f"pruning_lab/attributions/criteria/{example}.py").read_text()
        assert re.search(rf"class \w+\({name}\):", source)
