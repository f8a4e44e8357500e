"""What a checkpoint of wav2vec2-base's size costs, and its checksums of that.

    python benchmarks/checkpoint.py

380 MB of parameters and Adam's 760 MB, random, in a temporary folder: seconds to write them, to note their checksums,
to check them at the next start, and to load them. Files are read from the system's memory, not from the disk.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from machine import machine

from speechbrain_ser.training.checkpoints import damage, write_checksums

N, SHAPE = 100, (1000, 950)


@contextmanager
def timed(label: str, seconds: dict[str, float]) -> Iterator[None]:
    """Note how long a block takes."""
    start = time.perf_counter()
    yield
    seconds[label] = time.perf_counter() - start


def main() -> None:
    """Print the seconds."""
    model = {f"p{k}": torch.randn(SHAPE) for k in range(N)}
    state = {"exp_avg": model, "exp_avg_sq": {name: value.square() for name, value in model.items()}}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {Path(folder) / "model.ckpt": model, Path(folder) / "optimizer.ckpt": state}
        with timed("write", seconds):
            for file, content in files.items():
                torch.save(content, file)
        with timed("note checksums", seconds):
            write_checksums(folder)
        with timed("check", seconds):
            assert damage(folder) == []
        with timed("load", seconds):
            for file in files:
                torch.load(file)
        size = sum(file.stat().st_size for file in files)
    print(f"{machine()}\n")
    print(f"| {size / 1e6:,.0f} MB | {' | '.join(seconds)} |\n| --- |{' ---: |' * len(seconds)}")
    print(f"| s | {' | '.join(f'{spent:.3f}' for spent in seconds.values())} |")


if __name__ == "__main__":
    main()
