"""Evidence for the formulas: weights, activations, gradients, and losses under masks."""
