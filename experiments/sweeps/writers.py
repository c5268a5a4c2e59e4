"""Write eight runs at once into a new store; check that all are complete, without an error.

    python -m experiments.sweeps.writers --store sqlite --times 20
    python -m experiments.sweeps.writers --store postgresql --times 20

``sqlite`` is a new file in each round. ``postgresql`` is an MLflow server with its own PostgreSQL
cluster, and a new experiment in each round. The eight processes are forked from one that has
imported everything, and wait for one another, so they start at once. Exits with 1 unless all runs
are recorded.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

from hydra import compose, initialize_config_module

from experiments.faults.server import server
from pruning_lab import tracking
from pruning_lab.config.sections import Names
from pruning_lab.experiment import runner
from pruning_lab.experiment.setup import set_up

WRITERS = 8
STEPS = 2
NAMES = Names("mlp", "synthetic", "weight_norm", "geometric", "sgd")
TINY = (
    *(f"{group}={name}" for group, name in vars(NAMES).items()),
    "model.hidden=[16,12]",
    "attributions=none",
    "baseline.training.epochs=1",
    "finetune.epochs=1",
    "finetune.steps=null",
    "schedule.target=0.5",
    f"schedule.steps={STEPS}",
    "device=cpu",
    "threads=1",
)
STORES = ("sqlite", "postgresql")
FORK = multiprocessing.get_context("fork")


def write(
    seed: int, uri: str, name: str, folder: Path, start: Barrier, errors: SimpleQueue
) -> None:
    """Run one seed, starting when all are ready; put an error into ``errors``."""
    places = (f"tracking.uri={uri}", f"tracking.experiment={name}", f"baseline.folder={folder}/b",
              f"checkpoints={folder}/c")  # fmt: skip
    with initialize_config_module("pruning_lab.conf", version_base="1.3"):
        config = compose("config", [*TINY, f"seed={seed}", *places])
    start.wait(timeout=60)
    try:
        runner.run(set_up(config, NAMES), folder / f"outputs/{name}/{seed}")
    except Exception as error:  # every kind is counted
        errors.put(f"{type(error).__name__}: {error}".splitlines()[0])


def at_once(uri: str, name: str, folder: Path) -> list[str]:
    """Run all writers at once; return their errors."""
    start, errors = FORK.Barrier(WRITERS), FORK.SimpleQueue()
    jobs = [
        FORK.Process(target=write, args=(seed, uri, name, folder, start, errors))
        for seed in range(WRITERS)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    died = [f"exit status {job.exitcode}" for job in jobs if job.exitcode]
    return died + [errors.get() for _ in iter(errors.empty, True)]


def complete(uri: str, name: str) -> int:
    """Count the runs whose table and metrics have all steps."""
    client, steps = tracking.connect(uri), STEPS + 1  # and the unpruned network
    table = tracking.read_runs(uri, name)
    return sum(
        len(rows) == len(client.get_metric_history(run, "accuracy/test_accuracy_after")) == steps
        for run, rows in table.groupby("run_id")
    )


# -- the stores -----------------------------------------------------------------------------------


def rounds(store: str, times: int, folder: Path) -> Generator[tuple[str, str], None, None]:
    """Yield the address and the experiment of every round; one of the two is new."""
    if store == "postgresql":
        with postgresql(folder) as database, server(folder, database, workers=2) as mlflow:
            yield from ((mlflow.uri, f"round_{number}") for number in range(times))
        return
    for number in range(times):
        file = folder / str(number) / "mlflow.db"
        yield f"sqlite:///{file}", "pruning_lab"


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """Run a PostgreSQL cluster on a Unix socket as long as the context; yield its address."""
    tools, data = max(Path("/usr/lib/postgresql").glob("*/bin")), folder / "postgresql"
    data.mkdir()
    control = [str(tools / "pg_ctl"), "--silent", "--pgdata", str(data / "cluster")]
    if os.geteuid() == 0:  # PostgreSQL refuses root
        folder.chmod(0o711)
        shutil.chown(data, "postgres")
        control = ["runuser", "-u", "postgres", "--", *control]
    options = f"-c listen_addresses='' -c unix_socket_directories={data}"
    call([*control, "--options=--username=postgres --auth=trust", "initdb"])
    call([*control, f"--options={options}", "--log", str(data / "log"), "--wait", "start"])
    try:
        yield f"postgresql+psycopg://postgres@/postgres?host={data}"
    finally:
        call([*control, "--mode=immediate", "stop"])


def call(command: list[str]) -> None:
    """Run a command that must succeed, in a folder that every user may enter."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")  # noqa: S603


def main() -> int:
    """Print a table of the recorded runs; return 0 if all are complete."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", choices=STORES, default=STORES[0])
    parser.add_argument("--times", type=int, default=20, help="rounds of eight runs")
    arguments = parser.parse_args()
    errors: Counter[str] = Counter()
    recorded, seconds = 0, []
    with (
        tempfile.TemporaryDirectory() as place,
        closing(rounds(arguments.store, arguments.times, Path(place))) as addresses,
    ):
        for uri, name in addresses:
            started = time.perf_counter()
            errors.update(at_once(uri, name, Path(place)))
            seconds.append(time.perf_counter() - started)
            recorded += complete(uri, name)
    runs = arguments.times * WRITERS
    print("| store | runs, eight at once | whole | errors | seconds a round (median) |")
    print("| --- | ---: | ---: | ---: | ---: |")
    print(
        f"| {arguments.store} | {runs} | {recorded} | {errors.total()} | "
        f"{statistics.median(seconds):.1f} |"
    )
    for error, times in errors.most_common():
        print(f"{times} times: {error}", file=sys.stderr)
    return 0 if recorded == runs and not errors else 1


if __name__ == "__main__":
    sys.exit(main())
