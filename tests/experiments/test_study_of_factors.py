"""experiments/compare_criteria: what the second study writes is read back and tested right."""

import sys
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from experiments.compare_criteria import analyse, biases, run, tables
from experiments.compare_criteria.records import LAYERWISE, STEPWISE, Block
from experiments.crossed import crossed_mean
from pruning_lab.attributions import RandomAttributionMetric, TaylorAttributionMetric
from pruning_lab.compare import holm
from pruning_lab.experiment.network import Network
from pruning_lab.pruning.schedules import Geometric
from pruning_lab.training.recipe import Training

FULL = ["random", "taylor", "taylor_signed", "weight_norm", "shapley mean 256",
        "shapley mean_abs 256", "shapley mean_plus_2_std 256"]  # fmt: skip
VARIED = ["shapley mean 16", "shapley mean 64", "shapley mean_abs 64",
          "shapley mean_plus_2_std 64"]  # fmt: skip
"""Those that have every repair, and those that are not fine-tuned, as in the study."""

UNTUNED = ("stale", "0 steps")
NETWORKS, PICTURES, STEPS = 3, 5, 7


def cases(second):
    """All measurements of a network: schedule, criterion, repair, step."""
    if second:
        fewer = [repair for repair in analyse.REPAIRS if repair != "40 steps"]
        yield from product((STEPWISE,), FULL, fewer, range(STEPS))
        return
    yield from product((STEPWISE, LAYERWISE), FULL, analyse.REPAIRS, range(STEPS))
    yield from product((STEPWISE,), VARIED, UNTUNED, range(STEPS))


def write(folder, name, seed, second=False):
    """The block of three networks with random answers, and these answers by their names."""
    draw, answers = np.random.default_rng(seed), {}
    for network in range(NETWORKS):
        rows, right = [], []
        for schedule, metric, repair, step in cases(second):
            own = draw.integers(0, 2, PICTURES)
            answers[network, schedule, metric, repair, step] = own
            rows.append(dict.fromkeys(run.COLUMNS, 1.0) | {
                "block": name, "network": network, "metric": metric, "schedule": schedule,
                "repair": repair, "step": step, "removed_flops": step**2 / 40,
                "pictures": len(right), "scoring_seconds": len(metric) / 10,
            })  # fmt: skip
            right.append(np.packbits(own))
        targets, losses = np.array([0, 1, 2, 2, 1]), np.array([0.1, 0.2, 0.9])
        run.keep(pd.DataFrame(rows)[run.COLUMNS], np.array(right), targets, losses)
    return Block(name, folder), answers


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RECORDS", tmp_path)
    return write(tmp_path, "mine", 0)


def test_answers_come_back_as_they_were(written):
    block, answers = written
    found = block.accuracy("taylor", "stale", 3)
    expected = [answers[n, STEPWISE, "taylor", "stale", 3] for n in range(NETWORKS)]
    assert found.tolist() == (100 * np.array(expected)).tolist()
    found = block.accuracy("taylor", "40 steps", schedule=LAYERWISE)
    curves = np.array(
        [
            [answers[n, LAYERWISE, "taylor", "40 steps", step] for step in range(STEPS)]
            for n in range(NETWORKS)
        ]
    )
    np.testing.assert_allclose(found, 100 * curves[:, 1:].mean(1))  # each cut alike
    with pytest.raises(LookupError, match="apoz, stale, Geometric, cuts: gaps in 0"):
        block.accuracy("apoz", "stale")


def test_gaps_and_several_recipes_are_refused(written):
    block, _ = written
    path = block.folder / "mine/01.csv"
    rows = pd.read_csv(path)
    lacking = rows[(rows["metric"] != "taylor") | (rows["step"] != 6)]
    for wrong in (lacking, pd.concat([rows, rows[rows["step"] == 6]])):
        wrong.to_csv(path, index=False)
        with pytest.raises(LookupError, match="taylor, stale, Geometric, 6: gaps in 1"):
            Block("mine", block.folder).accuracy("taylor", "stale", 6)
    rows.assign(recipe="another").to_csv(path, index=False)
    with pytest.raises(ValueError, match="had several recipes"):
        _ = Block("mine", block.folder).rows


def test_classes_are_told_apart(written):
    block, answers = written
    found = block.class_accuracy("taylor", "0 steps", 3)
    own = 100 * answers[1, STEPWISE, "taylor", "0 steps", 3]
    assert found[1].tolist() == [own[0], (own[1] + own[4]) / 2, (own[2] + own[3]) / 2]
    lost = block.class_accuracy("taylor", "0 steps", 0) - found
    expected = [stats.spearmanr([0.1, 0.2, 0.9], each).statistic for each in lost]
    row = analyse.classes(block).set_index("criterion").loc["taylor"]
    assert row["spearman"] == pytest.approx(np.nanmean(expected))


def test_every_planned_contrast_is_tested(written):
    block, _ = written
    found = analyse.contrasts(block).set_index("contrast")
    primary = found[found["number"] > 0]
    assert (len(primary), len(found)) == (12, 12 + 5 + 3)
    row = found.loc["shapley mean 256 - shapley mean 16"]
    one, other = (block.accuracy(f"shapley mean {n}", "0 steps") for n in (256, 16))
    gaps = (one - other).mean(1)
    assert row["mean"] == pytest.approx(gaps.mean())
    flipped = [abs(np.dot(signs, gaps)) for signs in product((1, -1), repeat=NETWORKS)]
    assert row["p_flips"] == np.mean(np.array(flipped) >= abs(gaps.sum()) - 1e-9)
    assert row["low"] < row["mean"] < row["high"]
    assert (row["p"] < 0.05) == (row["low"] > 0 or row["high"] < 0)
    larger = primary[["p", "p_flips"]].max(axis=1)
    assert primary["p_holm"].to_numpy() == pytest.approx(holm(larger))
    last = block.accuracy("taylor", "160 steps", 6) - block.accuracy("random", "160 steps", 6)
    assert found.loc["taylor - random, last cut", "mean"] == pytest.approx(last.mean())
    first = [
        (block.accuracy("taylor", each, 1) - block.accuracy("random", each, 1)).mean()
        for each in UNTUNED
    ]
    named = found.loc["(taylor - random) stale - made anew, first cut", "mean"]
    assert named == pytest.approx(first[0] - first[1])
    gain = found.loc["160 steps - 0 steps, all criteria", "mean"]
    every = [
        block.accuracy(name, "160 steps").mean() - block.accuracy(name, "0 steps").mean()
        for name in FULL
    ]
    assert gain == pytest.approx(np.mean(every))


def test_tables_hold_what_was_measured(written):
    block, _ = written
    table = analyse.summary(block)
    shares = len(analyse.SHARES)
    full = len(FULL) * len(analyse.REPAIRS) * (shares + 1)  # stepwise, and the end layer by layer
    assert len(table) == full + len(VARIED) * len(UNTUNED) * shares
    cell = table.query(
        "schedule == 'Geometric' and criterion == 'taylor' and repair == 'stale' and "
        "removed == 'third cut'"
    )
    assert cell["accuracy"].tolist() == [block.accuracy("taylor", "stale", 3).mean()]
    regret = analyse.regret(block)
    own = regret.query("repair == '160 steps' and removed == 'last cut' and seconds == 1")
    assert sorted(own["criterion"]) == sorted(name for name in FULL if len(name) <= 10)
    means = {name: block.accuracy(name, "160 steps", 6).mean() for name in FULL}
    cheap = max(means[name] for name in FULL if len(name) <= 10)
    assert own["cost_of_budget"].unique().tolist() == pytest.approx([max(means.values()) - cheap])
    taken = own.set_index("criterion")["regret"].to_dict()
    assert taken == pytest.approx({name: cheap - means[name] for name in taken})


def test_each_two_criteria_are_compared_once_after_each_repair(written):
    block, _ = written
    found = analyse.pairs(block)
    assert len(found) == len(analyse.REPAIRS) * len(FULL) * (len(FULL) - 1) / 2
    row = found.query("repair == 'stale' and criterion == 'random' and other == 'taylor'").iloc[0]
    means = [block.accuracy(name, "stale").mean() for name in ("random", "taylor")]
    assert row["mean"] == pytest.approx(means[0] - means[1])


def test_the_papers_claim_is_its_reduction_minus_the_others(written):
    block, _ = written
    found = analyse.claim(block).set_index(["schedule", "repair", "criterion"])["mean"]
    assert len(found) == 2 * 3 * 4  # schedules, repairs, criteria that are no Shapley values
    best = "shapley mean_plus_2_std 256"
    few = "160 steps on 100 pictures"
    own, other = (block.accuracy(name, few).mean() for name in (best, "taylor"))
    assert found[STEPWISE, few, "taylor"] == pytest.approx(own - other)
    own, other = (
        block.accuracy(name, "stale", STEPS - 1, LAYERWISE).mean() for name in (best, "random")
    )
    assert found[LAYERWISE, "stale", "random"] == pytest.approx(own - other)


def test_a_block_with_one_number_of_pictures_lacks_the_contrast_of_two(written):
    other, _ = write(written[0].folder, "other", 1, second=True)
    found = analyse.contrasts(other)
    numbers = found.loc[found["number"] > 0, "number"].tolist()
    assert numbers == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
    row = found.set_index("number").loc[7]
    means = [other.accuracy(name, "0 steps").mean() for name in ("taylor", "taylor_signed")]
    assert row["mean"] == pytest.approx(means[0] - means[1])


def test_what_fine_tuning_adds_is_beside_the_same_pictures(written):
    block, _ = written
    found = analyse.gains(block).query("criterion == 'taylor' and removed == 'last cut'")
    pairs = {"40 steps": "0 steps", "160 steps": "0 steps",
             "160 steps on 100 pictures": "0 steps on 100 pictures"}  # fmt: skip
    expected = {
        after: block.accuracy("taylor", after, 6).mean()
        - block.accuracy("taylor", before, 6).mean()
        for after, before in pairs.items()
    }
    assert found.set_index("repair")["mean"].to_dict() == pytest.approx(expected)


def test_the_best_of_another_block_is_judged_on_this_one(written):
    block, _ = written
    other, _ = write(block.folder, "other", 1, second=True)
    found = analyse.elsewhere([block, other])
    assert "40 steps" not in set(found["repair"])
    found = found.query("repair == '0 steps' and removed == 'last cut'").set_index("pair")
    mine, others = (
        {name: each.accuracy(name, "0 steps", 6).mean() for name in FULL} for each in (block, other)
    )
    chosen = max(others, key=others.get)
    assert found.loc["mine", "chosen"] == chosen.removesuffix(" 256")
    assert found.loc["mine", "regret"] == pytest.approx(max(mine.values()) - mine[chosen])
    assert found["regret"].max() > 0


def test_other_draws_and_other_measures(written):
    block, answers = written
    rows = pd.read_csv(block.folder / "mine/02.csv")
    again = rows[(rows["metric"] == "random") & (rows["repair"] == "stale")].copy()
    again["metric"] = "random, other draw"
    again["pictures"] = again["pictures"].to_numpy()[::-1]
    pd.concat([rows, again]).to_csv(block.folder / "mine/02.csv", index=False)
    block = Block("mine", block.folder)
    (row,) = analyse.draws(block).itertuples(index=False)
    assert row[:4] == ("mine", "random, other draw", "stale", 1)
    own = np.mean([answers[2, STEPWISE, "random", "stale", n] for n in range(1, 7)])
    other = np.mean([answers[2, LAYERWISE, "random", "stale", 6 - n] for n in range(1, 7)])
    assert row.rms == pytest.approx(100 * abs(own - other))  # reversed: those layer by layer
    table = analyse.secondary(block)
    assert (table["test_loss_after"] == 1).all()
    assert "random, other draw" not in block.measured("stale")


def test_the_tables_of_the_page_are_those_of_the_results(written, tmp_path, monkeypatch):
    block, _ = written
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for name in ("contrasts", "summary", "regret"):
        getattr(analyse, name)(block).to_csv(tmp_path / f"{name}.csv", index=False)
    gaps = block.accuracy("taylor", "0 steps") - block.accuracy("random", "0 steps")
    found = crossed_mean(gaps)
    interval = f"{found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f})"
    assert f"| 2 | Taylor - Random | 0 steps | {interval} |" in tables.contrasts("mine")
    assert len(tables.contrasts("mine").splitlines()) == 2 + 12
    assert len(tables.contrasts("mine", primary=False).splitlines()) == 2 + 8
    assert "Shapley 64, mean + 2 std - Shapley 64, mean |" in tables.contrasts("mine")
    (row,) = (line for line in tables.accuracy("mine").splitlines() if line[:8] == "| Taylor")
    assert row.split(" | ")[2] == f"{found.mean:+.1f} ± {(found.high - found.low) / 2:.1f}"
    own = block.accuracy("random", "160 steps", 6).mean()
    assert f"| {own:.1f} ± " in tables.over_shares("mine", "160 steps").splitlines()[2]
    losses = analyse.by_network(block, "0 steps", analyse.CUTS).mean()
    (row,) = (line for line in tables.regret("mine").splitlines() if line[:8] == "| Taylor")
    assert row.split(" | ")[2].endswith(f" % / {losses.max() - losses['taylor']:.1f}")


def test_fitted_biases_answer_each_class_as_often_as_it_occurs():
    torch.manual_seed(0)
    logits, targets = torch.randn(200, 3), torch.randint(5, (200,)) % 3
    probabilities = (logits + biases.fitted(logits, targets)).softmax(1).mean(0)
    torch.testing.assert_close(probabilities, targets.bincount() / 200, rtol=0, atol=1e-3)


def test_restored_biases_give_each_logit_its_old_mean(tiny):
    model, splits, _ = run.trained("tiny", 0)
    network = Network(model.eval(), splits.input_size, torch.device("cpu"))
    own = SimpleNamespace(network=network, conditions=SimpleNamespace(splits=splits))
    logits, targets = biases.answers(model, splits.test)
    shift = torch.tensor([0.0, 3.0, 0.0, 0.0])[: logits.shape[1]]
    scored, _ = biases.answers(model, splits.score)
    found = biases.with_new_biases(scored.mean(0) + shift, own, 1, None)
    answered = (logits + shift).argmax(1)
    assert found["restored"] == pytest.approx((answered == targets).float().mean())
    classes = logits.shape[1]
    shares = [(answered == each).float().mean().item() for each in range(classes)]
    assert found["restored_imbalance"] == pytest.approx(
        sum(abs(share - 1 / classes) for share in shares) / 2
    )
    assert found["imbalance"] != found["restored_imbalance"]


def test_what_happened_after_a_cut_has_one_name():
    names = [run.repair(track, recipe) for track, recipe in [
        ("stale", run.LONG), ("untuned", run.LONG), ("main", run.LONG), ("main", "none"),
        ("stale", "none"), ("untuned", run.FEW), ("main", run.FEW),
    ]]  # fmt: skip
    assert names == ["stale", "0 steps", "160 steps", "0 steps", "stale",
                     "0 steps on 100 pictures", "160 steps on 100 pictures"]  # fmt: skip


def test_criteria_and_repairs_are_those_of_the_plan():
    main, varied, layerwise = run.arms(run.BLOCKS["convnet"], 0, Training(steps=160), 10_000)
    assert len(main.criteria) == 10
    assert "random, other draw" in main.criteria
    assert len(varied.criteria) == 6 + 1
    assert {each.share for each in main.finetune.values()} == {1.0, 0.01}
    assert sorted(each.steps for each in main.finetune.values()) == [40, 160, 160]
    assert not varied.finetune["none"]
    assert list(layerwise.finetune) == [run.FEW]
    later = run.arms(run.BLOCKS["convnet"], 4, Training(steps=160), 10_000)
    assert len(later[1].criteria) == 6
    for name in ("resnet20", "vgg11"):
        (alone,) = run.arms(run.BLOCKS[name], 0, Training(steps=160), 1000)
        assert len(alone.criteria) == 10
        assert {"shapley mean 16", "shapley mean_plus_2_std 16"} <= set(alone.criteria)
        assert list(alone.finetune) == [run.LONG, run.FEW]


@pytest.fixture
def tiny(monkeypatch):
    """A block that is done in a moment."""
    overrides = ("dataset=synthetic", "dataset.train=64", "dataset.test=24", "model=mlp",
                 "model.hidden=[16,12]", "baseline.training.epochs=1")  # fmt: skip
    criteria = {"random": RandomAttributionMetric, "taylor": TaylorAttributionMetric}
    recipes = {run.LONG: Training(steps=2), run.FEW: Training(steps=2, share=0.5)}
    schedule = Geometric(target=0.5, steps=2, of="units")
    monkeypatch.setattr(run, "BLOCKS", {"tiny": run.Block(overrides)})
    monkeypatch.setattr(run, "TO_95", schedule)
    monkeypatch.setattr(run, "SHIFTED_AT", (1,))
    monkeypatch.setattr(run, "arms", lambda *_: [run.Arm(criteria, schedule, recipes)])


def test_a_network_that_was_cut_off_goes_on_with_the_next_criterion(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run", "tiny", "--networks", "3"])
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(run, "RECORDS", tmp_path / "whole")
    run.main()
    monkeypatch.setattr(run, "RECORDS", tmp_path / "again")
    measured = run.one_criterion

    def cut_off(*given):
        if given[-2] == "taylor":
            raise KeyboardInterrupt
        return measured(*given)

    with monkeypatch.context() as patch:
        patch.setattr(run, "one_criterion", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run.study("tiny", 3)
    part = tmp_path / "again/tiny/03/0 random.csv"
    kept = part.read_text()
    part.write_text(kept.replace(pd.read_csv(part, dtype=str)["weights"][0], "other weights"))
    with pytest.raises(
        ValueError, match=r"random\.csv has weights other weights, not .* Delete it"
    ):
        run.study("tiny", 3)
    part.write_text(kept)
    run.main()
    assert {each.name for each in (tmp_path / "again/tiny").iterdir()} == {"03.csv", "03.npz"}
    took = ["minutes", *(name for name in run.COLUMNS if "seconds" in name)]
    one, other = (Block("tiny", tmp_path / folder) for folder in ("whole", "again"))
    pd.testing.assert_frame_equal(one.rows.drop(columns=took), other.rows.drop(columns=took))
    right = one.accuracy("taylor", run.LONG)
    assert (right == other.accuracy("taylor", run.LONG)).all()
    rows = one.rows.query("metric == 'taylor' and repair == '160 steps' and step > 0")
    assert right.mean() == pytest.approx(100 * rows["test_accuracy_after"].mean(), rel=1e-5)
    untuned = one.rows.query("metric == 'taylor' and repair == '0 steps'")
    assert untuned["noise"].notna().tolist() == [False, True, False]
