"""One experiment, stage by stage: a baseline, its scores, and the curve of pruning it.

Every stage skips itself where its result is kept from an earlier try.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from pruning_lab.experiment import stages
from pruning_lab.experiment.fingerprint import Job
from pruning_lab.experiment.recorder import RunRecorder, find_finished, recording
from pruning_lab.experiment.setup import Setup
from pruning_lab.provenance.environment import working
from pruning_lab.records.step import MAIN
from pruning_lab.runtime import distributed
from pruning_lab.tracking import store

log = logging.getLogger(__name__)


@working()
def run(setup: Setup, output: Path, overrides: Sequence[str] = ()) -> float:
    """Run the stages that are not finished; return the primary measure on ``val`` at the end.

    A sweeper optimises this result, so the test split has no part in its choices.
    """
    with setup.checkpoint.locked():
        result = None if setup.settings.force else finished(setup)
        if result is None:
            with recording(setup, output, overrides) as recorder:
                result = _run(setup, recorder, output)
        if distributed.leads():
            setup.checkpoint.discard()
    return result


def _run(setup: Setup, recorder: RunRecorder, output: Path) -> float:
    """The method."""
    stages.obtain_baseline(setup)
    scores = stages.score_baseline(setup, recorder)
    controls = stages.control_runs(setup)  # copies of the baseline, while it is whole
    main = setup.run_of(MAIN, setup.network, setup.conditions)
    results = stages.prune_run(setup, main, scores, recorder)
    recorder.conclude(stages.save_model(setup, output))
    for control in controls:
        stages.prune_run(setup, control, scores, recorder)
    if setup.settings.controls.scratch:
        stages.train_from_scratch(setup, [result.plan for result in results[1:]], recorder)
    if setup.settings.controls:
        recorder.curves()
    recorder.seen(setup.seen.by_now())
    return results[-1].record.value("val", setup.task.primary.name)


def finished(job: Job) -> float | None:
    """Return the primary measure on ``val`` at the end of this job; None if it is not finished."""
    done = distributed.agreed(lambda: find_finished(job))
    if done is None:
        return None
    primary = job.task.primary
    log.info(
        "Finished already: run %s (%s), validation %s %s, test %s %s. force=true runs it again.",
        done.run_id, done.name, primary.label, primary.text(done.val), primary.label,
        primary.text(done.test),
    )  # fmt: skip
    where = store.where_to_look(job.settings.tracking.uri, done.experiment_id)
    log.info("Its curves, figures and models: %s", where)
    return done.val
