"""README, configuration and results: snippets run, commands compose, choices and links exist."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "docs/configuration.md", "docs/results.md")]
TEXT = "\n".join(page.read_text() for page in PAGES)
CONF = ROOT / "conf"


def blocks(language):
    """The fenced blocks in a language ("" for commands)."""
    found, inside = [], None
    for line in TEXT.splitlines():
        if line.startswith("```"):
            inside = None if inside is not None else line.removeprefix("```")
            found += [(inside, [])] if inside is not None else []
        elif inside is not None:
            found[-1][1].append(line)
    return ["\n".join(lines) for kind, lines in found if kind == language]


def commands():
    """The overrides of each ``python -m pruning_lab``; of sweeps every value once."""
    lines = [line.split("#")[0] for block in blocks("") for line in block.splitlines()]
    for line in lines:
        _, found, overrides = line.partition("python -m pruning_lab ")
        if found:
            words = [word for word in shlex.split(overrides) if word != "-m"]
            choices = [
                [f"{key}={value}" for value in values.split(",")]
                for key, _, values in (word.partition("=") for word in words)
            ]
            jobs = max((len(values) for values in choices), default=1)
            yield from ([values[job % len(values)] for values in choices] for job in range(jobs))


def test_all_commands_are_found():
    jobs = 5 + 2 + 3  # of sweeps, beyond the first of each
    assert len(list(commands())) == TEXT.count("python -m pruning_lab ") + jobs


def test_the_snippets_do_what_their_comments_say(capsys):
    first, second = blocks("python")
    names = {}
    exec(first, names)
    assert names["scores"].shape == (8,)
    conv, norm, _, _, linear = names["model"]
    assert (conv.out_channels, norm.num_features, linear.in_features) == (5, 5, 180)
    kept = sorted(names["scores"].argsort()[3:].tolist())
    assert names["pruner"].kept == {"0": kept}
    exec(second, names)
    model = names["model"]
    assert "conv1: 64 x conv1" in capsys.readouterr().out
    assert model.conv1.out_channels == model.bn1.num_features == 62
    assert model.layer1[0].conv1.in_channels == 62


@pytest.mark.parametrize("overrides", list(commands()), ids=" ".join)
def test_commands_compose(overrides):
    with initialize_config_module("pruning_lab.conf", version_base="1.3"):
        config = compose("config", list(overrides))
    for key, value in (override.split("=") for override in overrides):
        if (CONF / key).is_dir():
            chosen = OmegaConf.load(CONF / key / f"{value}.yaml")
            assert "_target_" not in chosen or config[key]._target_ == chosen._target_
        else:
            found = str(OmegaConf.select(config, key))
            assert {"True": "true", "False": "false", "None": "null"}.get(found, found) == value


def test_the_table_of_choices_is_complete():
    for group in (
        "model",
        "dataset",
        "schedule",
        "finetune",
        "attributions",
        "experiment",
    ):
        (row,) = re.findall(rf"^\| `{group}` \| (.*) \|$", TEXT, flags=re.MULTILINE)
        for path in (CONF / group).glob("*.yaml"):
            assert f"`{path.stem}`" in row, f"{path.stem} is missing in the row of {group}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_pictures_exist(page):
    places = re.findall(r"\]\(([^)h][^)]*)\)", page.read_text())
    assert len(places) >= 5
    for place in places:
        file, _, section = place.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), place
        if section and target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
            assert section in anchors, place
