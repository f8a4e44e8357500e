"""What features cost: computed for the first time, read from the cache, and on the fly.

    python benchmarks/features.py /corpora/EMO-DB/wav
    python benchmarks/features.py                       # 100 recordings of noise

Prints the seconds for all recordings of a folder, in a cache that is made anew.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import machine, peak_gb
from utterances import lengths_like_iemocap, make_corpus

from speechbrain_ser.data.audio import cores
from speechbrain_ser.data.batches import load_audio
from speechbrain_ser.processing.cache import FeatureCache
from speechbrain_ser.processing.log_mel import LogMel
from speechbrain_ser.processing.pitch import PitchTrack
from speechbrain_ser.processing.split_mel import SplitMel

FEATURES = {"log-mel, 128 bands (Fu)": LogMel(), "mel, 80 bands (Hsu)": SplitMel(), "F0 by RAPT (Hsu)": PitchTrack()}


def seconds(work: Callable) -> float:
    """How long something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(paths: list[str], wavs: list[torch.Tensor], features, workers: int, folder: str) -> list[float]:
    """Seconds of a corpus's first time in an empty folder, of its later ones, and without a cache; MB of the cache."""

    def cache() -> FeatureCache:
        return FeatureCache(folder, features.settings, features.extract, load_audio, workers=workers)

    first, filled, unfilled = cache(), cache(), cache()
    found = [seconds(lambda: first.fill(paths)), seconds(lambda: filled.fill(paths))]
    found += [seconds(lambda each=each: [each[path] for path in paths]) for each in (filled, unfilled)]
    found.append(seconds(lambda: [features.extract(wav) for wav in wavs]))
    return [*found, sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1e6]


def noise(folder: str) -> list[str]:
    """Recordings as long as IEMOCAP's."""
    lengths = lengths_like_iemocap(100)
    return [str(path) for path in sorted(make_corpus(Path(folder) / "noise", lengths, ["train"] * 100).glob("*.wav"))]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recordings", type=Path, nargs="?", help="folder of .wav files; none: noise")
    parser.add_argument("--workers", type=int, default=cores(), help="threads that compute")
    parser.add_argument("--cache_folder", help="where the caches are made; default: the system's temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.cache_folder) as folder:
        paths = noise(folder) if args.recordings is None else sorted(map(str, args.recordings.rglob("*.wav")))
        if not paths:
            sys.exit(f"{args.recordings}: expected .wav files, found none")
        print(machine(threads=args.workers))
        wavs = [load_audio(path) for path in paths]  # and the system has the files in memory from here on
        print(f"{len(paths)} recordings, {sum(map(len, wavs)) / 16_000 / 60:.1f} min; seconds for all of them\n")
        columns = ["first time", "second time", "an epoch from memory", "from disk", "without a cache", "MB on disk"]
        print(f"| | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}", flush=True)
        for k, (name, features) in enumerate(FEATURES.items()):
            *found, size = measure(paths, wavs, features, args.workers, f"{folder}/{k}")
            print(f"| {name} | {' | '.join(f'{x:.2f}' for x in found)} | {size:.1f} |", flush=True)
    print(f"\npeak memory {peak_gb():.2f} GB, {sum(map(len, wavs)) * 4 / 1e9:.2f} of it waveforms")


if __name__ == "__main__":
    main()
