"""The table of criteria is what the code says."""

from pathlib import Path

from pruning_lab import criteria

ROOT = Path(__file__).parents[1]


def test_the_committed_table_is_of_the_criteria_as_they_are():
    committed = (ROOT / "docs/criteria.md").read_text()
    assert committed == criteria.HEAD + criteria.table(), "make criteria"


def test_every_criterion_has_a_row_of_five_cells():
    names = sorted(path.stem for path in (ROOT / "conf/metric").glob("*.yaml"))
    assert criteria.names() == names
    rows = criteria.table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == names
    for row in rows:
        assert row.replace("\\|", "").count("|") == 6
        assert all(cell.strip() for cell in row.split(" | ")[1:4])


def test_a_row_by_hand():
    (row,) = (row for row in criteria.table().splitlines() if row.startswith("| `weight_norm`"))
    assert row == (
        "| `weight_norm` | Sum of a unit's absolute weights | Sum of abs(w) over the weights of a "
        "unit, without its bias | weights | [1608.08710](https://arxiv.org/abs/1608.08710) |"
    )
