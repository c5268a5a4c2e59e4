"""Words for a terminal."""

import pytest

from pruning_lab.plain_text import layers_in_words


@pytest.mark.parametrize(
    ("names", "words"), [(["features.3"], "layer features.3"), (["0", "4"], "2 layers")]
)
def test_a_single_layer_has_its_name(names, words):
    assert layers_in_words(dict.fromkeys(names)) == words
