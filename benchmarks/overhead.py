"""Measure the share of a run's time that is neither scoring, nor training, nor evaluation.

Also measure the seconds from the start of the process, imports included, to the first of these.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import chdir
from typing import Any

import pandas as pd
import psutil

from pruning_lab.__main__ import main as command
from pruning_lab.compare import markdown
from pruning_lab.experiment import conditions, pruning_run, recorder, recovery, resume, stages
from pruning_lab.tracking import write

RUNS = {
    "lenet": ["model=convnet", "model.channels=[20,50]", "model.hidden=500"],
    "vgg16": ["model=vgg16"],
}
WORK = {
    "scoring": [(stages, "score_network"), (stages, "score_together")],
    "training": [(stages, "fit"), (recovery, "fit"), (recovery, "recalibrate")],
    "evaluation": [(conditions, "evaluate")],
}
REST = {
    "figures": [(write.Run, "figure"), (recorder.MlflowRecorder, "curves"),
                (recorder, "score_histograms"), (recorder, "sorted_scores"),
                (recorder, "rank_correlation"), (recorder, "widths")],
    "checkpoints": [(resume, "_write"), (resume, "_read")],
    "tracking": [(write.Run, "_send"), (write, "_finish")],
    "planning": [(pruning_run.PruningRun, "choose")],
    "latency and size": [(pruning_run, "result_of"), (stages, "result_of")],
}  # fmt: skip


class Clock:
    """Seconds by activity; a timed call inside another counts for the inner one only."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.first: float | None = None
        self._open: list[float] = []

    def timed(self, name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if self.first is None and name in WORK:
                self.first = time.time() - psutil.Process().create_time()
            started = time.perf_counter()
            self._open.append(0.0)
            try:
                return own(*given, **named)
            finally:
                spent, inside = time.perf_counter() - started, self._open.pop()
                self.seconds[name] += spent - inside
                if self._open:
                    self._open[-1] += spent

        return call


def measured(overrides: Sequence[str]) -> pd.Series:
    """Run the command once in a temporary folder; return its seconds by activity."""
    clock = Clock()
    parts = [(name, place) for name, places in (WORK | REST).items() for place in places]
    originals = [(owner, key, getattr(owner, key)) for _, (owner, key) in parts]
    for (name, _), (owner, key, original) in zip(parts, originals, strict=True):
        setattr(owner, key, clock.timed(name, original))
    started, arguments = time.perf_counter(), sys.argv
    try:
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            sys.argv = ["pruning_lab", *overrides]
            command()
            total = time.perf_counter() - started
    finally:
        sys.argv = arguments
        for owner, key, original in originals:
            setattr(owner, key, original)
    seconds = pd.Series(clock.seconds).reindex([*WORK, *REST], fill_value=0.0)
    seconds["start and the rest"] = total - seconds.sum()
    seconds["whole"] = total
    seconds["start of the process to the first work"] = clock.first
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", choices=list(RUNS), default="lenet")
    options, overrides = parser.parse_known_args()  # overrides of the command: metric=shapley ...
    table = measured([*RUNS[options.run], *overrides]).to_frame(options.run)
    work = table.loc[list(WORK)].sum()
    shown = table.map("{:.2f} s".format)
    shown.loc["not scoring, training, evaluation"] = (1 - work / table.loc["whole"]).map(
        "{:.1%}".format
    )
    print(markdown(shown.rename_axis("spent on")))


if __name__ == "__main__":
    main()
