"""What tests share: one thread of the CPU, so that the figures do not depend on the machine."""

import os

import torch

torch.set_num_threads(1)


def pytest_configure(config):
    """GPUs are there for `make test-gpu` alone."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
