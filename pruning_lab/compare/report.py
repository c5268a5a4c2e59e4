"""The sections of a report: sentences, figures and tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

from pruning_lab.attributions.estimation.scores import Scores
from pruning_lab.compare.agreement import COLUMNS, LOWEST, between_criteria
from pruning_lab.compare.curves import quality_curves
from pruning_lab.compare.figures import (
    correlation_map,
    critical_difference,
    difference_intervals,
    rank_correlations,
)
from pruning_lab.compare.measures import SPEED_UPS, measure_runs, quality_table
from pruning_lab.compare.runs import (
    GIVEN,
    main_track,
    measure_of,
    rows_of,
    told_apart,
    was_finetuned,
)
from pruning_lab.compare.statistics import (
    by_block,
    complete,
    counted,
    differences,
    half_width,
    ranking,
)
from pruning_lab.compare.style import in_order, style_of
from pruning_lab.compare.words import on_differences, on_ranking
from pruning_lab.records.step import STALE, UNTUNED
from pruning_lab.tasks.task import MEASURE, Measure

PAIR = "pair of model and data set"


@dataclass
class Section:
    """A section of a report: sentences, figures by file name, tables by file name.

    Tables of differences and of pairs format their values as ``measure`` does.
    """

    title: str
    words: list[str] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    measure: Measure | None = None


def sections(
    runs: pd.DataFrame,
    scores: Mapping[str, Scores] | None = None,
    tuned: pd.DataFrame | None = None,
) -> list[Section]:
    """Return the sections on ``runs`` that differ only in criterion and seed.

    ``runs`` is one of the frames of ``comparable``. ``scores``, if known, has the scores of each
    unpruned baseline by all criteria; ``tuned``, if known, has the agreement of each run's scores
    before and after fine-tuning: ``metric`` and the columns of ``between_scorings``. Raises
    UserError for runs that cannot be compared.
    """
    measured, labels, measure = measure_runs(runs), _labels(runs), measure_of(runs)
    parts = [_curves(runs, measure), _summary(runs, measured, labels, measure)]
    parts += [_comparison(measured, f"area_flops_{when}", labels[when], measure)
              for when in labels if when != "before"]  # fmt: skip
    if scores:
        parts.append(_agreement(list(scores.values())))
    if tuned is not None and len(tuned):
        parts.append(_through_finetuning(tuned))
    return parts


def _labels(runs: pd.DataFrame) -> dict[str, str]:
    """Return labels of the measured states of a network, by their names in ``measure_runs``."""
    if not was_finetuned(runs):
        return {"after": "without fine-tuning"}
    controls = {STALE: "with stale statistics, without fine-tuning", UNTUNED: "without fine-tuning"}
    measured = {name: label for name, label in controls.items() if not rows_of(runs, name).empty}
    return measured | {"before": "before fine-tuning", "after": "after fine-tuning"}


def _curves(runs: pd.DataFrame, measure: Measure) -> Section:
    tuned = "; in the table before and after the fine-tuning of each step"
    better = "" if measure.higher_is_better else ", lower is better"
    unit = " in per cent" if measure.unit == "%" else f" in {measure.unit}" if measure.unit else ""
    return Section(
        f"{measure.label[0].upper()}{measure.label[1:]} over the share removed",
        [f"Test {measure.label}{unit}{better}{tuned if was_finetuned(runs) else ''}."],
        {f"{measure.name}_vs_{x}": quality_curves(runs, x) for x in ("flops", "parameters")},
        {f"{measure.name}_by_step": quality_table(runs)},
    )


def _summary(
    runs: pd.DataFrame, measured: pd.DataFrame, labels: Mapping[str, str], measure: Measure
) -> Section:
    """Summarise each criterion by means over the blocks and half widths of their 95 % intervals."""
    columns = _summary_columns(measured, labels, measure)
    rows = {}
    for criterion in in_order(measured["metric"]):
        group = measured[measured["metric"] == criterion]
        blocks = group.groupby("block")
        cells = {"runs": str(len(group)), "blocks": str(blocks.ngroups)}
        for key, head in columns.items():
            known = group[key].notna().all()  # a mean over some of the runs would be biased
            cells[head] = mean_and_half_width(blocks[key].mean(), measure.tenths) if known else "–"
        for key in ("speed_up", "compression"):
            cells[key.replace("_", " ")] = f"{blocks[key].mean().mean():.2f}"
        cells["latency ratio"] = mean_and_half_width(blocks["latency_ratio"].mean())
        rows[style_of(criterion).label] = cells
    reached = 100 * main_track(runs).groupby("run_id")["removed_flops"].max().min()
    return Section(
        "What each criterion comes to",
        [
            f"Mean {measure.label} is the area under the curve over the share of FLOPs removed, "
            f"from 0 to what all runs reached ({reached:.1f} % on the main track), divided by that "
            "width. After ± is half the 95 % interval of the mean over a criterion's blocks; "
            "criteria are compared by the paired differences below. Speed-up is the original's "
            "FLOPs over the remaining ones, compression its parameters over the remaining ones; "
            "the latency ratio was measured on one sample, beside whatever else ran on the "
            "machine. – stands where not all runs got to a speed-up. No interval covers the "
            "choice of the test samples: all runs share them."
        ],
        tables={"summary": pd.DataFrame(rows).T.rename_axis("criterion")},
    )


def _summary_columns(
    measured: pd.DataFrame, labels: Mapping[str, str], measure: Measure
) -> dict[str, str]:
    """Return the heads of the summary, by the columns of ``measured`` that they stand for."""
    name, unit = measure.name, f", {measure.unit}" if measure.unit else ""
    heads = {f"area_flops_{w}": f"mean {measure.label} {label}{unit}"
             for w, label in labels.items()}  # fmt: skip
    for when in (when for when in labels if when != "before"):
        for s in SPEED_UPS:
            if measured[f"{name}_{s}x_{when}"].notna().any():
                heads[f"{name}_{s}x_{when}"] = f"at {s}x {labels[when]}{unit}"
    if f"{name}_scratch" in measured:
        heads[f"{name}_scratch"] = f"from scratch{unit}"
    return heads


def mean_and_half_width(values: pd.Series, text: Callable[[float], str] = "{:.1f}".format) -> str:
    """Return ``86.1 ± 0.4``: mean and half its 95 % interval (Student's t; none for one value)."""
    mean = text(values.mean())
    return mean if len(values) == 1 else f"{mean} ± {text(half_width(values))}"


def _comparison(measured: pd.DataFrame, column: str, label: str, measure: Measure) -> Section:
    """Compare criteria by paired differences and ranks of the mean measure."""
    name, what = column.removeprefix("area_flops_"), f"mean {measure.label} {label}"
    section = Section(f"Comparison {label}", measure=measure)
    table, section.words = complete(by_block(measured, column))
    baselines = measured.groupby("block")["baseline"].nunique()
    section.words += [
        f"The runs of block {name} start from {count} baselines, of other code, versions or "
        "threads: within it not only criteria differ."
        for name, count in baselines[baselines > 1].items()
        if name in table.index
    ]
    if len(table) < 2 or table.shape[1] < 2:
        advice = "Run several criteria on several seeds, seed=0,1,2."
        if GIVEN in table.index:
            advice = "Given weights are one block, whatever the seeds: compare several networks."
        section.words.append(
            f"Of {counted(table.shape[1], 'criterion', 'criteria')} on "
            f"{counted(len(table), 'block')} nothing can be said of differences. {advice}"
        )
        return section
    pairs = differences(table, measure.higher_is_better)
    section.words += on_differences(pairs, what, measure)
    section.tables[f"differences_{name}"] = pairs
    title = f"Differences of the {what}"
    section.figures[f"differences_{name}"] = difference_intervals(pairs, title, measure)
    if table.shape[1] > 2:
        ranked = ranking(table if measure.higher_is_better else -table)
        section.words.append(on_ranking(ranked, "blocks"))
        title = f"Mean ranks by {what}, {ranked.blocks} blocks"
        section.figures[f"critical_difference_{name}"] = critical_difference(ranked, title)
    return section


def _agreement(scores: Sequence[Scores]) -> Section:
    """Describe how well criteria agree on the order of units of the unpruned networks."""
    pairs = pd.concat([between_criteria(baseline) for baseline in scores], ignore_index=True)
    correlations = pd.concat([rank_correlations(baseline) for baseline in scores])
    square = correlations.groupby(level=0, sort=False).mean()
    means = pairs.groupby(["one", "other"], sort=False)[COLUMNS].mean().reset_index()
    return Section(
        "Agreement of the criteria",
        [
            f"Of the scores of the unpruned networks, by layer, averaged over the layers of "
            f"{counted(len(scores), 'baseline')}: Spearman's and Kendall's correlation (tau-b), "
            f"and the share of the {LOWEST:.0%} lowest units that two criteria have in common, "
            "beside what it is by chance. Of tied units those count as lower that a plan takes."
        ],
        {"agreement": correlation_map(square, "Spearman's ρ (mean)")},
        {"agreement": means},
    )


def _through_finetuning(tuned: pd.DataFrame) -> Section:
    """Describe how well a criterion's scores agree before and after fine-tuning."""
    layers = tuned.groupby(["metric", "layer"], sort=False)
    table = layers[COLUMNS].mean()
    table.insert(0, "runs", layers.size())
    return Section(
        "The order of units before and after fine-tuning",
        [
            "Scores of the network as its first cut left it, and of the same network fine-tuned "
            "since: Spearman's and Kendall's correlation (tau-b), and the share of the "
            f"{LOWEST:.0%} lowest units in common, means over the runs. Both are on the same "
            "samples with the same draws, so that noise is shared: two independent scorings would "
            "agree less. Each criterion is asked about the units that it kept. Random scores do "
            "not look at the network and stay what they are."
        ],
        tables={"through_finetuning": table.loc[in_order(tuned["metric"])].reset_index()},
    )


def across(runs: pd.DataFrame) -> list[Section]:
    """Run Friedman's test with pairs of model and data set as blocks (Demšar, JMLR 7, 2006).

    ``runs`` may come from any experiments. The value of a criterion on a pair is the area under the
    curve of the primary measure over FLOPs, averaged over the pair's blocks. Pairs are ranked
    together if they have the same measure and the same names of schedule and fine-tuning; their
    settings may differ, and of several settings of a pair the one with the most runs counts.
    Return a section per such group with at least two pairs that share three criteria.
    """
    keys = ["schedule", "finetune", *(key for key in MEASURE if key in runs)]
    kinds = told_apart(runs).groupby(keys, sort=False)
    ranked = (_over_pairs(f"{name[0]}, {name[1]}", rows) for name, rows in kinds)
    return [section for section in ranked if section is not None]


def _over_pairs(task: str, runs: pd.DataFrame) -> Section | None:
    means, words, measure, file = {}, [], measure_of(runs), task.replace(", ", "_")
    for (model, dataset), settings in runs.groupby(["model", "dataset"], sort=False):
        pair = f"{model} on {dataset}"
        counts = settings.groupby("setting", sort=False)["run_id"].nunique()
        words += [f"{pair}: the setting {name} is left out, it has fewer runs than another."
                  for name in counts.index if name != counts.idxmax()]  # fmt: skip
        chosen = settings[settings["setting"] == counts.idxmax()]
        table, gaps = complete(by_block(measure_runs(chosen), "area_flops_after"))
        words += [f"{pair}: {sentence}" for sentence in gaps]
        if table.empty:
            words.append(f"{pair} is left out: its criteria share no block.")
        else:
            means[pair] = table.mean()
    rows = pd.DataFrame(means).T.rename_axis("pair")
    table, gaps = complete(rows[in_order(rows.columns)], PAIR)
    if len(table) < 2 or table.shape[1] < 3:
        return None
    ranked = ranking(table if measure.higher_is_better else -table)
    title = f"Mean ranks by mean {measure.label}, {len(table)} pairs of model and data set"
    what = (
        f"Mean {measure.label} is the area under the curve over the share of FLOPs removed, "
        "divided by its width, at the end of each step, averaged over the blocks of a pair. The "
        "test takes pairs for independent; those that share a model or a data set are not quite. "
        "Pairs have a schedule and fine-tuning of the same name; their settings may differ, the "
        "pairs' own reports have them."
    )
    return Section(
        f"Over models and data sets: {task}",
        [*words, *gaps, what, on_ranking(ranked, "pairs of model and data set")],
        {f"critical_difference_{file}": critical_difference(ranked, title)},
        {f"mean_{measure.name}_{file}": table},
        measure,
    )
