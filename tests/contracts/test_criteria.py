"""What every criterion in conf/metric promises, found by globbing."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pruning_lab.attributions.unit_groups import units_of_module
from pruning_lab.errors import UserError

CONF = Path(__file__).parent.parent.parent / "conf" / "metric"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
SAMPLES, LAYERS = 12, {"0": 4, "4": 5, "10": 6}


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.3),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(20, 6),
        nn.BatchNorm1d(6),
        nn.LeakyReLU(),
        nn.Linear(6, 3),
    ).double()
    with torch.no_grad():
        for norm in (model[1], model[5], model[11]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.normal_()
    return model


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 2, 6, 6, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.randint(0, 3, (SAMPLES,), generator=generator))


def metric(name, model, batches, criterion=F.cross_entropy, device="cpu", **settings):
    config = OmegaConf.create(
        {"seeds": {"score": 7}, "metric": OmegaConf.load(CONF / f"{name}.yaml")}
    )
    return instantiate(config.metric)(model, batches, criterion, device, **settings)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def scored(name, model, batch_size=5, shuffle=False, **settings):
    batches = DataLoader(data(), batch_size, shuffle=shuffle)
    found = metric(name, model, batches, **settings).run_layers(
        [model.get_submodule(layer) for layer in LAYERS], find_best_evaluation_module=True
    )
    return dict(zip(LAYERS, found, strict=True))


def test_the_criteria_of_the_paper_are_all_there():
    six = {"random", "apoz", "sensitivity", "taylor", "weight_norm", "shapley"}
    assert six | {"taylor_signed"} <= set(NAMES)


@pytest.mark.parametrize("reduction", ["mean", "sum", "mean_abs", "mean_plus_2_std"])
def test_one_finite_score_a_unit(name, reduction):
    found = scored(name, network(), reduction=reduction)
    assert {layer: scores.shape for layer, scores in found.items()} == {
        layer: (units,) for layer, units in LAYERS.items()
    }
    assert all(np.isfinite(scores).all() for scores in found.values())
    assert all(scores.dtype == np.float64 for scores in found.values())


def spread(scores):
    return scores.mean(0) + 2 * scores.std(0, ddof=0)


def draws(name):
    """Whether the criterion draws more than once for each sample."""
    model = network()
    found = metric(name, model, DataLoader(data(), 5)).estimate([units_of_module(model[0])], True)
    error = found[0].sampling_error
    return error is None or (error > 0).any()


def test_reductions_are_taken_over_the_per_sample_scores(name):
    each = scored(name, network(), reduction="none")
    for reduction, reduce in {
        "mean": lambda s: s.mean(0),
        "sum": lambda s: s.sum(0),
        "mean_abs": lambda s: np.abs(s).mean(0),
        # without what the draws add to the spread (tests/attributions/estimation/test_reduction.py)
        **({} if each["0"].ndim == 1 or draws(name) else {"mean_plus_2_std": spread}),
    }.items():
        found = scored(name, network(), reduction=reduction)
        own = scored(name, network(), reduction=reduce)  # a callable of the user's
        for layer, scores in each.items():
            expected = reduce(scores) if scores.ndim == 2 else scores
            np.testing.assert_allclose(found[layer], expected, atol=1e-12)
            np.testing.assert_allclose(own[layer], expected, atol=1e-12)


def test_the_same_data_gives_the_same_scores_bit_for_bit(name):
    first, second = scored(name, network()), scored(name, network())
    assert all(np.array_equal(first[layer], second[layer]) for layer in LAYERS)


def test_scores_do_not_depend_on_the_batch_size(name):
    whole = scored(name, network(), batch_size=SAMPLES)
    for batch_size in (1, 5):
        found = scored(name, network(), batch_size=batch_size)
        for layer in LAYERS:
            np.testing.assert_allclose(found[layer], whole[layer], rtol=1e-9, atol=1e-12)


def test_one_layer_by_itself_scores_as_among_others(name):
    model = network()
    together = scored(name, model)
    batches = DataLoader(data(), 5)
    for layer in LAYERS:
        alone = metric(name, model, batches).run(model.get_submodule(layer), True)
        np.testing.assert_allclose(alone, together[layer], rtol=1e-12, atol=1e-12)


def failing(output, target, reduction):
    raise RuntimeError("the loss fails")


def precisions():
    backends = torch.backends
    switches = {
        "conv": backends.cudnn.conv, "rnn": backends.cudnn.rnn, "matmul": backends.cuda.matmul,
    }  # fmt: skip
    return {name: switch.fp32_precision for name, switch in switches.items()}


@pytest.mark.parametrize("criterion", [F.cross_entropy, failing], ids=["works", "fails"])
def test_measuring_leaves_no_trace_also_after_a_failure(name, criterion):
    model = network().train()
    model[3].eval()  # modes differ from module to module
    model[4].weight.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    try:
        scored(name, model, shuffle=True, criterion=criterion)
    except RuntimeError as error:
        assert str(error) == "the loss fails"  # noqa: PT017  (criteria without a loss do not fail)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert precisions() == {"conv": "tf32", "rnn": "tf32", "matmul": "none"}  # torch's defaults
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"4.weight"}
    graded = {key for key, p in model.named_parameters() if p.grad is not None}
    assert graded == {"0.weight"}
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))


@pytest.mark.parametrize("matmul", ["highest", "high"])
def test_a_gpu_would_round_nothing_while_it_measures(matmul):
    seen = []

    def loss(output, target, reduction):
        seen.extend(precisions().values())
        return F.cross_entropy(output, target, reduction=reduction)

    torch.set_float32_matmul_precision(matmul)
    before = precisions()
    try:
        scored("taylor", network(), criterion=loss)
        assert set(seen) == {"ieee"}
        assert precisions() == before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_data_that_are_not_finite_are_refused_or_not_read(name):
    """No order is made out of nan: a criterion that reads the data says so."""
    x, y = next(iter(DataLoader(data(), SAMPLES)))
    x[3] = torch.nan
    model = network()
    broken, whole = metric(name, model, [(x, y)]), scored(name, model, batch_size=SAMPLES)["0"]
    if broken.evidence in ("weights", "nothing"):
        np.testing.assert_array_equal(broken.run(model[0], True), whole)
    else:
        with pytest.raises(UserError, match="not finite"):
            broken.run(model[0], True)


class Branching(nn.Module):
    """The same network, with control flow on the data: it cannot be traced."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        return self.layers(x if x.sum() < 1e9 else -x)


def test_a_model_that_cannot_be_traced_gives_the_same_scores(name):
    model = network()
    plain, hooked = (
        metric(name, each, DataLoader(data(), 5)) for each in (model, Branching(model))
    )
    if plain.independent:  # its stream belongs to the layer's place in the model
        assert hooked.run(model[2]).shape == (4,)
        return
    compared = 0
    for module in (model[0], model[10], model[1]):  # a BatchNorm has units, too
        if not refused(hooked, module):
            np.testing.assert_allclose(hooked.run(module), plain.run(module), rtol=1e-9, atol=1e-12)
            compared += 1
    assert compared or not refused(plain, model[0])  # it needs to know what follows a layer


def refused(metric, module):
    """Whether the criterion cannot score a module, which it must say beforehand."""
    unit_groups = [units_of_module(module)]
    try:
        metric.check(unit_groups)
    except UserError as error:
        with pytest.raises(UserError, match=re.escape(str(error))):
            metric.run(module)
        return True
    return False


def test_units_of_a_linear_are_its_outputs_last_dimension(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1)).double()
    x = torch.randn(5, 3, 4, dtype=torch.float64)  # (samples, tokens, features)
    loss = partial(_mean_square, target_shape=(5, 3, 1))
    scores = metric(name, model, [(x, torch.zeros(5, 3, 1))], loss)
    assert refused(scores, model[0]) or scores.run(model[0]).shape == (6,)


def _mean_square(output, target, reduction, target_shape):
    assert target.shape[1:] == target_shape[1:]
    return F.mse_loss(output, target.to(output), reduction=reduction)
