"""What features cost: computed for the first time, read from the cache, and on the fly.

    python benchmarks/features.py /corpora/EMO-DB/wav

Prints the seconds for all recordings of a folder, in a cache that is made anew.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import machine

from speechbrain_ser.corpora.audio import cores
from speechbrain_ser.dataio import load_audio
from speechbrain_ser.processing.feature_cache import FeatureCache
from speechbrain_ser.processing.log_mel import LogMel
from speechbrain_ser.processing.pitch_track import PitchTrack
from speechbrain_ser.processing.split_mel import SplitMel

FEATURES = {"log-mel, 128 bands (Fu)": LogMel(), "mel, 80 bands (Hsu)": SplitMel(), "F0 by RAPT (Hsu)": PitchTrack()}


def seconds(label: str, work: Callable) -> None:
    """Print how long something takes: the clock's and the processor's seconds."""
    start, start_cpu = time.perf_counter(), time.process_time()
    work()
    print(f"{label:34} {time.perf_counter() - start:7.3f} s, {time.process_time() - start_cpu:7.3f} s of processor")


def measure(paths: list[str], features, workers: int, folder: str) -> None:
    """A corpus's first time in an empty folder, and its later ones."""

    def cache() -> FeatureCache:
        return FeatureCache(folder, features.settings, features.extract, load_audio, workers=workers)

    seconds(f"first time, {workers} threads", lambda: cache().fill(paths))
    filled, unfilled = cache(), cache()
    seconds("second time", lambda: filled.fill(paths))
    seconds("an epoch from memory", lambda: [filled[path] for path in paths])
    seconds("an epoch from disk, without fill", lambda: [unfilled[path] for path in paths])
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    print(f"{len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recordings", type=Path, help="folder of .wav files")
    parser.add_argument("--workers", type=int, nargs="+", default=[cores()], help="threads that compute")
    parser.add_argument("--cache_folder", help="where the caches are made; default: the system's temporary folder")
    args = parser.parse_args()
    paths = sorted(map(str, args.recordings.rglob("*.wav")))
    load = ", ".join(f"{x:.2f}" for x in os.getloadavg())
    print(f"{machine()} (load {load})")
    wavs = [load_audio(path) for path in paths]  # and the system has the files in memory from here on
    minutes = sum(map(len, wavs)) / 16_000 / 60
    print(f"{len(paths)} recordings, {minutes:.1f} min")
    for name, features in FEATURES.items():
        print(f"\n{name}")
        for workers in args.workers:
            with tempfile.TemporaryDirectory(dir=args.cache_folder) as folder:
                measure(paths, features, workers, folder)
        torch.set_num_threads(1)
        seconds("on the fly from waveforms, 1 thread", lambda features=features: [features.extract(w) for w in wavs])


if __name__ == "__main__":
    main()
