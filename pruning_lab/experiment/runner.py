"""One experiment, stage by stage: a baseline, its scores, and the curve of pruning it.

Every stage skips itself where its result is kept from an earlier try.
"""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pruning_lab import tracking
from pruning_lab.experiment.fingerprint import Job
from pruning_lab.experiment.recorder import RunRecorder, find_finished, recording
from pruning_lab.experiment.setup import Setup
from pruning_lab.experiment.stages import (
    control_runs,
    obtain_baseline,
    prune_run,
    save_model,
    score_baseline,
    train_from_scratch,
)
from pruning_lab.provenance.environment import working
from pruning_lab.records.step import MAIN
from pruning_lab.runtime import distributed

log = logging.getLogger(__name__)


@working()
def run(setup: Setup, output: Path, overrides: Sequence[str] = ()) -> float:
    """Run the stages that are not finished; return the primary measure on ``val`` at the end.

    A sweeper optimises this result, so the test split has no part in its choices.
    """
    checkpoint = setup.checkpoint
    waiting = "Another process runs this configuration (%s): waiting"
    with checkpoint.locked(partial(log.info, waiting, checkpoint.folder)):
        result = None if setup.settings.force else finished(setup.job)
        if result is None:
            with recording(setup, output, overrides) as recorder:
                result = _run(setup, recorder, output)
        if distributed.leads():
            checkpoint.discard()
    return result


def _run(setup: Setup, recorder: RunRecorder, output: Path) -> float:
    """The method."""
    obtain_baseline(setup)
    scores = score_baseline(setup, recorder)
    controls = control_runs(setup)  # copies of the baseline, while it is whole
    main = setup.run_of(MAIN, setup.network, setup.conditions)
    results = prune_run(setup, main, scores, recorder)
    recorder.conclude(save_model(setup, output))
    for control in controls:
        prune_run(setup, control, scores, recorder)
    if setup.settings.controls.scratch:
        train_from_scratch(setup, [result.plan for result in results[1:]], recorder)
    if setup.settings.controls:
        recorder.curves()
    recorder.seen(setup.job.seen.by_now())
    return results[-1].record.value("val", setup.task.primary.name)


def finished(job: Job) -> float | None:
    """The primary measure on ``val`` that this job ended with; None where it is not finished."""
    done = distributed.agreed(lambda: find_finished(job))
    if done is None:
        return None
    primary = job.task.primary
    log.info(
        "Finished already: run %s (%s), validation %s %s, test %s %s. force=true runs it again.",
        done.run_id, done.name, primary.label, primary.text(done.val), primary.label,
        primary.text(done.test),
    )  # fmt: skip
    where = tracking.where_to_look(job.settings.tracking.uri, done.experiment_id)
    log.info("Its curves, figures and models: %s", where)
    return done.val
