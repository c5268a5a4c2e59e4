"""``python -m pruning_lab.criteria``: print a Markdown table of all criteria in conf/metric."""

import re
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable

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


def _folder() -> Traversable:
    return files("pruning_lab.conf") / "metric"


def names() -> list[str]:
    """All values that ``metric=`` takes, sorted."""
    yaml = ".yaml"
    file_names = (path.name for path in _folder().iterdir())
    return sorted(name.removesuffix(yaml) for name in file_names if name.endswith(yaml))


def settings(name: str) -> DictConfig:
    """Settings of a criterion in conf/metric; UserError for an unknown name."""
    check_choice("criterion", name, names())
    config = OmegaConf.create((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(config, DictConfig)
    return config


def table() -> str:
    """Markdown table with one row per criterion, from its YAML comment and its docstring."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(_row, names())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _row(name: str) -> tuple[str, ...]:
    text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    words = text.splitlines()[0].removeprefix("# ").rstrip(".")
    kind: type[AttributionMetric] = find_target(settings(name)._target_, f"metric={name}")
    docs = kind.__doc__ or ""
    score = re.sub(r" \([^()]*arXiv [^()]*\)", "", " ".join(docs.split("\n\n")[0].split()))
    return (f"`{name}`", *map(_escaped, (words, score.rstrip("."))), kind.evidence, _sources(docs))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def _sources(text: str) -> str:
    def links() -> Iterator[str]:
        for number in dict.fromkeys(re.findall(r"arXiv (\d{4}\.\d{4,5})", text)):
            yield f"[{number}](https://arxiv.org/abs/{number})"

    return ", ".join(links())


if __name__ == "__main__":
    print(HEAD + table(), end="")
