"""Print the main job's table from the committed files of its runs.

python -m experiments.main_job.table
"""

from pathlib import Path

import numpy as np
import pandas as pd

from pruning_lab.compare import markdown
from pruning_lab.compare.crossed import Crossed, crossed_mean
from pruning_lab.pictures import Pictures, read
from pruning_lab.track import MAIN, STAGES

FOLDER = Path(__file__).parent
LAST = 5


def pictures() -> list[Pictures]:
    """Return which test pictures each run had right, one run a seed."""
    return [read(path) for path in sorted(FOLDER.glob("pictures_*.npz"))]


def steps() -> pd.DataFrame:
    """Return all steps of all runs."""
    found = [
        pd.read_csv(path).assign(seed=int(path.stem.rpartition("_")[2]))
        for path in sorted(FOLDER.glob("steps_*.csv"))
    ]
    return pd.concat(found, ignore_index=True)


def accuracy(runs: list[Pictures], step: int, stage: str) -> np.ndarray:
    """Return (runs, pictures) in per cent: 100 where a picture is right."""
    return 100.0 * np.array([run.at(MAIN, step, stage)[0] for run in runs])


def beyond_baseline(runs: list[Pictures]) -> Crossed:
    """Return by how many points the last step lies above the baseline."""
    return crossed_mean(accuracy(runs, LAST, "after") - accuracy(runs, 0, "after"))


def table() -> pd.DataFrame:
    """Return means over the runs, with half the 95 % interval over runs and pictures."""
    runs, rows = pictures(), steps()
    found = []
    for step, own in rows.groupby("step"):
        row: dict[str, object] = {"step": step}
        row["FLOPs removed"] = f"{100 * own['removed_flops'].mean():.1f} %"
        names = ("after the cut", "recalibrated", "after fine-tuning")
        for name, stage in zip(names, STAGES, strict=True):
            each = crossed_mean(accuracy(runs, int(str(step)), stage))
            row[name] = f"{each.mean:.1f} ± {each.high - each.mean:.1f}"
        found.append(row)
    return pd.DataFrame(found).set_index("step")


def main() -> None:
    """Print the table, and the difference from the baseline."""
    print(markdown(table()))
    print(beyond_baseline(pictures()))


if __name__ == "__main__":
    main()
