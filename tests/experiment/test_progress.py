"""The bar over the evaluations of a criterion: what was planned, done, and is known of errors."""

from io import StringIO

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from pruning_lab.attributions import ShapleyAttributionMetric
from pruning_lab.attributions.unit_groups import units_of_module
from pruning_lab.experiment import scoring
from pruning_lab.experiment.scoring import ScoringBar


@pytest.fixture
def shown(monkeypatch):
    """What is written; without a terminal the bar would be off."""
    written = StringIO()

    def visible(**settings):
        return tqdm(**settings | {"disable": False, "file": written, "mininterval": 0})

    monkeypatch.setattr(scoring, "tqdm", visible)
    return written


def test_the_total_is_what_was_planned_times_the_work_of_each(shown):
    with ScoringBar("shapley", [2.0, 5.0]) as bar:
        bar.planned(0, 10)
        bar.planned(1, 10)
        assert bar._bar.total == 2 * 10 + 5 * 10
        bar.planned(1, 4)  # another round
        assert bar._bar.total == 2 * 10 + 5 * 14


def test_what_is_done_counts_by_its_work(shown):
    with ScoringBar("shapley", [2.0, 5.0]) as bar:
        bar.planned(0, 10)
        bar.planned(1, 10)
        bar.done(0, 10)
        bar.done(1, 3)
        assert bar._bar.n == 2 * 10 + 5 * 3
        bar._bar.refresh()
        assert "shapley  50%" in shown.getvalue()


def test_the_largest_of_the_newest_errors_is_shown(shown):
    with ScoringBar("shapley", [1.0, 1.0]) as bar:
        for index, error in ((0, 0.5), (1, 0.25), (0, 0.125)):
            bar.error(index, error)
        assert bar._bar.postfix == "error up to 25.0 % of a layer's scores"


def test_the_bar_is_closed_after_a_failure(shown):
    with pytest.raises(RuntimeError, match="the loss fails"), ScoringBar("shapley", [1.0]) as bar:
        raise RuntimeError("the loss fails")
    assert bar._bar.disable


def test_a_bar_without_a_terminal_writes_nothing(capsys):
    with ScoringBar("shapley", [2.0]) as bar:
        bar.planned(0, 10)
        bar.done(0, 10)
        bar.error(0, 0.1)
    assert capsys.readouterr().err == ""


def test_scoring_in_rounds_fills_the_bar(shown):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    data = TensorDataset(torch.randn(7, 3), torch.randint(0, 2, (7,)))
    metric = ShapleyAttributionMetric(
        model, DataLoader(data, 4), F.cross_entropy, "cpu", evaluations=2000
    )
    layers = [units_of_module(model[index]) for index in (0, 2)]
    with ScoringBar("shapley", [3.0, 1.0]) as bar:
        metric.estimate(layers, True, bar)
        assert bar._bar.n == bar._bar.total > 2 * 3 * 7 * (3 * 4 + 6)  # more than the first round


def test_an_error_that_is_not_known_is_not_shown(shown):
    with ScoringBar("shapley", [1.0, 1.0]) as bar:
        bar.error(0, float("nan"))
        assert "nan" not in str(bar._bar.postfix)
