"""Print the main job's table from the committed files of its runs.

python -m experiments.main_job.table
"""

from pathlib import Path

import numpy as np
import pandas as pd

from experiments.crossed import Crossed, crossed_mean
from pruning_lab.compare import markdown
from pruning_lab.records.per_sample import Pictures, read
from pruning_lab.records.step import MAIN, STAGES

FOLDER = Path(__file__).parent
LAST = 5


def pictures() -> list[Pictures]:
    """Read the answers of each run on the test pictures, one run per seed."""
    return [read(path) for path in sorted(FOLDER.glob("pictures_*.npz"))]


def steps() -> pd.DataFrame:
    """Return all steps of all runs."""
    frames = [
        pd.read_csv(path).assign(seed=int(path.stem.rpartition("_")[2]))
        for path in sorted(FOLDER.glob("steps_*.csv"))
    ]
    return pd.concat(frames, ignore_index=True)


def accuracy(runs: list[Pictures], step: int, stage: str) -> np.ndarray:
    """Return (runs, pictures) in per cent: 100 where a picture is classified correctly."""
    return 100.0 * np.array([run.at(MAIN, step, stage)[0] for run in runs])


def beyond_baseline(runs: list[Pictures]) -> Crossed:
    """Return the accuracy after the last step minus the baseline's, in points."""
    return crossed_mean(accuracy(runs, LAST, "after") - accuracy(runs, 0, "after"))


def table() -> pd.DataFrame:
    """Return means over the runs, with half the 95 % interval over runs and pictures."""
    runs, rows = pictures(), steps()
    lines = []
    for step, group in rows.groupby("step"):
        row: dict[str, object] = {"step": step}
        row["FLOPs removed"] = f"{100 * group['removed_flops'].mean():.1f} %"
        names = ("after the cut", "recalibrated", "after fine-tuning")
        for name, stage in zip(names, STAGES, strict=True):
            estimate = crossed_mean(accuracy(runs, int(str(step)), stage))
            row[name] = f"{estimate.mean:.1f} ± {estimate.high - estimate.mean:.1f}"
        lines.append(row)
    return pd.DataFrame(lines).set_index("step")


def main() -> None:
    """Print the table, and the difference from the baseline."""
    print(markdown(table()))
    print(beyond_baseline(pictures()))


if __name__ == "__main__":
    main()
