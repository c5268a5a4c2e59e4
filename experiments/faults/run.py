"""Kill runs at random moments and break everything that they write to; check that nothing is lost.

Every trial has a fresh folder with its own baseline, checkpoints and MLflow store. After the fault
the same command is run again; its curve, scores and pruned models must equal those of an
undisturbed run, bit for bit.
"""

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from experiments.faults import faults
from experiments.faults.server import Server, server
from experiments.faults.trial import (
    Prepare,
    Trials,
    begin,
    expected,
    finish,
    left,
    moment,
    said,
    same,
)
from pruning_lab.compare import markdown

CRITERIA = ["random", "apoz", "sensitivity", "taylor", "taylor_signed", "weight_norm", "shapley",
            "shapley_exact", "owen_gradient"]  # fmt: skip
ERRORS = {"ENOSPC": ("disk full", "No space left"), "EACCES": ("permission denied", "denied")}
LATE = 150
"""A batch of the fine-tuning after the first step."""
AGAIN = "the same command again"
AWAY = "does not take what was measured"


@cache
def undisturbed(place: Path) -> dict[str, Any]:
    """Return the results of a run without faults."""
    assert finish(place / "plain", []) == 0, said(place / "plain")
    return expected(place / "plain")


def kills(place: Path, times: int, seed: int) -> Iterator[Trials]:
    """Kill runs one to three times at random moments, criterion by criterion."""
    chance, moments = np.random.default_rng(seed), Counter[str]()
    for criterion in tqdm(CRITERIA, desc="kills"):
        overrides = [f"metric={criterion}"]
        started = time.perf_counter()
        assert finish(place / criterion, overrides) == 0, said(place / criterion)
        lasts, plain = time.perf_counter() - started, expected(place / criterion)
        trials = Trials(f"killed one to three times, metric={criterion}")
        for trial in range(times):
            folder, hit = place / f"{criterion}-{trial}", 0
            for _ in range(chance.integers(1, 4)):
                process = begin(folder, overrides)
                process.join(chance.uniform(0, lasts))
                if process.exitcode is None:
                    os.kill(process.pid, signal.SIGKILL)
                    process.join()
                    moments[moment(folder)] += 1
                    hit += 1
            equal = finish(folder, overrides) == 0 and same(left(folder), plain)
            if hit:  # else it had ended before
                trials.add(equal, folder)
            if not trials.problems:
                shutil.rmtree(folder)
        yield trials
    print("Kills hit:", ", ".join(f"{where} {often}" for where, often in moments.most_common()))


def in_turn(
    name: str,
    broken: Callable[[int], Prepare],
    reason: str,
    place: Path,
    every: int = 1,
    before: Prepare | None = None,
) -> Iterator[Trials]:
    """Break the first operation of a kind, then the second, ... until a run has no further one.

    With ``before``, an earlier run is broken by that fault first. A run reports the fault if it
    gives the ``reason`` and, if it ends, says that the same command resumes it.
    """
    plain, trials = undisturbed(place), Trials(name)
    for number in tqdm(count(0, every), desc=name):
        folder = place / f"{re.sub('[^a-z]+', '-', name.lower())}-{number}"
        if before is not None:
            finish(folder, [], before)
            (folder / faults.STRUCK).unlink()
            (folder / "said.txt").unlink()
        first = finish(folder, [], broken(number))
        text = said(folder)
        equal = finish(folder, []) == 0 and same(left(folder), plain)
        if not (folder / faults.STRUCK).exists():
            yield trials
            return
        told = reason in text and (first == 0 or AGAIN in text)
        trials.add(equal, folder, None if first == -signal.SIGKILL else told)


def writes(place: Path) -> Iterator[Trials]:
    """Break every write of a checkpoint, baseline, scores or model: errors, and torn files."""
    for error, (name, reason) in ERRORS.items():
        broken = partial(faults.broken_write, how=error)
        yield from in_turn(f"{name}, each write in turn", broken, reason, place)
    torn = partial(faults.broken_write, how="torn")
    yield from in_turn("killed with half a file written, each in turn", torn, "", place)


def outputs(place: Path) -> Iterator[Trials]:
    """Break every file in a run's output folder: figures, tables, the log."""
    for error, (name, reason) in ERRORS.items():
        broken = partial(faults.broken_output, how=error)
        yield from in_turn(f"{name}, each output file in turn", broken, reason, place)


def stores(place: Path, every: int) -> Iterator[Trials]:
    """Break every call of MLflow, alone or with all later ones."""
    for name, once, rarer in (("each call in turn", True, 1), ("from a call on", False, 4)):
        broken, step = partial(faults.broken_store, once=once), rarer * every
        yield from in_turn(f"MLflow's disk full, {name}", broken, "No space left", place, step)
    broken, cut = partial(faults.broken_store, once=True), faults.broken_data(LATE)
    name = "MLflow's disk full, each call in turn of a run that goes on"
    yield from in_turn(name, broken, "No space left", place, every, before=cut)


def data(place: Path, times: int, seed: int) -> Iterator[Trials]:
    """Make batches at random positions unreadable."""
    plain, chance = undisturbed(place), np.random.default_rng(seed)
    trials = Trials("a batch of the data cannot be read")
    for trial in tqdm(range(times), desc="data"):
        folder = place / f"data-{trial}"
        first = finish(folder, [], faults.broken_data(int(chance.integers(0, 200))))
        told = first != 0 and "Input/output error" in said(folder) and AGAIN in said(folder)
        equal = finish(folder, []) == 0 and same(left(folder), plain)
        trials.add(equal, folder, told)
    yield trials


# -- a server that stops, is slow, or restarts -----------------------------------------------------


def back_soon(own: Server, process: Any) -> None:
    """Kill the server and restart it three seconds later."""
    own.send(signal.SIGKILL)
    time.sleep(3)
    own.start()
    process.join()


def gone(own: Server, process: Any) -> None:
    """Kill the server and restart it when the run has ended."""
    own.send(signal.SIGKILL)
    process.join()
    own.start()


def slow(own: Server, process: Any) -> None:
    """Stop the server for two seconds, again and again."""
    while process.is_alive():
        own.send(signal.SIGSTOP)
        time.sleep(2)
        own.send(signal.SIGCONT)
        process.join(0.5)


def servers(place: Path, times: int, seed: int) -> Iterator[Trials]:
    """Kill the server or slow it down from a random moment on."""
    chance = np.random.default_rng(seed)
    with server(place / "served") as plain:
        started = time.perf_counter()
        assert finish(place / "with-server", [f"tracking.uri={plain.uri}"]) == 0
        lasts = time.perf_counter() - started
        undisturbed_there = expected(place / "with-server", plain.uri)
    names = {"away, back after 3 s": back_soon, "away beyond the end": gone, "slow": slow}
    for name, fault in tqdm(names.items(), desc="servers"):
        trials = Trials(f"MLflow's server {name}")
        for trial in range(times):
            folder = place / f"{fault.__name__}-{trial}"
            with server(folder / "served") as mlflow:
                uri = [f"tracking.uri={mlflow.uri}"]
                process = begin(folder, uri)
                time.sleep(chance.uniform(1, 0.8 * lasts))
                if not process.is_alive():
                    continue  # it had ended before
                fault(mlflow, process)
                text = said(folder)
                told = AGAIN in text if process.exitcode else AWAY in text or None
                equal = finish(folder, uri) == 0
                equal = equal and same(left(folder, mlflow.uri), undisturbed_there)
                trials.add(equal, folder, told)
        yield trials


def main() -> None:
    """Run the campaigns and print the table; exit with 1 if anything was lost or unreported."""
    campaigns: dict[str, Callable[[Path, argparse.Namespace], Iterator[Trials]]] = {
        "kills": lambda place, options: kills(place, options.kills, options.seed),
        "data": lambda place, options: data(place, options.data, options.seed),
        "writes": lambda place, _: writes(place),
        "outputs": lambda place, _: outputs(place),
        "stores": lambda place, options: stores(place, options.every),
        "servers": lambda place, options: servers(place, options.servers, options.seed),
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=6, help="runs that are killed, per criterion")
    parser.add_argument("--data", type=int, default=10, help="runs with an unreadable batch")
    parser.add_argument("--servers", type=int, default=3, help="runs per fault of a server")
    parser.add_argument("--every", type=int, default=1, help="break every n-th call of MLflow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(campaigns))
    parser.add_argument("--folder", type=Path, help="folder to work in, which is kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [options.only] if options.only else list(campaigns)
    with tempfile.TemporaryDirectory() as temporary:
        place = (options.folder or Path(temporary)).absolute()
        done = []
        for trials in chain.from_iterable(campaigns[name](place, options) for name in wanted):
            print(f"\n{trials.fault}: {trials.equal} of {trials.count} equal", flush=True)
            print("\n".join(trials.problems), flush=True)
            done.append(trials)
    table = pd.DataFrame(
        [(trials.fault, trials.count, trials.told, trials.equal) for trials in done],
        columns=["fault", "runs", "said so", "equal in the end"],
    )
    print(markdown(table.set_index("fault")))
    sys.exit(any(trials.problems for trials in done))


if __name__ == "__main__":
    main()
