"""The ideal that benchmarks compare with: the arithmetic that a model needs, at the rate of a large matrix product."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

SAMPLE_RATE = 16_000
COUNTED = (1, 4, 12)  # seconds
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def matrix_rates(device: str = "cpu") -> dict[str, float]:
    """Floating-point operations a second of a large matrix product, the best of five, by precision."""
    size = 8192 if device.startswith("cuda") else 2048
    return {name: _matrix_rate(device, dtype, size) for name, dtype in TYPES.items()}


def _matrix_rate(device: str, dtype: torch.dtype, size: int) -> float:
    a, best = torch.randn(size, size, device=device, dtype=dtype), float("inf")
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def rates_in_words(rates: dict[str, float]) -> str:
    """A line of the report."""
    return "matrix product: " + ", ".join(f"{name} {rate / 1e12:.2f} TFLOP/s" for name, rate in rates.items())


def operations(work: Callable[[torch.Tensor], object], seconds: Sequence[float]) -> float:
    """Floating-point operations of work on waveforms one by one: counted at three lengths, quadratic between.

    Arguments
    ---------
    work : callable
        Takes a waveform [1, samples].
    seconds : sequence of float
        Lengths of all waveforms.
    """
    counted = []
    for length in COUNTED:
        with FlopCounterMode(display=False) as counter:
            work(torch.randn(1, SAMPLE_RATE * length))
        counted.append(counter.get_total_flops())
    return float(np.polyval(np.polyfit(COUNTED, counted, len(COUNTED) - 1), seconds).sum())
