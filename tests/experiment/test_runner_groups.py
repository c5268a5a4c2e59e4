"""Experiments on a network with branches: groups of layers go together, step by step."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.errors import UserError
from pruning_lab.experiment import resume
from pruning_lab.experiment.scoring import score
from pruning_lab.graph.kinds import units_of
from pruning_lab.pruner.saved_model import load_pruned
from pruning_lab.pruning.plan import make_plan
from pruning_lab.records.step import MAIN
from pruning_lab.tracking import read_estimates
from tests.running import TWO_STEPS, experiment

BRANCHES = [
    "model=custom",
    f"model._target_={__name__}.Branches",
    "dataset=synthetic",
    "baseline.training.epochs=1",
    "attributions=none",
    "threads=1",
    *TWO_STEPS,
]


class Branches(nn.Module):
    """A residual block, a layer that runs twice, and one that runs only in training."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 12, 3, padding=1)
        self.outer, self.norm = nn.Conv2d(12, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.twice, self.fc = nn.Linear(8, 8), nn.Linear(8, 6)
        self.head, self.aside = nn.Linear(6, num_classes), nn.Linear(6, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = (x + self.norm(self.outer(F.relu(self.inner(x))))).mean((2, 3))
        x = F.relu(self.fc(self.twice(F.relu(self.twice(x)))))
        return self.head(x) + 0.1 * self.aside(x) if self.training else self.head(x)


def test_layers_of_a_group_keep_the_same_units(tmp_path, caplog):
    caplog.set_level("INFO")
    done = experiment(tmp_path, base=BRANCHES)
    # "twice" has no single place to be read at, but its units are those of "stem" and "outer"
    assert list(done.network.layers) == ["stem", "inner", "outer", "fc"]
    assert "Pruned with 'stem', not scored: 'twice' runs 2 times" in caplog.text
    assert "'head' keeps all units, since the caller of the model sees" in caplog.text
    assert "Left alone: " not in caplog.text
    done.run()
    kept = done.network.pruner.kept
    assert kept["stem"] == kept["outer"] == kept["twice"]
    assert len(kept["stem"]) < 8
    last = done.record.of(MAIN)[-1]
    assert last["width/stem"] == last["width/outer"] == len(kept["stem"])
    assert last["width/twice"] == last["width/stem"]
    assert last["units"] == sum(last[f"width/{layer}"] for layer in (*done.network.layers, "twice"))
    fresh = load_pruned(Branches(), done.output / "pruned_model").eval()
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(fresh(x), done.model.eval()(x))


@pytest.mark.parametrize(("metric", "aggregate"), [("weight_norm", "sum"), ("random", "first")])
def test_the_plan_gets_one_score_a_player(metric, aggregate, tmp_path, monkeypatch):
    seen = []

    def spy(scores, *rest):
        seen.append(scores)
        return make_plan(scores, *rest)

    monkeypatch.setattr("pruning_lab.experiment.network.make_plan", spy)
    done = experiment(tmp_path, f"metric={metric}", "schedule.coupled=sum", base=BRANCHES)
    start = len(seen)
    main = done.run_of(MAIN, done.network, done.conditions)
    found, _ = score(main.metric, main.unit_groups(tuple(done.network.layers)), done.device)
    scores = {layer: each.scores for layer, each in found.items()}
    main.choose(scores, done.steps[0])
    expected = scores["stem"] + scores["outer"] if aggregate == "sum" else scores["stem"]
    assert seen[start]["stem"].tolist() == expected.tolist()
    assert seen[start]["inner"].tolist() == scores["inner"].tolist()


def test_units_that_only_go_together_are_scored_as_one_player(tmp_path):
    done = experiment(
        tmp_path, "metric=shapley", "metric.reduction=mean", "metric.samples=6",
        "metric.sv_samples=4", base=BRANCHES,
    )  # fmt: skip
    assert done.schedule.coupled == "together"
    done.run()
    uri, run_id = done.config.tracking.uri, done.record.run.run_id
    for number in (1, 2):
        (found,) = read_estimates(uri, run_id, number).values()
        before = done.record.of(MAIN)[number - 1]
        assert {group: len(each.scores) for group, each in found.items()} == {
            group: before[f"width/{group}"] for group in ("stem", "inner", "fc")
        }
        assert all(each.sampling_error.shape == each.scores.shape for each in found.values())
    kept = done.network.pruner.kept
    assert kept["stem"] == kept["outer"] == kept["twice"]
    first = read_estimates(uri, run_id, 1)["shapley"]["stem"].scores
    width = done.record.of(MAIN)[1]["width/stem"]
    assert set(kept["stem"]) <= set(first.argsort()[-width:].tolist())  # the best of all players


def test_the_score_of_a_player_is_that_of_a_network_without_all_its_units(tmp_path):
    done = experiment(
        tmp_path, "metric=shapley", "metric.reduction=mean", "metric.samples=6",
        "metric.sv_samples=4", base=BRANCHES,
    )  # fmt: skip
    main = done.run_of(MAIN, done.network, done.conditions)
    found, _ = score(main.metric, main.unit_groups(tuple(done.network.layers)), done.device)
    x, y = next(iter(done.batches))
    with torch.no_grad():
        whole = F.cross_entropy(done.model.eval()(x[:6]), y[:6])
        for layer in ("stem", "outer", "twice"):
            getattr(done.model, layer).register_forward_hook(lambda *a: 0 * a[-1])
        none = F.cross_entropy(done.model(x[:6]), y[:6])
    assert found["stem"].scores.sum() == pytest.approx(float(none - whole), abs=1e-5)


def test_widths_are_multiples_where_they_are_wanted(tmp_path):
    done = experiment(tmp_path, "schedule.multiple_of=4", base=BRANCHES)
    done.run()
    assert {units % 4 for units in done.network.widths().values()} <= {
        0,
        2,
    }  # 6, as long as none goes
    assert done.network.widths()["stem"] == 4


def test_a_group_that_has_one_player_left_stays_as_it_is(tmp_path):
    done = experiment(tmp_path, "schedule.target=0.98", base=BRANCHES)
    done.run()
    assert done.record.of(MAIN)[-1]["removed_flops"] >= 0.98
    assert min(done.network.widths().values()) == 1


class Unread(nn.Module):
    """Half of the players of "once" have units of "twice" and "both" alone, which are not read."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.once, self.twice, self.both = nn.Linear(64, 3), nn.Linear(64, 3), nn.Linear(64, 6)
        self.free, self.head = nn.Linear(6, 5), nn.Linear(5, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        joined = torch.cat([self.once(x), self.twice(x) * self.twice(-x)], 1)
        return self.head(F.relu(self.free(F.relu(joined + self.both(x) * self.both(-x)))))


def test_a_group_that_cannot_be_scored_is_left_alone_and_told_of(tmp_path, caplog):
    caplog.set_level("INFO")
    done = experiment(
        tmp_path, f"model._target_={__name__}.Unread", "schedule.target=0.01", base=BRANCHES
    )
    assert "Left alone: 'once' is coupled to units that cannot be scored." in caplog.text
    assert "Left alone: 'twice' runs 2 times" in caplog.text
    assert "Left alone: 'both' runs 2 times" in caplog.text
    done.run()
    assert done.network.pruner.kept.keys() == done.network.widths().keys() == {"free"}


class Parting(nn.Module):
    """Cuts part a group: where units of "b" meet some of "c" and some of "d", they hold both."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 1), nn.Conv2d(1, 8, 1)
        self.c, self.d = nn.Conv2d(1, 10, 1), nn.Conv2d(1, 6, 1)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.a(x), self.b(x)], 1) + torch.cat([self.c(x), self.d(x)], 1)
        return self.head(F.relu(x).mean((2, 3)))


class Renamed(nn.Module):
    """One of two units of "l" can go; without it, the group is no longer named after "l"."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.l, self.n, self.k = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 8, 1), nn.Conv2d(1, 9, 1)
        self.head = nn.Linear(10, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        named = torch.cat([self.l(x), self.n(x)], 1)
        other = torch.cat([F.relu(x[:, :1]), self.k(x)], 1)
        return self.head(F.relu(named + other).mean((2, 3)))


def changing(folder, network, seed):
    target = 0.45 if network is Counting else 0.7
    return experiment(
        folder, f"model._target_={__name__}.{network.__name__}", "metric=random",
        "schedule.steps=6", f"schedule.target={target}", "schedule.scope=global",
        "finetune.epochs=0", f"seeds.score={seed}", base=BRANCHES,
    )  # fmt: skip


@pytest.mark.parametrize(("network", "name"), [(Parting, "a"), (Renamed, "l")])
def test_a_group_that_a_cut_changes_goes_on_being_pruned(network, name, tmp_path):
    changed = []
    for seed in range(3):
        done = changing(tmp_path / str(seed), network, seed)
        assert list(done.network.groups()) == [name]
        done.run()
        assert done.record.of(MAIN)[-1]["removed_flops"] >= 0.7
        before = {layer: units_of(module) for layer, module in network().named_children()}
        assert all(
            width < before[layer] for layer, width in done.network.widths().items() if layer != "l"
        )
        changed.append(list(done.network.groups()) != [name])
    assert any(changed)


class Counting(nn.Module):
    """Its forward writes an attribute; a grouped convolution becomes a plain one."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.calls = 0
        self.a = nn.Conv2d(1, 16, 3, padding=1)
        self.d = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.hidden, self.head = nn.Linear(16, 64), nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.head(F.relu(self.hidden(F.relu(self.d(F.relu(self.a(x)))).mean((2, 3)))))


@pytest.mark.parametrize("network", [Parting, Renamed, Counting])
def test_a_run_resumes_after_a_cut_that_changed_the_groups(network, tmp_path, monkeypatch):
    whole = changing(tmp_path / "whole", network, 0)
    whole.run()
    counts, write = iter(range(100)), resume._write

    def interrupted(*content):
        write(*content)
        if next(counts) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resume, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            changing(tmp_path / "again", network, 0).run()
    again = changing(tmp_path / "again", network, 0)
    again.run()
    assert again.network.pruner.kept == whole.network.pruner.kept
    for row, other in zip(again.record.of(MAIN), whole.record.of(MAIN), strict=True):
        assert row["test_loss_after"] == other["test_loss_after"]


class Nothing(nn.Module):
    """All units are seen by the caller."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.only = nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.only(x.flatten(1))


def test_a_model_without_units_that_can_go_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no layer whose units can be removed"):
        experiment(tmp_path, f"model._target_={__name__}.Nothing", base=BRANCHES)


class TimeFirst(nn.Module):
    """A layer in the middle whose output has the samples in its second dimension."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x)).flatten(2).permute(2, 0, 1)
        return self.head(F.relu(self.inner(x)).mean(0))


def test_a_layer_that_cannot_be_read_sample_by_sample_is_left_alone(tmp_path, caplog):
    caplog.set_level("INFO")
    time_first = f"model._target_={__name__}.TimeFirst"
    done = experiment(tmp_path, time_first, "metric=shapley", base=BRANCHES)
    assert list(done.network.layers) == list(done.network.pruned) == ["stem"]
    assert "Left alone: 'inner' does not give its samples in the first dimension: of" in caplog.text
    done.run()
    last = done.record.of(MAIN)[-1]
    assert last["width/stem"] == last["units"] < 8
