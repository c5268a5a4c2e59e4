"""Matrix products that are no part of a network: its passes do not count them."""

import torch


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ right."""
    return left @ right
