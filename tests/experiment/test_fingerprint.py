"""What determines a result names it; what does not leaves the name alone."""

import sys
from itertools import pairwise, product

import pytest
import torch
from hydra import compose, initialize_config_module
from PIL import Image
from torch import nn

from pruning_lab.attributions import ShapleyAttributionMetric
from pruning_lab.config.build import plain
from pruning_lab.datasets.image_folder import image_folder
from pruning_lab.datasets.splits import Images, Splits
from pruning_lab.errors import UserError
from pruning_lab.experiment import fingerprint
from pruning_lab.experiment.fingerprint import identify
from pruning_lab.provenance import source_code
from pruning_lab.provenance.inputs_read import Seen
from pruning_lab.provenance.source_code import digest_of_program
from tests.running import TINY


class Fixed(nn.Module):
    """A model."""


def images(value):
    return Images(
        torch.full((4, 1, 2, 2), value, dtype=torch.uint8), torch.arange(4), (0.0,), (1.0,)
    )


def determinants(model=None, value=1, checkpoint=None, **dataset):
    settings = {
        "model": {"depth": 16}, "task": {"_target_": "t"},
        "dataset": {"_target_": "x", "score": 3, **dataset},
        "baseline": {"checkpoint": checkpoint, "training": {"epochs": 1}},
        "seeds": {"init": 0, "order": 0, "score": 0},
    }  # fmt: skip
    splits = Splits(*(images(value) for _ in range(4)), num_classes=4, input_size=(1, 2, 2))
    return fingerprint.baseline_determinants(
        fingerprint.start_determinants(
            settings, splits.fingerprint(), "net", torch.device("cpu"), 1
        ),
        model or Fixed(),
    )


def test_the_samples_name_the_baseline_and_not_where_they_lie():
    assert determinants(root="a", download=True) == determinants(root="b", download=False)
    assert determinants(value=2) != determinants()
    assert determinants(score=4) != determinants()
    assert "score" not in determinants()["seeds"]


def test_the_code_of_the_model_names_the_baseline(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for activation in ("ReLU", "Tanh"):
        path = tmp_path / f"net_{activation}.py"
        path.write_text(f"from torch import nn\nclass Net(nn.{activation}): pass\n")
        net = __import__(path.stem).Net()
        found += [
            "".join(determinants(model=model)["code"]["model"])
            for model in (net, torch.nn.Sequential(net))
        ]
    assert len(set(found)) == 4


def test_other_pictures_in_a_folder_are_other_samples(tmp_path):
    """BMP is not compressed: pictures of one size are files of one size."""
    prints = []
    for root, shade in (("a", 1), ("b", 1), ("c", 2)):
        for folder, label in product(("train", "test"), ("ape", "bee")):
            place = tmp_path / root / folder / label
            place.mkdir(parents=True)
            for number in range(4):
                colour = (shade, number, len(folder) + ord(label[0]))
                Image.new("RGB", (16, 20), colour).save(place / f"{number}.bmp")
        prints.append(image_folder(str(tmp_path / root), size=8, score=2, val=2).fingerprint())
    assert prints[0] == prints[1] != prints[2]


def test_a_missing_checkpoint_is_said_before_the_work(tmp_path):
    with pytest.raises(UserError, match=r"baseline.checkpoint=.*no.pt is not a file"):
        determinants(checkpoint=str(tmp_path / "no.pt"))


@pytest.mark.parametrize(
    ("changed", "matters"),
    [
        ("pruning_lab.attributions.criteria.shapley", True),
        ("pruning_lab.attributions.estimation.stopping", True),
        ("pruning_lab.partial_forward.small_maps", True),
        ("pruning_lab.coupling.rules.moves", True),
        ("pruning_lab.attributions.criteria.taylor", False),
        ("pruning_lab.tracking", False),
    ],
)
def test_scores_are_named_by_all_the_code_that_they_depend_on(changed, matters, monkeypatch):
    before, own = digest_of_program.__wrapped__(ShapleyAttributionMetric), source_code._source

    def edited(name):
        return own(name) + "# edited" if name == changed else own(name)

    monkeypatch.setattr(source_code, "_source", edited)
    assert (digest_of_program.__wrapped__(ShapleyAttributionMetric) != before) == matters


class Derived(ShapleyAttributionMetric):
    """A user's criterion."""


def test_a_users_criterion_is_named_by_its_own_file_and_those_it_derives_from(monkeypatch):
    before, own = digest_of_program.__wrapped__(Derived), source_code._source
    for changed in (__name__, "pruning_lab.attributions.criteria.shapley"):

        def edited(name, changed=changed):
            return own(name) + "# edited" if name == changed else own(name)

        monkeypatch.setattr(source_code, "_source", edited)
        assert digest_of_program.__wrapped__(Derived) != before


def test_where_one_split_ends_and_the_next_begins_names_the_data():
    def cut(at):
        whole = images(1).images.repeat(3, 1, 1, 1), torch.arange(4).repeat(3)
        ends = (0, at, 8, 10, 12)
        parts = [
            Images(*(each[one:two] for each in whole), (0.0,), (1.0,))
            for one, two in pairwise(ends)
        ]
        return Splits(*parts, num_classes=4, input_size=(1, 2, 2)).fingerprint(first=100)

    assert cut(4) != cut(6)


def test_a_network_is_named_by_its_tensors_and_settings_not_by_where_they_lie():
    def net(rate=0.5, seed=0, hook=False):
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(2, 3), nn.Dropout(rate))
        if hook:
            made.register_buffer("odd", torch.eye(3).to_sparse(), persistent=False)
        return fingerprint.digest_of_network(made)

    assert net() == net()
    assert len({net(), net(rate=0.1), net(seed=1), net(hook=True)}) == 4


def name(*overrides):
    with initialize_config_module("pruning_lab.conf", version_base="1.3"):
        return identify(compose("config", [*TINY, *overrides])).name


def test_the_identity_of_a_run_is_a_hash_of_these(monkeypatch):
    monkeypatch.setattr(fingerprint, "digest_of_program", lambda made, *_: made.__name__)
    with initialize_config_module("pruning_lab.conf", version_base="1.3"):
        config = compose("config", [*TINY, "attributions=none", "metric=random"])
    settings = plain(config)
    start = fingerprint.start_determinants(settings, "abc", "net", torch.device("cpu"), 1)
    found = fingerprint.run_determinants(start, settings)
    assert set(found) == {
        "model", "dataset", "samples", "network", "versions", "training", "checkpoint", "seeds",
        "threads", "device", "task", "metric", "attributions", "schedule", "finetune", "after_cut",
        "controls", "scoring", "code",
    }  # fmt: skip
    assert found["code"] == {
        "model": "MLP", "dataset": "synthetic", "baseline.training": "Training",
        "metric": "RandomAttributionMetric", "schedule": "Geometric", "finetune": "Training",
        "task": "Classification", "track": "prune",
    }  # fmt: skip
    assert set(found["versions"]) == {"torch", "torchvision", "numpy", "pillow"}
    found["versions"] = {"torch": "1"}
    assert fingerprint.identity(found) == "258753f9f5b6"


@pytest.mark.parametrize(
    "other",
    [
        "baseline.folder=elsewhere", "checkpoints=elsewhere", "keep=all", "force=true", "plan=true",
        "dry_run=true", "tracking.uri=sqlite:///other.db", "tracking.experiment=other",
        "device=cpu", "device=auto", "+dataset.root=there", "+dataset.debian_package=there",
    ],
)  # fmt: skip
def test_what_does_not_determine_the_result_does_not_change_the_identity(other, monkeypatch):
    if "dataset" in other:  # the synthetic data lie nowhere
        monkeypatch.setattr(fingerprint, "_data", lambda _: (None, "abc"))
        monkeypatch.setattr(fingerprint, "_network", lambda *_: ("net", Seen([])))
    assert name(other) == name()


@pytest.mark.parametrize(
    "other",
    [
        "seed=1", "seeds.init=1", "seeds.order=1", "seeds.score=1", "threads=2", "metric=random",
        "metric.signed=true", "attributions=none", "schedule.target=0.5", "schedule.steps=2",
        "finetune.lr=0.1", "finetune.steps=3", "finetune.share=0.5", "controls.untuned=true",
        "controls.scratch=true", "after_cut.recalibrate=9", "after_cut.rescale_dropout=false",
        "scoring.batch_size=7", "baseline.training.epochs=4", "model.hidden=[16,13]",
        "dataset.noise=0.2", "dataset.score=16",
    ],
)  # fmt: skip
def test_what_determines_the_result_changes_the_identity(other):
    assert name(other) != name()


@pytest.mark.parametrize(
    ("changed", "matters"),
    [
        ("pruning_lab.pruner.slicing", True),
        ("pruning_lab.training.fit", True),
        ("pruning_lab.pruning.plan", True),
        ("pruning_lab.models.mlp", True),
        ("pruning_lab.datasets.synthetic", True),
        ("pruning_lab.datasets.splits", True),
        ("pruning_lab.attributions.criteria.taylor", True),
        ("pruning_lab.models.vgg", False),
        ("pruning_lab.attributions.criteria.owen_gradient", False),
        ("pruning_lab.tracking.write", False),
        ("pruning_lab.experiment.recorder", False),
        ("pruning_lab.compare.figures", False),
        ("pruning_lab.experiment.resume", False),
    ],
)
def test_code_that_determines_the_result_changes_the_identity(changed, matters, monkeypatch):
    before, own = name("attributions=none"), source_code._source

    def edited(module):
        return own(module) + "# edited" if module == changed else own(module)

    digest_of_program.cache_clear()
    monkeypatch.setattr(source_code, "_source", edited)
    assert (name("attributions=none") != before) == matters
    digest_of_program.cache_clear()


def test_code_that_a_model_imports_from_beside_it_counts(tmp_path, monkeypatch):
    """Files of a user's are followed, whatever package they are in; installed ones are not."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_net.py").write_text(
        "import torch\nfrom own_blocks import Block\nclass Net(Block): pass\n"
    )
    (tmp_path / "own_blocks.py").write_text("from torch import nn\nclass Block(nn.ReLU): pass\n")
    made, read = __import__("own_net").Net, []

    def source(module):
        read.append(module)
        return own(module)

    own = source_code._source
    before = digest_of_program.__wrapped__(made)
    monkeypatch.setattr(source_code, "_source", source)
    assert digest_of_program.__wrapped__(made) == before
    assert {"own_net", "own_blocks"} <= set(read)
    assert not any(module.startswith("torch") for module in read)
    monkeypatch.setattr(
        source_code, "_source", lambda name: own(name) + "#" * (name == "own_blocks")
    )
    assert digest_of_program.__wrapped__(made) != before


def forget_installed():
    for known in (source_code._lent_places, source_code._distributions, source_code._versions):
        known.cache_clear()


def test_of_what_is_installed_outside_the_environment_the_version_counts(tmp_path, monkeypatch):
    """Many clusters lend their packages by PYTHONPATH."""
    monkeypatch.syspath_prepend(tmp_path)
    about = tmp_path / "lent_package-1.0.dist-info" / "METADATA"
    about.parent.mkdir()
    (about.parent / "top_level.txt").write_text("lent_package\n")
    about.write_text("Metadata-Version: 2.1\nName: lent_package\nVersion: 1.0\n")
    (tmp_path / "lent_package.py").write_text("from torch import nn\nclass Net(nn.ReLU): pass\n")
    made, own, read = __import__("lent_package").Net, source_code._source, []
    forget_installed()
    monkeypatch.setattr(source_code, "_source", lambda name: read.append(name) or own(name))
    before = digest_of_program.__wrapped__(made)
    assert read == []
    about.write_text(about.read_text().replace("Version: 1.0", "Version: 2.0"))
    forget_installed()
    assert digest_of_program.__wrapped__(made) != before
    forget_installed()


def test_code_beside_something_installed_still_counts(tmp_path, monkeypatch):
    """``pip install --target .`` leaves its notes beside a user's own files."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "some_dependency-1.0.dist-info").mkdir()
    (tmp_path / "net_beside.py").write_text("from torch import nn\nclass Net(nn.ReLU): pass\n")
    made, own = __import__("net_beside").Net, source_code._source
    forget_installed()
    before = digest_of_program.__wrapped__(made)
    monkeypatch.setattr(
        source_code, "_source", lambda name: own(name) + "#" * (name == "net_beside")
    )
    assert digest_of_program.__wrapped__(made) != before
    forget_installed()


def test_code_in_folders_without_init_is_found_before_it_is_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    inner = tmp_path / "outer_folder/inner_folder"
    inner.mkdir(parents=True)
    (inner / "mine.py").write_text("X = 1\n")
    assert source_code.file_of("outer_folder.inner_folder.mine") == str(inner / "mine.py")
    assert source_code.file_of("outer_folder.inner_folder.other") is None
    assert source_code.file_of("outer_folder.another.mine") is None
    assert not {"outer_folder", "outer_folder.inner_folder"} & {*sys.modules}
