"""Which layers are scored and pruned: asked of the model itself, which does not notice."""

import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.coupling.structure import find_structure
from pruning_lab.experiment.network import choose_layers


class Noisy(nn.Module):
    """Draws at random even in eval mode."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(144, 3)

    def forward(self, x):
        return self.head(F.dropout(F.relu(self.conv(x)), training=True).flatten(1))


def test_layers_of_a_model_in_float64_are_found_and_no_random_numbers_are_used_up():
    model = Noisy().double()
    structure = find_structure(model, (1, 8, 8))
    before = torch.random.get_rng_state()
    scored, pruned = choose_layers(model, structure, (1, 8, 8))
    assert scored == pruned == {"conv": model.conv}
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training
