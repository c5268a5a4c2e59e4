"""The trained starting point that every criterion shares, under a hash of what determines it."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import nn

from pruning_lab.attributions.scores import LayerEstimates, load_estimates, save_estimates
from pruning_lab.checkpoint import load_state, save_state
from pruning_lab.errors import UserError

MODEL = "model.safetensors"


def identity(determinants: Mapping[str, Any]) -> str:
    """Twelve hex digits that name whatever the determinants determine (sha256 of their JSON)."""
    text = json.dumps(determinants, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Baseline:
    """The folder of one baseline. Parallel jobs that want the same one wait for the first."""

    def __init__(self, folder: Path, determinants: Mapping[str, Any]) -> None:
        self.name = identity(determinants)
        self.folder = folder / self.name
        self.determinants = determinants

    def obtain(self, model: nn.Module, train: Callable[[nn.Module], None]) -> bool:
        """Give ``model`` the trained weights; True when ``train`` had to make them first."""
        path = self.folder / MODEL
        with self._locked():
            if path.exists():
                with self._undamaged(path):
                    load_state(model, path)
                return False
            train(model)
            about = json.dumps(self.determinants, indent=2)
            (self.folder / "determinants.json").write_text(about + "\n")
            save_state(model, path)
            return True

    def scores(
        self,
        criterion: str,
        settings: Mapping[str, Any],
        score: Callable[[], tuple[LayerEstimates, float]],
    ) -> tuple[LayerEstimates, float]:
        """The criterion's scores by layer on this baseline and the seconds that ``score`` took.

        Computed once; ``settings`` is what they depend on besides the baseline.
        """
        path = self.folder / f"{criterion}-{identity(settings)}.npz"
        cost = path.with_suffix(".json")
        with self._locked():
            if not path.exists():
                found, seconds = score()
                cost.write_text(json.dumps({"settings": settings, "seconds": seconds}) + "\n")
                save_estimates({criterion: found}, path)
            with self._undamaged(path):
                return load_estimates(path)[criterion], json.loads(cost.read_text())["seconds"]

    @contextmanager
    def _undamaged(self, path: Path) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a damaged file makes its reader raise nearly anything
            raise UserError(
                f"{path} is damaged ({error}). Delete {self.folder} and run again: it holds "
                "nothing but what this program makes anew."
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"baseline.folder={self.folder.parent} cannot be written: {error}. Give another."
            ) from error
        with FileLock(self.folder / ".lock"):
            yield
