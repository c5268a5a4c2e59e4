"""A local MLflow server that can be stopped, killed and restarted."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen


class Server:
    """An MLflow server on this machine; its artifacts, log and default store are in ``folder``."""

    def __init__(self, folder: Path, store: str | None = None, workers: int = 1) -> None:
        self.folder, self.store, self.workers = folder, store, workers
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers; raise RuntimeError if it ends instead."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "server.txt"
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", str(self.workers)),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", self.store or f"sqlite:///{self.folder / 'server.db'}"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
        ]
        with log.open("ab") as said:
            self.process = subprocess.Popen(  # noqa: S603
                command, stdout=said, stderr=said, start_new_session=True
            )
        while not self.answers():
            if self.process.poll() is not None:
                raise RuntimeError(f"The MLflow server did not start: {log.read_text()[-2000:]}")
            time.sleep(0.2)

    def answers(self) -> bool:
        """Return True if the server answers."""
        try:
            with urlopen(f"{self.uri}/health", timeout=5):  # noqa: S310
                return True
        except OSError:
            return False

    @property
    def is_up(self) -> bool:
        """True while its process exists, stopped or not."""
        return self.process is not None and self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server and its workers."""
        assert self.process is not None
        os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()


@contextmanager
def server(folder: Path, store: str | None = None, workers: int = 1) -> Iterator[Server]:
    """Run a server as long as the context."""
    started = Server(folder, store, workers)
    try:
        started.start()
        yield started
    finally:
        if started.is_up:
            started.send(signal.SIGKILL)
