"""Words for a terminal."""

import re

import pandas as pd
import pytest

from pruning_lab.experiment.recorder import steps_table
from pruning_lab.runtime.terminal import layers_in_words
from pruning_lab.tasks import Classification


@pytest.mark.parametrize(
    ("names", "words"), [(["features.3"], "layer features.3"), (["0", "4"], "2 layers")]
)
def test_a_single_layer_has_its_name(names, words):
    assert layers_in_words(dict.fromkeys(names)) == words


def test_a_run_ends_with_a_line_a_step():
    main = pd.DataFrame({
        "step": [0, 1], "removed_flops": [0, 0.2778], "removed_parameters": [0, 0.25],
        "test_accuracy_cut": [0.98, 0.5], "test_accuracy_before": [0.98, 0.75],
        "test_accuracy_after": [0.98, 1.0], "scoring_seconds": [float("nan"), 164.6],
    })  # fmt: skip
    heads, *lines = [
        re.split(r"\s{2,}", line.strip()) for line in steps_table(main, Classification())
    ]
    assert heads == ["step", "FLOPs removed", "params removed", "after the cut", "recalibrated",
                     "fine-tuned", "scoring"]  # fmt: skip
    assert lines == [
        ["0", "0.00 %", "0.00 %", "98.00 %", "98.00 %", "98.00 %", "-"],
        ["1", "27.78 %", "25.00 %", "50.00 %", "75.00 %", "100.00 %", "3 min"],
    ]
