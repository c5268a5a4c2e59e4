"""A comparison as a folder: figures, tables, and one page that needs nothing else."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from pruning_lab.attributions.scores import Scores
from pruning_lab.compare.agreement import COLUMNS, LOWEST, between_criteria
from pruning_lab.compare.curves import accuracy_curves
from pruning_lab.compare.figures import correlation_map, rank_correlations
from pruning_lab.compare.intervals import difference_intervals
from pruning_lab.compare.measures import SPEED_UPS, measure_runs
from pruning_lab.compare.pairs import by_block, complete, counted, differences
from pruning_lab.compare.ranks import critical_difference
from pruning_lab.compare.runs import GIVEN, main_track, rows_of, was_finetuned
from pruning_lab.compare.statistics import ALPHA, half_width, ranking
from pruning_lab.compare.style import in_order, style_of
from pruning_lab.compare.table import accuracy_table, markdown
from pruning_lab.compare.words import on_differences, on_ranking, p_value
from pruning_lab.track import STALE, UNTUNED


@dataclass
class Section:
    """A part of a report: sentences, figures by file name, tables by file name."""

    title: str
    words: list[str] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)


def sections(
    runs: pd.DataFrame,
    scores: Mapping[str, Scores] | None = None,
    tuned: pd.DataFrame | None = None,
) -> list[Section]:
    """What there is to say of runs that differ in criterion and seed alone.

    ``runs`` is one of the frames of ``comparable``; where they are known, ``scores`` are what the
    criteria say about each of the unpruned baselines, and ``tuned`` how scores agree before and
    after fine-tuning, run by run: ``metric`` and the columns of ``between_scorings``.
    """
    measured, labels = measure_runs(runs), _labels(runs)
    found = [_curves(runs), _summary(runs, measured, labels)]
    found += [_comparison(measured, f"area_flops_{when}", labels[when])
              for when in labels if when != "before"]  # fmt: skip
    if scores:
        found.append(_agreement(list(scores.values())))
    if tuned is not None and len(tuned):
        found.append(_through_finetuning(tuned))
    return found


def _labels(runs: pd.DataFrame) -> dict[str, str]:
    """What there are accuracies of, by the names that ``measure_runs`` has for them."""
    if not was_finetuned(runs):
        return {"after": "without fine-tuning"}
    labels = {"before": "before fine-tuning", "after": "after fine-tuning"}
    controls = {
        STALE: "with stale statistics, without fine-tuning",
        UNTUNED: "without fine-tuning",
    }
    measured = {name: label for name, label in controls.items() if not rows_of(runs, name).empty}
    return measured | labels


def _curves(runs: pd.DataFrame) -> Section:
    section = Section("Accuracy over what was removed")
    for x in ("flops", "parameters"):
        section.figures[f"accuracy_vs_{x}"] = accuracy_curves(runs, x)
    section.tables["accuracy_by_step"] = accuracy_table(runs)
    tuned = "; in the table before and after the fine-tuning of each step"
    section.words.append(f"Test accuracy in per cent{tuned if was_finetuned(runs) else ''}.")
    return section


def _summary(runs: pd.DataFrame, measured: pd.DataFrame, labels: Mapping[str, str]) -> Section:
    """Means over the blocks with the half widths of their 95 % intervals."""
    columns = {f"area_flops_{w}": f"mean accuracy {label}, %" for w, label in labels.items()}
    columns |= {
        f"accuracy_{s}x_{w}": f"at {s}x {label}, %"
        for w, label in labels.items()
        if w != "before"
        for s in SPEED_UPS
        if measured[f"accuracy_{s}x_{w}"].notna().any()
    }
    columns |= {"accuracy_scratch": "from scratch, %"} if "accuracy_scratch" in measured else {}
    rows = {}
    for criterion in in_order(measured["metric"]):
        own = measured[measured["metric"] == criterion]
        cells = {"runs": str(len(own)), "blocks": str(own["block"].nunique())}
        for key, head in columns.items():
            whole = own[key].notna().all()  # of those alone that got there a mean would flatter
            values = 100 * own.groupby("block")[key].mean()
            cells[head] = mean_and_half_width(values) if whole else "–"
        for key in ("speed_up", "compression"):
            cells[key.replace("_", " ")] = f"{own.groupby('block')[key].mean().mean():.2f}"
        cells["latency ratio"] = mean_and_half_width(own.groupby("block")["latency_ratio"].mean())
        rows[style_of(criterion).label] = cells
    reached = 100 * main_track(runs).groupby("run_id")["removed_flops"].max().min()
    return Section(
        "What each criterion comes to",
        [
            "Mean accuracy is the area under the curve over the share of FLOPs removed, from 0 to "
            f"what all runs reached ({reached:.1f} % on the main track), divided by that width. "
            "Behind ± is half the 95 % interval of the mean over a criterion's blocks; criteria "
            "are compared by the paired differences below. Speed-up is the original's FLOPs over "
            "those left, compression its parameters over those left; the latency ratio was "
            "measured on one sample, as well as other work on the machine let it. – stands where "
            "not all runs got to a speed-up. No interval covers the choice of the test samples: "
            "all runs share them.",
        ],
        tables={"summary": pd.DataFrame(rows).T.rename_axis("criterion")},
    )


def mean_and_half_width(values: pd.Series) -> str:
    """``86.1 ± 0.4``, with half the 95 % interval by Student's t; a value alone has none."""
    if len(values) == 1:
        return f"{values.iloc[0]:.1f}"
    return f"{values.mean():.1f} ± {half_width(values):.1f}"


def _comparison(measured: pd.DataFrame, measure: str, label: str) -> Section:
    """Paired differences and ranks of the mean accuracy."""
    name, what = measure.removeprefix("area_flops_"), f"mean accuracy {label}"
    section = Section(f"Comparison {label}")
    table, section.words = complete(by_block(measured, measure))
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
    pairs = differences(table)
    section.words += on_differences(pairs, what)
    section.tables[f"differences_{name}"] = pairs
    title = f"Differences of the {what}"
    section.figures[f"differences_{name}"] = difference_intervals(pairs, title)
    if table.shape[1] > 2:
        ranked = ranking(table)
        section.words.append(on_ranking(ranked, "blocks"))
        title = f"Mean ranks by {what}, {ranked.blocks} blocks"
        if ranked.p >= ALPHA:
            title += "\n(Friedman's test finds no difference)"
        section.figures[f"critical_difference_{name}"] = critical_difference(ranked, title)
    return section


def _agreement(scores: Sequence[Scores]) -> Section:
    """How far criteria agree about the order of the units of the unpruned networks."""
    pairs = pd.concat([between_criteria(each) for each in scores], ignore_index=True)
    each_baseline = pd.concat([rank_correlations(each) for each in scores])
    square = each_baseline.groupby(level=0, sort=False).mean()
    means = pairs.groupby(["one", "other"], sort=False)[COLUMNS].mean().reset_index()
    return Section(
        "Agreement of the criteria",
        [
            f"Of the scores of the unpruned networks, by layer, averaged over the layers of "
            f"{counted(len(scores), 'baseline')}: Spearman's and Kendall's correlation (tau-b), "
            f"and the share of the {LOWEST:.0%} lowest units that two criteria have in common, "
            "beside what it is by chance. Of tied units those count as lower that a plan takes.",
        ],
        {"agreement": correlation_map(square, "Spearman's ρ (mean)")},
        {"agreement": means},
    )


def _through_finetuning(tuned: pd.DataFrame) -> Section:
    """How far a criterion agrees with itself before and after fine-tuning."""
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


# -- on disk ----------------------------------------------------------------------------------


def write_report(folder: Path, title: str, about: list[str], parts: list[Section]) -> Path:
    """Figures as PNG and SVG, tables as CSV, and all of it as report.md and report.html.

    Returns the page. ``about`` stands above: where the runs come from, what was left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for section in parts:
        for name, figure in section.figures.items():
            figure.savefig(folder / f"{name}.png", dpi=150)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        for name, table in section.tables.items():
            table.to_csv(folder / f"{name}.csv", index=table.index.name is not None)
    (folder / "report.md").write_text(_as_markdown(title, about, parts), encoding="utf-8")
    page = folder / "report.html"
    page.write_text(_as_html(title, about, parts), encoding="utf-8")
    return page


def _as_markdown(title: str, about: list[str], parts: list[Section]) -> str:
    lines = [f"# {title}", *about]
    for section in parts:
        lines += [f"## {section.title}", *section.words]
        lines += [f"![{name.replace('_', ' ')}]({name}.png)" for name in section.figures]
        lines += [markdown(readable(table)).rstrip() for table in section.tables.values()]
    return "\n\n".join(lines) + "\n"


def _as_html(title: str, about: list[str], parts: list[Section]) -> str:
    """One page with its pictures inside, so that it opens without a network."""
    environment = Environment(
        loader=PackageLoader("pruning_lab.compare", "."), autoescape=True, undefined=StrictUndefined
    )
    shown = [
        {
            "title": section.title,
            "words": section.words,
            "figures": {name: _inline(figure) for name, figure in section.figures.items()},
            "tables": [readable(table).reset_index() for table in section.tables.values()],
        }
        for section in parts
    ]
    return environment.get_template("report.html").render(title=title, about=about, parts=shown)


def _inline(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return base64.b64encode(buffer.getvalue()).decode()


def _label(criterion: str) -> str:
    return style_of(criterion).label


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table for people: fractions of accuracy as points, p values short, criteria by name."""
    if "spearman" in table:
        criteria = [column for column in ("metric", "one", "other") if column in table]
        named = table.assign(**{column: table[column].map(_label) for column in criteria})
        first = named.set_index(criteria[0])
        return first.map(lambda v: f"{v:.2f}" if isinstance(v, float) else v)
    if table.index.name == "pair":
        return (100 * table).map("{:.2f}".format).rename(columns=_label)
    if "p_holm" not in table:
        return table
    rows = [
        {
            "pair": f"{style_of(row.better).label} − {style_of(row.worse).label}",
            "difference, points": f"{100 * row.difference:.2f}",
            "95 % interval": f"{100 * row.low:.2f} to {100 * row.high:.2f}",
            "p": p_value(row.p).removeprefix("= "),
            "p, exact": p_value(row.p_exact).removeprefix("= "),
            "p, Holm": p_value(row.p_holm).removeprefix("= "),
            "detectable, points": f"{100 * row.detectable:.2f}",
        }
        for row in table.sort_values("difference", ascending=False).itertuples()
    ]
    return pd.DataFrame(rows).set_index("pair")
