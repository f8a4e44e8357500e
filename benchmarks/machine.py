"""What benchmarks share: what they say of the machine, and a backbone's sizes."""

import os
import platform
import resource
from datetime import date
from pathlib import Path

import torch

# wav2vec2-base's sizes, for speechbrain_ser.lobes.tiny.build_tiny_wav2vec2
BASE = {"hidden_size": 768, "num_layers": 12, "conv_dim": 512, "num_heads": 12, "intermediate_size": 3072}
BASE["feat_extract_norm"] = "group"


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
