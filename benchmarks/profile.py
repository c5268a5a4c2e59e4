"""Profile the Shapley loop: shares of its time in torch's operations."""

import time
from functools import partial

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.network import Network
from benchmarks.shapley import metric

LAYERS = ("conv3_1", "conv5_1", "fc1")
HEAVY = ("convolution", "mm", "conv2d", "linear", "gemm")
"""Substrings of the names of operations that multiply."""


def section(network: Network) -> list[str]:
    """Return the section's lines: shares of the wall time, layer by layer."""
    rows = [
        f"| {name} | {' | '.join(_shares(network, layer))} |"
        for layer, name in network.names.items()
        if name in LAYERS
    ]
    on_gpu = network.device != "cpu"
    head = (
        ["seconds", "in kernels"] if on_gpu else ["seconds", "multiplications", "other operations"]
    )
    return [
        "Shapley values by two orders a sample, "
        f"{network.samples} samples, under torch's profiler, tracing and preparations included: "
        "shares of the time.",
        "",
        f"| layer | {' | '.join(head)} |",
        f"| --- |{' ---: |' * len(head)}",
        *rows,
    ]


def _shares(network: Network, layer: torch.nn.Module) -> list[str]:
    on_gpu = network.device != "cpu"
    run = partial(metric(network, "mean", sv_samples=2).run, layer, True)
    run()  # warm-up: loads libraries
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        started = time.perf_counter()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        spent = time.perf_counter() - started
    events = profiler.key_averages()
    if on_gpu:
        kernels = sum(
            event.self_device_time_total for event in events if event.device_type == DeviceType.CUDA
        )
        return [f"{spent:.2f}", f"{kernels / 1e6 / spent:.0%}"]
    times = {event.key: event.self_cpu_time_total / 1e6 for event in events}
    heavy = sum(seconds for key, seconds in times.items() if any(part in key for part in HEAVY))
    light = sum(times.values()) - heavy
    return [f"{spent:.2f}", f"{heavy / spent:.0%}", f"{light / spent:.0%}"]
