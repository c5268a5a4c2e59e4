"""What tests share: one thread of the CPU, so that the figures do not depend on the machine."""

import os

import pytest
import torch

torch.set_num_threads(1)


def pytest_configure(config):
    """GPUs are there for `make test-gpu` alone, which needs one."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        pytest.exit("make test-gpu needs a GPU, and torch finds none.", returncode=1)
