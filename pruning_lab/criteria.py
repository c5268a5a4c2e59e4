"""``python -m pruning_lab.criteria``: every criterion of conf/metric in one Markdown table."""

import re
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable

from omegaconf import DictConfig, OmegaConf

from pruning_lab.attributions import AttributionMetric
from pruning_lab.errors import check_choice
from pruning_lab.setup import find_target

HEAD = """\
# The criteria

Higher scores mean: keep. With a the activation (units, positions) of a sample behind the BatchNorm
and non-linearity that directly follow the layer, g the gradient there of the sample's own loss L,
and w a weight of the unit. What reads data scores each sample; `metric.reduction` makes one score
of them: `mean`, `mean_abs`, `sum`, `mean_plus_2_std`. `metric=NAME` is given on the command line;
its settings are explained in `conf/metric/NAME.yaml`, where it departs from its paper in its
docstring. For all of them: `schedule.normalise=l2` (scores of each layer over their l2 norm),
`schedule.flops_penalty` (less so much for each million FLOPs that go with a unit), both with
`schedule.scope=global`, and `after_cut.recalibrate` (BatchNorm's statistics after each cut).
`python -m pruning_lab.truth` measures what each is worth
([ground truth](../experiments/ground_truth)), and [own_criterion.md](own_criterion.md) says how to
add one.

"""
COLUMNS = ("`metric=`", "in words", "score of a unit", "reads", "source")


def _folder() -> Traversable:
    return files("pruning_lab.conf") / "metric"


def names() -> list[str]:
    """All values that ``metric=`` takes, sorted."""
    yaml = ".yaml"
    found = (each.name for each in _folder().iterdir())
    return sorted(name.removesuffix(yaml) for name in found if name.endswith(yaml))


def settings(name: str) -> DictConfig:
    """What conf/metric says of a criterion; UserError for one that is not there."""
    check_choice("criterion", name, names())
    found = OmegaConf.create((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(found, DictConfig)
    return found


def table() -> str:
    """One row a criterion: what its YAML and its docstring say first."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(_row, names())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _row(name: str) -> tuple[str, ...]:
    text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    words = text.splitlines()[0].removeprefix("# ").rstrip(".")
    kind: type[AttributionMetric] = find_target(settings(name)._target_, f"metric={name}")
    about = kind.__doc__ or ""
    score = re.sub(r" \([^()]*arXiv [^()]*\)", "", " ".join(about.split("\n\n")[0].split()))
    return (f"`{name}`", *map(_escaped, (words, score.rstrip("."))), kind.evidence, _sources(about))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def _sources(text: str) -> str:
    def links() -> Iterator[str]:
        for number in dict.fromkeys(re.findall(r"arXiv (\d{4}\.\d{4,5})", text)):
            yield f"[{number}](https://arxiv.org/abs/{number})"

    return ", ".join(links())


if __name__ == "__main__":
    print(HEAD + table(), end="")
