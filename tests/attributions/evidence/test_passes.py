"""Passes as they are counted and predicted, against torch's counter of operations and by hand."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from pruning_lab.attributions import ShapleyAttributionMetric
from pruning_lab.attributions.evidence.activations import run_together
from pruning_lab.attributions.evidence.removals import RemovalMetric, sets_of
from pruning_lab.attributions.evidence.weights import WeightGradientMetric
from pruning_lab.attributions.unit_groups import unit_groups_of, units_of_module
from pruning_lab.coupling.structure import find_structure
from pruning_lab.errors import UserError
from pruning_lab.models.resnet_cifar import ResNet
from pruning_lab.partial_forward.parts import gradients
from pruning_lab.partial_forward.small_maps import Products
from pruning_lab.profiling import passes
from pruning_lab.profiling.flops import count_flops, counting, flops_by_module
from pruning_lab.profiling.passes import Passes, ScoringCost, counted, measured

CONF = Path(__file__).parents[3] / "conf" / "metric"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
SAMPLES = 9


def conv_network():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 7), nn.ReLU(), nn.Linear(7, 3),
    )  # fmt: skip


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(128, 9), nn.ReLU(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3)
    )


class Hidden(nn.Module):
    """A model that cannot be traced: its control flow depends on the data."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        return self.layers(x if x.sum() < 1e9 else -x)


NETWORKS = {
    "conv": (conv_network, ["0", "4", "7"]),
    "one layer": (conv_network, ["4"]),
    "linear": (mlp, ["1", "3"]),
    "untraced": (lambda: Hidden(mlp()), ["layers.1", "layers.3"]),
}


def built(make):
    torch.manual_seed(0)
    return make().double().eval()


def batches():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 2, 8, 8, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (SAMPLES,), generator=generator)
    return list(zip(x.split(5), y.split(5), strict=True))


def metric(name, model, **options):
    config = OmegaConf.create({"seeds": {"score": 7}, "m": OmegaConf.load(CONF / f"{name}.yaml")})
    return instantiate(config.m)(model, batches(), F.cross_entropy, "cpu", **options)


def layers_of(model, names):
    return [units_of_module(model.get_submodule(name)) for name in names]


def skip_refused(used, unit_groups, after_activation):
    try:
        used.check(unit_groups, after_activation)
    except UserError as error:
        pytest.skip(str(error))


def by_numpy(left, right):
    return torch.tensor(left.numpy() @ right.numpy())


def counted_by_torch(work, monkeypatch):
    """FLOPs forward and back; a gradient of weights counts as forward, as the ledger has it.

    Checks count forward only.
    """
    gradient, back, checks = torch.autograd.grad, [], []

    def one_by_one(function):
        def looped(*rows):
            with monkeypatch.context() as patch:
                patch.setattr(torch.autograd, "grad", gradient)
                return torch.stack([function(*row) for row in zip(*rows, strict=True)])

        return looped

    with counting() as counter, monkeypatch.context() as patch:
        # whether products pay is asked by a convolution of its own
        patch.setattr("pruning_lab.partial_forward.cut.made_faster", lambda *_: set())
        # of many samples' gradients of the weights at once torch's counter counts too many
        patch.setattr("pruning_lab.attributions.evidence.weights.vmap", one_by_one)
        for module in (
            "attributions.criteria.shapley_exact",
            "partial_forward.first_layer",
        ):  # no part of the network
            patch.setattr(f"pruning_lab.{module}.product", by_numpy)

        def watched(*args, **kwargs):
            before = counter.get_total_flops()
            found = gradient(*args, **kwargs)
            back.append(counter.get_total_flops() - before)
            return found

        def checked(of, wanted):
            made = len(back)
            found = gradients(of, wanted)
            checks.extend(back[made:])
            del back[made:]
            return found

        patch.setattr(torch.autograd, "grad", watched)
        patch.setattr("pruning_lab.attributions.observation.checks.gradients", checked)
        work()
    return counter.get_total_flops() - sum(back) - sum(checks), sum(back)


def counted_by_ledger(work):
    passes = Passes()
    with counted(passes):
        work()
    return passes


def case_of(network, name):
    """A network, a criterion on it, its layers, and whether they are read after the activation."""
    make, names = NETWORKS[network]
    model = built(make)
    used, unit_groups = metric(name, model), layers_of(model, names)
    skip_refused(used, unit_groups, network != "untraced")
    return model, used, unit_groups, network != "untraced"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("network", NETWORKS)
def test_passes_are_the_operations_that_torch_counts(network, name, monkeypatch):
    model, used, unit_groups, after_activation = case_of(network, name)
    work = partial(used.estimate, unit_groups, after_activation)
    forward, backward = counted_by_torch(work, monkeypatch)
    passes = counted_by_ledger(work)
    flops = flops_by_module(model, (2, 8, 8))
    whole, first = sum(flops.values()), next(filter(None, flops.values()))
    if network == "untraced" and isinstance(used, WeightGradientMetric):
        assert (passes.forward + passes.checks) * whole >= forward  # nor what a layer takes
    else:
        assert (passes.forward + passes.checks) * whole == pytest.approx(forward, rel=1e-12)
    if network == "untraced":  # how far back a gradient goes is not known there
        assert passes.backward * (whole - first) >= backward
    else:
        assert passes.backward * (whole - first) == pytest.approx(backward, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_predicted_is_what_is_counted(network, name):
    _, used, unit_groups, after_activation = case_of(network, name)
    passes = counted_by_ledger(lambda: used.estimate(unit_groups, after_activation))
    found = used.predict(unit_groups, after_activation)
    assert found.backward == pytest.approx(passes.backward, rel=1e-12)
    if found.at_most:
        assert passes.forward <= found.forward <= 2 * passes.forward
    else:
        assert found.forward == pytest.approx(passes.forward, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "forward", "backward"),
    [("weight_norm", 0, 0), ("random", 0, 0), ("apoz", SAMPLES, 0), ("taylor", SAMPLES, SAMPLES),
     ("taylor_signed", SAMPLES, SAMPLES), ("sensitivity", SAMPLES, SAMPLES)],
)  # fmt: skip
def test_one_pass_over_the_data_is_as_many_passes_as_samples(name, forward, backward):
    model = built(conv_network)
    found = counted_by_ledger(
        lambda: metric(name, model).estimate(layers_of(model, ["0", "4", "7"]), True)
    )
    assert (found.forward, found.backward) == pytest.approx((forward, backward), rel=1e-12)


def test_what_only_looks_at_the_model_does_not_grow_with_the_data():
    model = built(conv_network)
    few, many = metric("taylor", model), metric("taylor", model)
    many.batches = type(many.batches)(3 * batches(), many.device)
    unit_groups = layers_of(model, ["0", "4"])
    counts = [
        counted_by_ledger(lambda each=each: each.estimate(unit_groups)) for each in (few, many)
    ]
    # trace and model run twice each with 4 samples; outputs of 2, 3, 2, 2, 2, 8, 2 are held
    # against each other; activations of 2 and of 3 are looked at
    assert [each.checks for each in counts] == [4 * 4 + 21 + 2 + 3] * 2
    assert [each.forward for each in counts] == [SAMPLES, 3 * SAMPLES]


def test_shapley_values_of_a_linear_layer_by_hand():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Softplus(), nn.Linear(4, 3), nn.Linear(3, 2)).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    used = ShapleyAttributionMetric(
        model, [(x, torch.zeros(5).long())], F.cross_entropy, "cpu", sv_samples=4, samples=5
    )
    passes = counted_by_ledger(lambda: used.estimate([units_of_module(model[0])], True))
    first, entry, rest = 6 * 4, 4 * 3, 3 * 2  # multiply-accumulates
    batch = 5 * first + 2 * 5 * (entry + rest) + (5 + 1) * entry  # with all, with none; by unit
    order = 5 * 3 * (2 * rest + entry / 4)  # 3 coalitions between all and none, there and back
    assert passes.forward == pytest.approx((batch + 2 * order) / (first + entry + rest), rel=1e-12)
    assert passes.backward == 0


def test_walks_take_less_where_units_are_dead_and_the_prediction_says_at_most():
    model = built(conv_network)
    unit_groups = layers_of(model, ["0"])
    before = counted_by_ledger(lambda: metric("shapley", model).estimate(unit_groups, True))
    model[1].bias.data[:4] = -100
    after = counted_by_ledger(lambda: metric("shapley", model).estimate(unit_groups, True))
    assert (
        after.forward < before.forward < metric("shapley", model).predict(unit_groups, True).forward
    )


@pytest.mark.parametrize("rule", [{"relative_error": 0.3}, {"evaluations": 3000}, {"seconds": 0.2}])
def test_sampling_by_a_rule_takes_at_most_what_is_predicted(rule):
    model = built(conv_network)
    used, unit_groups = metric("shapley", model, **rule), layers_of(model, ["4", "7"])
    passes = counted_by_ledger(lambda: used.estimate(unit_groups, True))
    found = used.predict(unit_groups, True)
    assert found.at_most
    assert passes.forward <= found.forward
    assert found.seconds == rule.get("seconds")


def test_given_orders_are_walked_one_way():
    model = built(conv_network)
    orders = np.stack([np.random.default_rng(seed).permutation(5) for seed in range(3)])
    used = ShapleyAttributionMetric(
        model, batches(), F.cross_entropy, "cpu", permutations=orders
    )  # fmt: skip
    passes = counted_by_ledger(lambda: used.estimate(layers_of(model, ["4"]), True))
    found = used.predict(layers_of(model, ["4"]), True)
    assert passes.forward <= found.forward <= 2 * passes.forward


def test_removals_are_predicted():
    model = built(conv_network)
    used = RemovalMetric(model, batches(), F.cross_entropy, "cpu", removed=sets_of(5, 2))
    passes = counted_by_ledger(lambda: used.estimate(layers_of(model, ["4"]), True))
    found = used.predict(layers_of(model, ["4"]), True)
    assert (found.forward, found.backward, found.at_most) == (
        pytest.approx(passes.forward, rel=1e-12), 0, False,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["apoz", "taylor", "shapley", "owen_gradient"])
def test_units_that_only_go_together_are_counted_and_predicted(name, monkeypatch):
    model = built(lambda: ResNet(8, num_classes=3, in_channels=2))
    structure = find_structure(model, (2, 8, 8))
    unit_groups = [unit_groups_of(model, group) for group in list(structure.groups.values())[:2]]
    used = metric(name, model, samples=2) if name in ("shapley", "owen_gradient") else None
    used = used or metric(name, model)
    work = partial(used.estimate, unit_groups, True)
    forward, backward = counted_by_torch(work, monkeypatch)
    passes, found = counted_by_ledger(work), used.predict(unit_groups, True)
    flops = flops_by_module(model, (2, 8, 8))
    whole, first = sum(flops.values()), next(filter(None, flops.values()))
    assert (passes.forward + passes.checks) * whole == pytest.approx(forward, rel=1e-12)
    assert passes.backward * (whole - first) == pytest.approx(backward, rel=1e-12)
    assert found.backward == pytest.approx(passes.backward, rel=1e-12)
    assert passes.forward <= found.forward * (1 + 1e-12)


def test_products_for_small_maps_count_as_the_layer_that_they_stand_for(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 7, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(7, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(576, 3),
    ).double()  # fmt: skip
    used, ran, forward = metric("shapley_exact", model), [], Products.forward
    monkeypatch.setattr(Products, "forward", lambda *a: ran.append(len(a[1])) or forward(*a))
    passes = counted_by_ledger(lambda: used.estimate(layers_of(model, ["0"]), True))
    assert sum(ran) >= SAMPLES * 2**7
    assert passes.forward == pytest.approx(used.predict(layers_of(model, ["0"]), True).forward)
    share = flops_by_module(model, (2, 8, 8))["0"] / count_flops(model, (2, 8, 8))
    assert passes.forward == pytest.approx(SAMPLES * (share + 2**7 * (1 - share)))


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_the_same_bit_for_bit_whether_anybody_listens(name):
    model = built(conv_network)
    unit_groups = layers_of(model, ["0", "4", "7"])
    skip_refused(metric(name, model), unit_groups, True)
    plain = metric(name, model).estimate(unit_groups, True)
    with measured(torch.device("cpu")):
        listened = metric(name, model).estimate(unit_groups, True)
    for one, other in zip(plain, listened, strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)


def test_criteria_that_run_together_take_one_pass():
    model = built(conv_network)
    metrics = [metric(name, model) for name in ("apoz", "taylor", "sensitivity")]
    for each in metrics:
        each.data_generator = metrics[0].data_generator
    with measured(torch.device("cpu")) as found:
        run_together(metrics, layers_of(model, ["0", "4"]))
    assert (found.forward, found.backward) == pytest.approx((SAMPLES, SAMPLES), rel=1e-12)


def test_a_criterion_that_cannot_tell_predicts_nothing():
    class Unknown(ShapleyAttributionMetric):
        def _predict(self, unit_groups, after_activation):
            return super(ShapleyAttributionMetric, self)._predict(unit_groups, after_activation)

    model = built(conv_network)
    used = Unknown(model, batches(), F.cross_entropy, "cpu")
    assert used.predict(layers_of(model, ["4"])) is None


def test_a_cost_is_the_same_after_a_round_trip_through_json():
    found = ScoringCost(0.1 + 0.2, 3, 5, 0.123456789, 12345)
    assert ScoringCost(**json.loads(json.dumps(asdict(found)))) == found
    unknown = ScoringCost(peak_bytes=None)
    assert ScoringCost(**json.loads(json.dumps(asdict(unknown)))) == unknown


def test_what_is_measured_is_the_passes_the_time_and_the_peak_of_memory():
    with measured(torch.device("cpu")) as found:
        passes.forward(3, 0.5)
        passes.backward(4)
        with passes.checking():
            passes.forward(2)
        held = torch.ones(16 * 2**20)  # 64 MiB, gone before the end
        del held
    assert (found.forward, found.backward, found.checks) == (1.5, 4, 2)
    assert found.seconds > 0
    if Path("/proc/self/clear_refs").exists():
        assert 60 * 2**20 < found.peak_bytes < 200 * 2**20
    else:
        assert found.peak_bytes is None
    passes.forward(1)
    assert found.forward == 1.5  # nobody listens any more


def test_memory_is_unknown_where_the_system_does_not_tell(monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refused)
    with measured(torch.device("cpu")) as found:
        pass
    assert found.peak_bytes is None


def test_what_was_counted_before_a_failure_stays_and_listening_ends():
    counts = Passes()

    def fails():
        passes.forward(2)
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"), counted(counts):
        fails()
    assert counts.forward == 2
    assert not passes.listens()
