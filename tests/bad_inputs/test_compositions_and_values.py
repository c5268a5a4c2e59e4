"""What Hydra cannot compose, values that are not possible, and objects of another kind."""

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from pruning_lab.config.build import build
from pruning_lab.datasets import Splits
from pruning_lab.errors import UserError
from pruning_lab.pruning.schedules import Schedule
from pruning_lab.training.recipe import Training
from tests.bad_inputs.attempts import COUNT, TEXT, prepared, statuses

COMPOSITION = {
    "group": (["metrik=taylor"], "Could not override 'metrik'"),
    "attributions": (["attributions=sixx"], r"(?s)'attributions/sixx'.*cheap.*none.*six"),
    "preset": (["experiment=compare"], r"(?s)'experiment/compare'.*compare_criteria.*low_data"),
    "tracking": (["tracking=wandb"], r"(?s)'tracking/wandb'.*mlflow"),
    "another criterion's option": (["metric.samples=3"], "Could not override 'metric.samples'"),
    "another schedule's option": (
        ["schedule=one_shot", "schedule.steps=3"], "Could not override 'schedule.steps'",
    ),
    "a sweep without -m": (["seed=0,1,2"], "Ambiguous value for argument 'seed=0,1,2'"),
    "no value": (["schedule.target"], "Error parsing override 'schedule.target'"),
    "two values": (["schedule.target=0.5=0.6"], "mismatched input '='"),
    "an open list": (["model.hidden=[16,12"], r"no viable alternative at input '\[16,12'"),
}  # fmt: skip


@pytest.mark.parametrize("case", COMPOSITION)
def test_what_cannot_be_composed(case, tmp_path, store):
    overrides, message = COMPOSITION[case]
    with pytest.raises(HydraException, match=message):
        prepared(tmp_path, store, overrides)


SHARE = r"is not possible; it is a number between 0 and 1 \(both excluded\)"
SEED = f"{COUNT} 0 to 2147483647"
VALUES = {
    "target null": (["schedule.target=null"], f"schedule.target=None {SHARE}"),
    "target a list": (["schedule.target=[0.5]"], rf"schedule.target=\[0.5\] {SHARE}"),
    "target true": (["schedule.target=true"], f"schedule.target=True {SHARE}"),
    "target in quotes": (["schedule.target='0.5'"], f"schedule.target=0.5 {SHARE}.*, not text"),
    "target nan": (["schedule.target=nan"], f"schedule.target=nan {SHARE}"),
    "target infinite": (["schedule.target=inf"], f"schedule.target=inf {SHARE}"),
    "steps null": (["schedule.steps=null"], f"schedule.steps=None {COUNT} 1 to 1000"),
    "steps broken": (["schedule.steps=2.5"], f"schedule.steps=2.5 {COUNT} 1"),
    "steps negative": (["schedule.steps=-3"], f"schedule.steps=-3 {COUNT} 1"),
    "steps true": (["schedule.steps=true"], f"schedule.steps=True {COUNT} 1"),
    "steps a mapping": (["schedule.steps={{a: 1}}"], r"schedule.steps=\{'a': 1\} is not possible"),
    "steps without end": ([f"schedule.steps={10**21}"], f"steps={10**21} {COUNT} 1 to 1000"),
    "multiple of 0": (["schedule.multiple_of=0"], f"schedule.multiple_of=0 {COUNT} 1 on"),
    "multiple of many": (
        ["schedule.multiple_of=1000"], r"0\.\d+ cannot be removed: .*at most 0.000 can be removed",
    ),
    "coupled": (["schedule.coupled=median"], "schedule.coupled=median .*together, mean, sum, max"),
    "of a list": (["schedule.of=[flops]"], r"schedule.of=\['flops'\] is not known; choose one of"),
    "no such schedule": (
        ["schedule._target_=nowhere.Steps"], "nowhere.Steps cannot be imported: .*No module named",
    ),
    "reduction null": (["metric.reduction=null"], "reduction=None is not known; choose .*mean"),
    "reduction none": (["metric.reduction=none"], "metric.reduction=none gives no ranking"),
    "signed maybe": (["metric.signed=maybe"], "signed=maybe is not possible; it is true or false"),
    "signed in numbers": (["metric.signed=2"], "signed=2 is not possible; it is true or false"),
    "criterion's seed": (["metric=shapley", "metric.seed=-1"], f"seed=-1 {SEED}"),
    "criterion's seed text": (["metric=random", "metric.seed=abc"], f"seed=abc {SEED}, not text"),
    "criterion's seed half": (["metric=owen_gradient", "metric.seed=1.5"], f"seed=1.5 {SEED}"),
    "budget": (["metric=shapley", "metric.evaluations=many"], f"evaluations=many {COUNT} 1"),
    "separated": (["metric=shapley", "metric.separated=2"], f"separated=2 {SHARE}"),
    "error": (["metric=shapley", "metric.relative_error=0"], f"relative_error=0 {SHARE}"),
    "seconds": (["metric=shapley", "metric.seconds=-1"], "seconds=-1 is not possible.*above 0"),
    "precision": (["metric=shapley", "metric.precision=fp16"], "precision=fp16 .*fp32, bf16"),
    "odd masks": (["metric=owen_gradient", "metric.masks=5"], "masks=5 .*they come in pairs"),
    "device null": (["device=null"], "device=None is not available on this machine. Use auto"),
    "device a list": (["device=[cpu]"], r"device=\['cpu'\] is not available on this machine"),
    "device": (["device=banana"], "device=banana is not available on this machine"),
    "a missing GPU": (["device=cuda:99"], "device=cuda:99 is not available on this machine"),
    "threads": (["threads=-1"], f"threads=-1 {COUNT} 1 to 1024"),
    "threads text": (["threads=many"], f"threads=many {COUNT} 1 to 1024, not text"),
    "threads without end": ([f"threads={10**6}"], f"threads={10**6} {COUNT} 1 to 1024"),
    "seed too large": ([f"seed={2**64}"], f"seeds.init={2**64} {SEED}"),
    "seed half": (["seed=0.5"], f"seeds.init=0.5 {SEED}"),
    "seed null": (["seed=null"], f"seeds.init=None {SEED}"),
    "seed true": (["seed=true"], f"seeds.init=True {SEED}"),
    "seed a list": (["seed=[1,2]"], rf"seeds.init=\[1, 2\] {SEED}"),
    "batch": (["scoring.batch_size=all"], f"scoring.batch_size=all {COUNT} 1 on, not text"),
    "recalibrate": (["after_cut.recalibrate=-1"], f"after_cut.recalibrate=-1 {COUNT} 0"),
    "rescale": (["after_cut.rescale_dropout=1"], "after_cut.rescale_dropout=1 .*true or false"),
    "learning rate": (["baseline.training.lr=fast"], "baseline.training: lr=fast .*number above 0"),
    "nesterov": (["finetune.nesterov=maybe"], "finetune: nesterov=maybe .*true or false, not text"),
    "momentum": (["finetune.momentum=1"], "finetune: momentum=1 .*from 0 to below 1"),
    "training null": (["baseline.training=null"], "baseline.training=None is not possible: .*_tar"),
    "baseline null": (["baseline=null"], "baseline=None is not possible: set its keys one by one"),
    "seeds a number": (["seeds=3"], "seeds=3 is not possible: set its keys one by one"),
    "folder null": (["baseline.folder=null"], f"baseline.folder=None {TEXT}"),
    "folder a list": (["baseline.folder=[a]"], rf"baseline.folder=\['a'\] {TEXT}"),
    "folder empty": (["baseline.folder=''"], f"baseline.folder= {TEXT}"),
    "folder at home": (["baseline.folder='~/b'"], "folder=~/b is not possible: ~ is not the home"),
    "data at home": (["dataset=mnist", "dataset.root='~/data'"], "dataset.root=~/data is not poss"),
    "checkpoints at home": (["checkpoints='~'"], "checkpoints=~ is not possible: ~ is not"),
    "checkpoint a number": (["baseline.checkpoint=5"], f"baseline.checkpoint=5 {TEXT}"),
    "checkpoint no file": (["baseline.checkpoint=/dev/null"], "/dev/null is not a file; give"),
    "store null": (["tracking.uri=null"], f"tracking.uri=None {TEXT}"),
    "store empty": (["tracking.uri=''"], f"tracking.uri= {TEXT}"),
    "store of no known kind": (["tracking.uri=foo://bar"], "tracking.uri=foo://bar .*give another"),
    "store a folder": (["tracking.uri={folder}"], "tracking.uri=.* cannot be reached: "),
    "store two slashes": (["tracking.uri=sqlite://mlflow.db"], "sqlite://mlflow.db .*sqlite:///ml"),
    "store nowhere": (["tracking.uri=sqlite:////proc/x/m.db"], "/proc/x/m.db cannot be reached"),
    "experiment empty": (["tracking.experiment=''"], f"tracking.experiment= {TEXT}"),
    "experiment null": (["tracking.experiment=null"], f"tracking.experiment=None {TEXT}"),
    "experiment a number": (["tracking.experiment=7"], f"tracking.experiment=7 {TEXT}"),
    "experiment a list": (["tracking.experiment=[a]"], rf"tracking.experiment=\['a'\] {TEXT}"),
    "split seed": (["dataset.split_seed=-1"], f"dataset.split_seed=-1 {SEED}"),
    "split seed text": (["dataset.split_seed=a"], f"dataset.split_seed=a {SEED}"),
    "split seed too large": (
        ["dataset=digits", f"dataset.split_seed={2**32}"], f"dataset.split_seed={2**32} {SEED}",
    ),
    "train null": (["dataset.train=null"], f"dataset.train=None {COUNT} 1"),
    "train text": (["dataset.train=all"], f"dataset.train=all {COUNT} 1 on, not text"),
    "train negative": (["dataset.train=-5"], f"dataset.train=-5 {COUNT} 1"),
    "val 0": (["dataset=digits", "dataset.val=0"], f"dataset.val=0 {COUNT} 1"),
    "two rests": (["dataset=digits", "dataset.val=null"], "dataset.train and dataset.val are null"),
    "noise": (["dataset.noise=loud"], "dataset.noise=loud is not possible; it is a number from 0"),
    "noise nan": (["dataset.noise=nan"], "dataset.noise=nan is not possible; it is a num"),
    "noise negative": (["dataset.noise=-1"], "dataset.noise=-1 is not possible; .*from 0 on"),
    "no channels": (["dataset.channels=0"], f"dataset.channels=0 {COUNT} 1"),
    "no channels of digits": (
        ["dataset=digits", "dataset.channels=0"], f"dataset.channels=0 {COUNT} 1",
    ),
    "size text": (["dataset=digits", "dataset.size=big"], f"dataset.size=big {COUNT} 1"),
    "more classes than samples": (["dataset.classes=1000"], "256 samples of 256 classes"),
}  # fmt: skip


@pytest.mark.parametrize("case", VALUES)
def test_values_that_are_not_possible(case, tmp_path, store):
    overrides, message = VALUES[case]
    with pytest.raises(UserError, match=f"(?s){message}"):
        prepared(tmp_path, store, overrides)
    assert not (tmp_path / "baselines").exists()
    assert not statuses(store)


@pytest.mark.parametrize(
    ("group", "kind"), [("dataset", Splits), ("schedule", Schedule), ("finetune", Training)]
)
def test_another_object_than_the_group_is_for(group, kind):
    config = OmegaConf.create({"_target_": "builtins.dict"})
    message = f"{group}._target_=builtins.dict gives a dict, not a {kind.__name__}"
    with pytest.raises(UserError, match=message):
        build(config, group, kind)
