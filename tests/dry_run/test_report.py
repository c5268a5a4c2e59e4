"""What is said of an experiment before it runs, against what happens."""

import copy
import re

import pytest
import torch
from torch import nn

from pruning_lab.dry_run.estimate import Forecast
from pruning_lab.dry_run.report import dry_run
from pruning_lab.profiling.flops import flops_by_module
from pruning_lab.profiling.passes import Passes, counted
from pruning_lab.pruner.saved_model import save_state
from pruning_lab.runtime.terminal import amount, duration, kind_of, table
from tests.running import experiment, two_steps


def rows_of(text, title):
    """The cells of a section's table by what stands first, the heads among them."""
    section = text[text.index(f"\n{title}") :].split("\n\n")[0].splitlines()[3:]
    cells = [re.split(r"\s{2,}", line.strip()) for line in section]
    return {first: rest for first, *rest in cells}


def test_a_dry_run_tells_layers_criteria_steps_and_all(tmp_path):
    made = two_steps(tmp_path, "metric=shapley")
    text = dry_run(made.setup)
    flops = flops_by_module(made.model, made.splits.input_size)
    layers = rows_of(text, "MLP on ")
    assert list(layers) == ["layer", *made.network.layers]
    for name, layer in made.network.layers.items():
        share = 100 * flops[name] / made.network.original.flops
        assert layers[name] == ["Linear", str(len(layer.weight)), f"{share:.1f} %"]
    criteria, samples = rows_of(text, "Criteria on the baseline"), len(made.splits.score)
    assert set(criteria) == {"criterion", *made.metrics}
    assert criteria["weight_norm"] == ["0", "0", "-"]
    assert criteria["taylor"][:2] == [str(samples), str(samples)]
    assert criteria["taylor"][-1] == "one pass with apoz, sensitivity"
    assert criteria["apoz"][:2] == [str(samples), "0"]
    assert criteria["shapley"][-1] == "at most"
    steps = rows_of(text, "Steps (of the flops), scored by shapley: at most")
    assert steps["1"][0] == f"{100 * made.steps[0].ratio:.1f} %"
    target, gone, scored = steps["2"][:3]
    assert (target, scored) == ("50.0 %", "2")
    assert 50 <= float(gone.removesuffix(" %")) < 60  # units are whole
    assert "as above" in steps["1"]


def test_all_is_the_sum_of_its_parts_and_one_pass_counts_once(tmp_path):
    made = two_steps(tmp_path, "metric=taylor", "attributions=cheap", "controls.untuned=true")
    found = rows_of(dry_run(made.setup), "In all")
    samples, train = len(made.splits.score), len(made.splits.train)
    both = len(made.splits.val) + len(made.splits.test)
    expected = {
        "training the baseline": (5 * train, 5 * train),
        "criteria on the baseline": (samples, samples),
        "scoring, steps 2 to 2": (samples, samples),
        "fine-tuning": (2 * train, 2 * train),
        "accuracy on val and test": (5 * both, 0),
        "the untuned track": (samples + 3 * both, samples),
    }
    expected["in all"] = tuple(map(sum, zip(*expected.values(), strict=True)))
    assert {k: v[:2] for k, v in found.items() if k != "forward"} == {
        k: [f"{there:,}", f"{back:,}"] for k, (there, back) in expected.items()
    }


def test_later_steps_are_predicted_on_networks_of_about_their_size(tmp_path):
    made = two_steps(tmp_path, "metric=shapley", "schedule.target=0.6")
    told = Forecast(made.setup)
    passes = []
    for stage, step in zip(told.stages, made.steps, strict=True):
        unit_groups = made.network.unit_groups(step.layers, made.schedule.coupled)
        counter = Passes()
        with counted(counter):
            made.metrics["shapley"].estimate(list(unit_groups.values()), True)
        assert counter.forward <= stage.scoring.forward < 2 * counter.forward
        scores = {name: torch.rand(len(each)).numpy() for name, each in
                  made.network.groups().items()}  # fmt: skip
        made.network.pruner.prune_groups(made.network.plan(scores, step, made.schedule))
        assert stage.size == made.network.size()
        passes.append(counter.forward)
    assert passes[0] > passes[1]


def test_nothing_is_trained_and_the_network_stays_as_it_is(tmp_path):
    made = two_steps(tmp_path, "metric=taylor", "controls.scratch=true")
    state, random = copy.deepcopy(made.model.state_dict()), torch.get_rng_state()
    modes = [module.training for module in made.model.modules()]
    text = dry_run(made.setup)
    assert "what is left, from scratch" in text
    assert all(torch.equal(state[key], value) for key, value in made.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in made.model.modules()] == modes
    assert all(parameter.grad is None for parameter in made.model.parameters())
    assert not (tmp_path / "baselines").exists()
    assert not (tmp_path / "outputs").exists()


def test_no_line_of_a_table_is_longer_than_100_columns(tmp_path):
    base = ["model=resnet20", "dataset=synthetic", "attributions=cheap", "threads=1"]
    text = dry_run(experiment(tmp_path, "metric=apoz", "schedule.steps=1", base=base).setup)
    tables = text[text.index("ResNet on ") :].splitlines()
    assert max(map(len, tables)) <= 100
    layers = rows_of(text, "ResNet on ")
    assert layers["conv"][:2] == ["Conv2d 3x3", "16"]
    assert layers["conv"][-1].endswith("more")


def test_what_scores_below_0_is_not_known_before_so_nothing_is_taken_off(tmp_path):
    made = experiment(tmp_path, "schedule=negative_scores", "metric=taylor_signed")
    told = Forecast(made.setup)
    assert [stage.size for stage in told.stages] == [made.network.original] * 2
    steps = rows_of(dry_run(made.setup), "Steps, scored by taylor_signed")
    assert [steps[number][:3] for number in "12"] == [["below 0", "unknown", "1"]] * 2


def test_a_share_of_each_layer_is_known_before(tmp_path):
    made = experiment(tmp_path, "schedule=layer_by_layer", "schedule.share=0.5", "metric=taylor")
    told = Forecast(made.setup)
    whole = made.network.original.units
    last, first = (
        len(made.network.groups([name])[name]) // 2 for name in [*made.network.layers][::-1]
    )
    assert [stage.size.units for stage in told.stages] == [whole - last, whole - last - first]
    steps = rows_of(
        dry_run(made.setup), "Steps (target: of one layer, the last first; removed: of all units)"
    )
    gone = [100 * taken / whole for taken in (last, last + first)]
    assert [steps[n][:2] for n in "12"] == [["50.0 %", f"{each:.1f} %"] for each in gone]


def test_given_weights_are_not_trained(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_state(two_steps(tmp_path, "metric=taylor").model, path)
    made = two_steps(tmp_path, "metric=taylor", f"baseline.checkpoint={path}")
    assert "training the baseline" not in rows_of(dry_run(made.setup), "In all")


def test_a_limit_in_seconds_bounds_the_time(tmp_path):
    made = two_steps(
        tmp_path,
        "metric=shapley",
        "metric.seconds=0.25",
        "attributions=none",
        "metric.samples=null",
        "dataset.score=400",
        "model.hidden=[128,96]",
    )
    assert rows_of(dry_run(made.setup), "Criteria on the baseline")["shapley"][2] == "0.2 s"


def test_a_criterion_that_cannot_tell_is_unknown(tmp_path, monkeypatch):
    made = two_steps(tmp_path, "metric=taylor", "attributions=none")
    monkeypatch.setattr(type(made.metrics["taylor"]), "_predict", lambda *_: None)
    text = dry_run(made.setup)
    assert rows_of(text, "Criteria on the baseline")["taylor"] == ["unknown"] * 3
    assert rows_of(text, "Steps")["2"][6:9] == ["unknown"] * 3


def test_a_password_is_not_shown(tmp_path):
    made = two_steps(tmp_path, "metric=taylor", "attributions=none")
    made.config.tracking.uri = "http://me:secret@host:5000"
    assert "secret" not in dry_run(made.setup)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "-"), (0.04, "< 0.1 s"), (1.25, "1.2 s"), (42.4, "42 s"), (100, "2 min"),
     (98 * 60, "98 min"), (7000, "1.9 h"), (200_000, "2.3 days")],
)  # fmt: skip
def test_durations_are_read_at_a_glance(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 "), (999, "999 "), (11e6, "11.0 M"), (4.56e8, "456 M"),
                          (1.23e9, "1.23 G")],
)  # fmt: skip
def test_amounts_have_three_digits(number, words):
    assert amount(number) == words


def test_layers_are_named_by_kind_and_kernel():
    assert kind_of(nn.Linear(2, 3)) == "Linear"
    assert kind_of(nn.Conv2d(4, 4, 3, groups=4)) == "Conv2d 3x3, grouped"


def test_tables_are_aligned_and_cut_at_100_columns():
    lines = table(["name", "n"], [["a", "1"], ["bcdef", "20"]], "lr")
    assert lines == ["name    n", "a       1", "bcdef  20"]
    (_, long) = table(["name"], [["x" * 120]], "l")
    assert long == "x" * 97 + "..."
