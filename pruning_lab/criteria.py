"""``python -m pruning_lab.criteria``: print a Markdown table of all criteria in conf/metric."""

import re
from importlib.resources import files

from omegaconf import DictConfig, OmegaConf

from pruning_lab.attributions import AttributionMetric
from pruning_lab.config.build import find_target
from pruning_lab.errors import check_choice

HEAD = """\
# The criteria

A higher score means: keep the unit. In the formulas, L is a sample's own loss, a its activation
(units, positions) after the BatchNorm and non-linearity that directly follow the layer, g = dL/da,
w a weight of the unit, and g_w its gradient. Criteria that read data score each sample;
`metric.reduction` makes one score of these: `mean`, `mean_abs`, `sum`, `mean_plus_2_std`. Choose a
criterion with `metric=NAME`; `conf/metric/NAME.yaml` explains its settings, the docstring of its
class deviations from its paper. Options for all: `schedule.normalise=l2` (divide each layer's
scores by their l2 norm) and `schedule.flops_penalty` (subtract this for each million FLOPs removed
with a unit), both with `schedule.scope=global`; `after_cut.recalibrate` (recompute BatchNorm's
statistics after each cut). `python -m pruning_lab.ground_truth` measures how good each criterion is
([ground truth](../experiments/ground_truth)); [own_criterion.md](own_criterion.md) says how to add
one.

"""
COLUMNS = ("`metric=`", "in words", "score of a unit", "reads", "source")

FOLDER = files("pruning_lab.conf") / "metric"


def names() -> list[str]:
    """Return all values that ``metric=`` takes, sorted."""
    file_names = (path.name for path in FOLDER.iterdir())
    return sorted(name.removesuffix(".yaml") for name in file_names if name.endswith(".yaml"))


def settings(name: str) -> DictConfig:
    """Return the settings of a criterion in conf/metric; UserError for an unknown name."""
    check_choice("criterion", name, names())
    return DictConfig(OmegaConf.create(_text(name)))


def table() -> str:
    """Return a Markdown table of all criteria, from their YAML comments and docstrings."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(_row, names())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _row(name: str) -> tuple[str, ...]:
    words = _text(name).splitlines()[0].removeprefix("# ").rstrip(".")
    kind: type[AttributionMetric] = find_target(settings(name)._target_, f"metric={name}")
    docs = kind.__doc__ or ""
    score = re.sub(r" \([^()]*arXiv [^()]*\)", "", " ".join(docs.split("\n\n")[0].split()))
    cells = (re.sub(r"([|*])", r"\\\1", text) for text in (words, score.rstrip(".")))
    numbers = dict.fromkeys(re.findall(r"arXiv (\d{4}\.\d{4,5})", docs))
    links = ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in numbers)
    return (f"`{name}`", *cells, kind.evidence, links)


def _text(name: str) -> str:
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


if __name__ == "__main__":
    print(HEAD + table(), end="")
