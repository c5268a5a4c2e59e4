"""Sentences say what the numbers say, and no more."""

import numpy as np
import pandas as pd

from pruning_lab.compare.statistics import differences, ranking
from pruning_lab.compare.words import on_differences, on_ranking
from pruning_lab.tasks import Classification

MEASURE = Classification().primary


def blocks(*means, noise=0.01, count=12, seed=0):
    """Accuracies of three criteria on baselines that move all of them together."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 0.05, (count, 1))
    values = np.array(means) + shared + rng.normal(0, noise, (count, len(means)))
    return pd.DataFrame(values, columns=["random", "taylor", "shapley"])


def test_a_clear_difference_is_told_with_its_interval():
    table = differences(blocks(0.80, 0.80, 0.85))
    first, told, rest = on_differences(table, "mean accuracy", MEASURE)
    assert first == (
        "By mean accuracy, 2 of 3 pairs can be told apart on 12 blocks, all pairs taken into "
        "account (Holm, 0.05); in brackets 95 % intervals of each alone:"
    )
    assert told.startswith("Shapley is better than ")
    for worse, label in (("random", "Random"), ("taylor", "Taylor")):
        row = table[(table["better"] == "shapley") & (table["worse"] == worse)].iloc[0]
        assert (
            f"{label} by {100 * row['difference']:.2f} points "
            f"({100 * row['low']:.2f} to {100 * row['high']:.2f})"
        ) in told
    assert rest.startswith("Of the other pairs, a true difference of")


def test_where_nothing_is_significant_it_says_what_could_have_been_seen():
    table = differences(blocks(0.80, 0.80, 0.801))
    verdict, power = on_differences(table, "mean accuracy", MEASURE)
    assert verdict.startswith(
        "By mean accuracy, no criterion can be told from another on 12 blocks. The largest "
    )
    assert f"{100 * table['difference'].max():.2f} points" in verdict
    least, most = 100 * table["detectable"].min(), 100 * table["detectable"].max()
    assert f"A true difference of {least:.1f} to {most:.1f} points" in power
    assert "if differences vary as on these 12 blocks" in power


def test_two_blocks_that_vary_can_show_nothing():
    table = differences(blocks(0.80, 0.80, 0.80, noise=0.3, count=2, seed=1))
    assert table["detectable"].min() >= 1
    *_, power = on_differences(table, "mean accuracy", MEASURE)
    assert power == ("2 blocks are too few to find any difference of the accuracy: run more seeds.")


def test_differences_that_are_always_the_same_are_called_so():
    table = differences(blocks(0.8, 0.8, 0.8, noise=0).assign(taylor=lambda t: t["random"]))
    verdict, power = on_differences(table, "mean accuracy", MEASURE)
    assert "points (always the same), p unknown after Holm" in verdict
    assert power == "A true difference that never varies: what could have been missed is not known."


def test_two_blocks_can_never_show_a_difference_of_ranks():
    text = on_ranking(ranking(blocks(0.7, 0.8, 0.9, count=2)), "blocks")
    assert "finds no difference" in text
    assert "so few could never show one by Nemenyi's test." in text


def test_ranks_that_differ_name_the_best_and_who_is_alike():
    few = on_ranking(ranking(blocks(0.7, 0.8, 0.9, count=8)), "baselines")
    assert "finds that ranks differ (p < 0.001): Shapley has the best mean rank, 1.00" in few
    assert "cannot be told from Taylor (critical difference 1.17)" in few
    many = on_ranking(ranking(blocks(0.7, 0.8, 0.9, count=40)), "baselines")
    assert "1.00, and stands alone (critical difference 0.52)" in many


def test_ranks_that_do_not_differ():
    found = ranking(blocks(0.8, 0.8, 0.8))
    text = on_ranking(found, "data sets")
    assert text.startswith("Over 12 data sets, Friedman's test finds no difference")
    assert f"(p = {found.p:.3f}); mean ranks would have to differ by 0.96." in text
