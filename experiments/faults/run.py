"""Kills runs at random moments and breaks everything that they write to: is anything lost?

A run is the command itself, in a process forked from this one (so that its second is not spent on
imports). Every trial has a fresh folder: baseline, checkpoints and MLflow store are its own. After
the fault the same command is given again, and its curve, scores and pruned model are held against
those of a run that nothing disturbed, bit for bit.
"""

import argparse
import errno
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.tracking import MlflowClient
from tqdm import tqdm

from pruning_lab import atomic, tracking
from pruning_lab.__main__ import run
from pruning_lab.compare import markdown
from pruning_lab.datasets.splits import Images
from pruning_lab.track import OF_THE_MACHINE
from pruning_lab.tracking import write

CRITERIA = ["random", "apoz", "sensitivity", "taylor", "taylor_signed", "weight_norm", "shapley",
            "shapley_exact", "owen_gradient"]  # fmt: skip
RUN = ["model=convnet", "model.channels=[6,8]", "model.hidden=8", "dataset=digits", "threads=1",
       "attributions=cheap", "baseline.training.epochs=3", "schedule.steps=2", "finetune.epochs=2",
       "controls.untuned=true", "controls.scratch=true", "keep=all"]  # fmt: skip
Prepare = Callable[[], None]


@dataclass
class Trials:
    """What became of the trials with one fault."""

    fault: str
    count: int = 0
    said: int = 0
    equal: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, said: bool, equal: bool, about: str = "") -> None:
        self.count += 1
        self.said += said
        self.equal += equal
        if not (said and equal):
            self.problems.append(f"{about}: said={said} equal={equal}")


# -- a run, and what it leaves ---------------------------------------------------------------------


def begin(folder: Path, overrides: list[str], prepare: Prepare = lambda: None) -> Any:
    """The command in a process of its own, which ``prepare`` may break first."""

    def job() -> None:
        os.chdir(folder)
        out = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.argv = ["pruning_lab", *RUN, *overrides]
        prepare()
        run()

    folder.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=job)
    process.start()
    return process


def finish(folder: Path, overrides: list[str], prepare: Prepare = lambda: None) -> int:
    """The command, waited for; its exit code."""
    process = begin(folder, overrides, prepare)
    process.join()
    return int(process.exitcode)


def said(folder: Path) -> str:
    """All that the commands in a folder printed."""
    return (folder / "said.txt").read_text()


def left(folder: Path, uri: str | None = None) -> dict[str, Any]:
    """Curve, scores and pruned models of a folder's one finished run, and how many runs it has."""
    uri = uri or f"sqlite:///{folder / 'mlflow.db'}"
    client = tracking.connect(uri)
    number = client.get_experiment_by_name("pruning_lab").experiment_id
    runs = client.search_runs([number])
    frame = tracking.read_runs(uri, "pruning_lab")
    found: dict[str, Any] = {"runs": [each.info.status for each in runs]}
    if frame.empty:
        return found
    (run_id,) = frame["run_id"].unique()
    found["curve"] = frame.drop(columns=["run_id", *OF_THE_MACHINE])
    found["points"] = sorted(
        (key, point.step)
        for key in client.get_run(run_id).data.metrics
        for point in client.get_metric_history(run_id, key)
    )
    with tempfile.TemporaryDirectory() as place:
        whole = Path(client.download_artifacts(run_id, "", place))
        for path in sorted(whole.rglob("*")):
            if path.suffix in (".npz", ".safetensors"):
                found[str(path.relative_to(whole))] = content(path)
    return found


def content(path: Path) -> Any:
    """What is in a file, without the dates that archives have."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {key: arrays[key].tobytes() for key in arrays.files}
    return path.read_bytes()


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether two runs left the same, bit for bit."""
    return found.keys() == expected.keys() and all(
        value.equals(expected[key]) if isinstance(value, pd.DataFrame) else value == expected[key]
        for key, value in found.items()
    )


# -- the faults ------------------------------------------------------------------------------------


def kills(place: Path, count: int, seed: int) -> Iterator[tuple[Trials, Counter[str]]]:
    """One to three kills at random moments of a run, criterion by criterion in turn."""
    chance = np.random.default_rng(seed)
    for criterion in CRITERIA:
        overrides = [f"metric={criterion}"]
        started = time.perf_counter()
        assert finish(place / criterion, overrides) == 0, said(place / criterion)
        lasts, expected = time.perf_counter() - started, left(place / criterion)
        trials, moments = Trials(f"killed, metric={criterion}"), Counter[str]()
        for trial in range(count):
            folder = place / f"{criterion}-{trial}"
            for _ in range(chance.integers(1, 4)):
                process = begin(folder, overrides)
                process.join(chance.uniform(0, lasts))
                if process.exitcode is None:
                    os.kill(process.pid, signal.SIGKILL)
                    process.join()
                    moments[moment(folder)] += 1
            done = finish(folder, overrides) == 0
            trials.add(True, done and same(left(folder), expected), str(folder))
            if not trials.problems:
                shutil.rmtree(folder)
        yield trials, moments


def moment(folder: Path) -> str:
    """What a run was at when it was killed, by the last that it said."""
    lines = said(folder).splitlines() if (folder / "said.txt").exists() else []
    last = next((line for line in reversed(lines) if re.match(r"\d\d:\d\d:\d\d ", line)), "")
    at = [("scratch", "training from scratch"), ("untuned", "the untuned track"),
          ("Training", "training"), ("Scoring", "scoring"), ("Baseline", "scoring"),
          ("Step", "the steps"), ("Table|Figure|Pruned|MLflow", "the end")]  # fmt: skip
    return next((where for key, where in at if re.search(key, last)), "the beginning")


def broken_write(number: int, how: str) -> Prepare:
    """Let the write of this number fail, or tear the file and end the process."""

    def prepare() -> None:
        count, own = iter(range(10**6)), atomic.to_disk

        def to_disk(path: Path) -> None:
            if path.suffix == ".part" and next(count) == number:
                if how == "torn":
                    os.truncate(path, path.stat().st_size // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(getattr(errno, how), os.strerror(getattr(errno, how)))
            own(path)

        atomic.to_disk = to_disk

    return prepare


def broken_store(number: int, once: bool) -> Prepare:
    """Let MLflow fail at its call of this number, once or from there on."""

    def prepare() -> None:
        count = iter(range(10**6))
        write.PATIENCE = (0,)

        def failing(own: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any, **named: Any) -> Any:
                now = next(count)
                if now == number or (now > number and not once):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return own(*given, **named)

            return call

        for name in ("create_run", "log_batch", "log_artifact", "log_artifacts", "set_terminated"):
            setattr(MlflowClient, name, failing(getattr(MlflowClient, name)))

    return prepare


def broken_data(number: int) -> Prepare:
    """Let the batch of this number be unreadable."""

    def prepare() -> None:
        count, own = iter(range(10**6)), Images.__getitem__

        def read(self: Images, index: Any) -> Any:
            if next(count) == number:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return own(self, index)

        Images.__getitem__ = read  # type: ignore[method-assign]

    return prepare


def writes(place: Path, expected: dict[str, Any], how: str, said_so: str) -> Trials:
    """Every write of a run fails in turn, until there is no further one."""
    trials = Trials({"ENOSPC": "disk full", "EACCES": "permission denied", "torn": "torn file"}[how]
                    + ", every write in turn")  # fmt: skip
    for number in range(10**6):
        folder = place / f"{how}-{number}"
        first = finish(folder, [], broken_write(number, how))
        if first == 0:
            return trials
        told = first == -signal.SIGKILL if how == "torn" else said_so in said(folder)
        done = finish(folder, []) == 0
        trials.add(told, done and same(left(folder), expected), str(folder))
    raise AssertionError


def stores(place: Path, expected: dict[str, Any], once: bool) -> Trials:
    """Every call of MLflow fails in turn, or all from one on, until there is no further one."""
    trials = Trials("MLflow's disk full, " + ("every call in turn" if once else "from a call on"))
    for number in range(0, 10**6, 1 if once else 4):
        folder = place / f"store-{once}-{number}"
        first = finish(folder, [], broken_store(number, once))
        text = said(folder)
        if first == 0 and "does not take" not in text:
            return trials
        done = finish(folder, []) == 0
        told = "does not take what was measured" in text or "No space left" in text
        trials.add(told, done and same(left(folder), expected), str(folder))
    raise AssertionError


def data(place: Path, expected: dict[str, Any], count: int, seed: int) -> Trials:
    """Batches at random places cannot be read."""
    trials, chance = Trials("a batch cannot be read"), np.random.default_rng(seed)
    for trial in range(count):
        folder = place / f"data-{trial}"
        first = finish(folder, [], broken_data(int(chance.integers(0, 200))))
        told = first != 0 and "Input/output error" in said(folder)
        done = finish(folder, []) == 0
        trials.add(told, done and same(left(folder), expected), str(folder))
    return trials


# -- a server that is away, slow, and back ---------------------------------------------------------


class Server:
    """An MLflow server of its own on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
            "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}",
            "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        with (self.folder / "server.txt").open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603
                command, stdout=log, stderr=log, start_new_session=True
            )
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1)  # noqa: S310
                return
            except OSError:
                time.sleep(0.2)

    def send(self, number: signal.Signals) -> None:
        """A signal to the server and its workers."""
        assert self.process is not None
        os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    own = Server(folder)
    own.start()
    try:
        yield own
    finally:
        if own.process is not None and own.process.poll() is None:
            own.send(signal.SIGKILL)


def servers(place: Path, count: int, seed: int) -> Iterator[Trials]:
    """Away for a while and back; away beyond the end; stopped for seconds again and again."""
    chance = np.random.default_rng(seed)
    with server(place / "served") as plain:
        uri = [f"tracking.uri={plain.uri}"]
        started = time.perf_counter()
        assert finish(place / "with-server", uri) == 0, said(place / "with-server")
        lasts, expected = time.perf_counter() - started, left(place / "with-server", plain.uri)
    for fault in ("server away, then back", "server away beyond the end", "server slow"):
        trials = Trials(fault)
        for trial in range(count):
            folder = place / f"{fault}-{trial}"
            with server(folder / "served") as own:
                uri = [f"tracking.uri={own.uri}"]
                process = begin(folder, uri)
                time.sleep(chance.uniform(1, 0.8 * lasts))
                if fault == "server slow":
                    while process.is_alive():
                        own.send(signal.SIGSTOP)
                        time.sleep(2)
                        own.send(signal.SIGCONT)
                        process.join(0.5)
                    told = process.exitcode == 0
                else:
                    own.send(signal.SIGKILL)
                    if fault == "server away, then back":
                        time.sleep(3)
                        own.start()
                    process.join()
                    told = process.exitcode == 0 or "run the same command again" in said(folder)
                if own.process is None or own.process.poll() is not None:
                    own.start()
                done = finish(folder, uri) == 0
                trials.add(told, done and same(left(folder, own.uri), expected), str(folder))
        yield trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=6, help="runs that are killed, per criterion")
    parser.add_argument("--data", type=int, default=10, help="runs with an unreadable batch")
    parser.add_argument("--servers", type=int, default=3, help="runs per fault of a server")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["kills", "writes", "stores", "data", "servers"])
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    place = options.folder or Path(tempfile.mkdtemp())
    all_trials: list[Trials] = []
    moments: Counter[str] = Counter()

    def wanted(what: str) -> bool:
        return options.only in (None, what)

    if wanted("kills"):
        for trials, at in tqdm(kills(place, options.kills, options.seed), total=len(CRITERIA)):
            all_trials.append(trials)
            moments += at
    expected: dict[str, Any] = {}
    if any(map(wanted, ("writes", "stores", "data"))):
        assert finish(place / "plain", []) == 0, said(place / "plain")
        expected = left(place / "plain")
    some = {
        "writes": [partial(writes, place, expected, how, "cannot be written")
                   for how in ("ENOSPC", "EACCES", "torn")],
        "stores": [partial(stores, place, expected, once) for once in (True, False)],
        "data": [partial(data, place, expected, options.data, options.seed)],
    }  # fmt: skip
    for what, campaigns in some.items():
        if wanted(what):
            all_trials += [campaign() for campaign in campaigns]
    if wanted("servers"):
        all_trials += servers(place, options.servers, options.seed)
    rows = [(t.fault, t.count, t.said, t.equal) for t in all_trials]
    table = pd.DataFrame(rows, columns=["fault", "runs", "said so", "equal in the end"])
    print(markdown(table.set_index("fault")))
    if moments:
        print("Kills hit:", ", ".join(f"{where} {n}" for where, n in moments.most_common()))
    for trials in all_trials:
        for problem in trials.problems:
            print(f"{trials.fault}: {problem}")
    sys.exit(any(trials.problems for trials in all_trials))


if __name__ == "__main__":
    main()
