"""Run one sweep by every launcher and check that the curves are equal, to the last bit.

    python -m experiments.sweeps.launchers
    python -m experiments.sweeps.launchers hydra/launcher=slurm hydra.launcher.mem_gb=2

Six criteria prune a small network of the digits in two steps, by Hydra's own launcher, joblib,
submitit and Ray, each with its own store, baselines and outputs. With overrides, only the launcher
that they set is compared. Exits with 1 unless all curves equal those of Hydra's own launcher.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from pruning_lab.records.step import OF_THE_MACHINE
from pruning_lab.tracking import read_runs

METRICS = ("random", "apoz", "sensitivity", "taylor", "weight_norm", "shapley")
SWEEP = (
    f"metric={','.join(METRICS)}",
    "model=mlp",
    "model.hidden=[32,16]",
    "dataset=digits",
    "threads=1",
    "schedule.steps=2",
    "finetune.epochs=1",
    "finetune.steps=null",
)
BASIC = "basic"
LAUNCHERS: dict[str, tuple[str, ...]] = {
    BASIC: (),
    "parallel (joblib)": ("hydra/launcher=parallel",),
    "submitit_local": ("hydra/launcher=submitit_local",),
    "cluster (Ray), on this machine": (
        "hydra/launcher=cluster",
        "hydra.launcher.ray.init.address=local",
        "+hydra.launcher.ray.init.include_dashboard=false",
    ),
}
QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}


def sweep(folder: Path, overrides: tuple[str, ...]) -> pd.DataFrame:
    """Return the sweep's curves by one launcher, sorted, without run ids and the machine's columns.

    Raises CalledProcessError with the output if a job fails.
    """
    places = (
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
        f"baseline.folder={folder}/baselines",
        f"checkpoints={folder}/checkpoints",
        f"hydra.sweep.dir={folder}/outputs",
    )
    command = [sys.executable, "-m", "pruning_lab", "-m", *SWEEP, *places, *overrides]
    subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | QUIET)  # noqa: S603
    frame = read_runs(f"sqlite:///{folder}/mlflow.db", "pruning_lab")
    frame = frame.drop(columns=["run_id", *OF_THE_MACHINE])
    return frame.sort_values(["metric", "step"], ignore_index=True)


def table(curves: dict[str, pd.DataFrame]) -> str:
    """Return a Markdown row for each launcher: finished runs, and equality of all curves."""
    lines = ["| launcher | runs finished | bit-equal to basic |", "| --- | ---: | --- |"]
    for launcher, frame in curves.items():
        runs = f"{frame.metric.nunique()} of {len(METRICS)}"
        lines.append(f"| {launcher} | {runs} | {'yes' if equal(curves, launcher) else 'no'} |")
    return "\n".join(lines)


def equal(curves: dict[str, pd.DataFrame], launcher: str) -> bool:
    """Return True if a launcher's curves are complete and equal those of Hydra's own launcher."""
    complete = set(curves[launcher].metric) == set(METRICS)
    return complete and curves[launcher].equals(curves[BASIC])


def main() -> int:
    """Print the table; return 0 if all launchers give the same curves."""
    given, curves = tuple(sys.argv[1:]), {}
    launchers = {BASIC: (), " ".join(given): given} if given else LAUNCHERS
    with tempfile.TemporaryDirectory() as folder:
        for number, (launcher, overrides) in enumerate(launchers.items()):
            try:
                curves[launcher] = sweep(Path(folder) / str(number), overrides)
            except subprocess.CalledProcessError as error:
                print(error.stdout, error.stderr, sep="\n", file=sys.stderr)
                return 1
    print(table(curves))
    return 0 if all(equal(curves, launcher) for launcher in curves) else 1


if __name__ == "__main__":
    sys.exit(main())
