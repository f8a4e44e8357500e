"""What every benchmark says of the machine it ran on, and of its memory."""

import os
import platform
import resource
from datetime import date
from pathlib import Path

import torch


def machine(device: str = "cpu", threads: int | None = None) -> str:
    """Processor or GPU, cores, threads, torch, today."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    threads = threads or torch.get_num_threads()
    return f"{name}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}, {date.today()}"


def peak_gb(device: str = "cpu") -> float:
    """The most memory that this process has had: of the GPU where it works there, else resident."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
