"""The commands of experiments/ground_truth fit the program."""

import shlex
from pathlib import Path

from hydra import compose, initialize_config_module

from pruning_lab import criteria
from pruning_lab.setup import plain
from pruning_lab.truth import Settings

PAGE = (Path(__file__).parents[2] / "experiments/ground_truth/README.md").read_text()


def test_the_command_composes_and_its_criteria_exist():
    (line,) = (
        each for each in PAGE.splitlines() if each.startswith("python -m pruning_lab.truth -m")
    )
    words = [word for word in shlex.split(line)[4:] if not word.startswith("hydra.")]
    words[0] = words[0].partition(",")[0]
    with initialize_config_module("pruning_lab.conf", version_base="1.3"):
        truth = plain(compose("truth", words).truth)
    assert words[0] == "seed=0"
    assert set(truth["criteria"]) <= set(criteria.names())
    names = ("shares", "draws", "sizes", "sets", "greedy")
    settings = Settings(**{name: truth[name] for name in names})
    assert (list(settings.shares), settings.draws) == ([0.1, 0.3, 0.5], 32)
