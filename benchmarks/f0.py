"""This project's RAPT beside pysptk's on EMO-DB, and how fast they are.

    OMP_NUM_THREADS=1 python benchmarks/f0.py --data_folder=EMO-DB [--speakers=10,11] [--files=80] [--seed=0]

Prints the speed and what a lower level changes; where pysptk is installed, also errors against it: of the voicing
decision (share of all frames), gross ones (more than 20 % off, share of the frames both call voiced), and the median
difference in cents. Times are those of the processor, not of the clock, and waveforms are in memory.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
import soundfile
from machine import machine

from speechbrain_ser.data.corpora.emodb import GENDERS, find_utterances
from speechbrain_ser.errors import UserError
from speechbrain_ser.processing.pitch import extract_f0

GROSS = 0.2
SAMPLE_RATE = 16_000

Tracks = list[np.ndarray]


def choose(data_folder: Path, speakers: list[str], files: int, seed: int) -> pd.DataFrame:
    """A seeded sample of recordings: speaker, wav."""
    rows = pd.DataFrame(find_utterances(data_folder))
    rows = rows[rows.speaker.isin(speakers)].sort_values("ID")
    rows = rows.sample(min(files, len(rows)), random_state=seed).sort_values("ID")
    rows["wav"] = rows.wav.str.replace("{data_root}", str(data_folder), regex=False)
    return rows


def track(wavs: list[np.ndarray], **settings) -> tuple[Tracks, float]:
    """F0 of each waveform, and seconds of audio tracked in a second."""
    extract_f0(wavs[0], **settings)  # imports and filter design are not counted
    start = time.process_time()
    tracks = [extract_f0(wav, **settings) for wav in wavs]
    spent = time.process_time() - start
    return tracks, sum(map(len, wavs)) / SAMPLE_RATE / spent


def compare(found: Tracks, expected: Tracks) -> dict[str, float]:
    """Errors of one tracker against another, over all frames."""
    found, expected = np.concatenate(found), np.concatenate(expected)
    both = (found > 0) & (expected > 0)
    ratio = found[both] / expected[both]
    cents = np.abs(1200 * np.log2(ratio))
    return {
        "frames": len(found),
        "voiced %": 100 * np.mean(found > 0),
        "reference %": 100 * np.mean(expected > 0),
        "voicing errors %": 100 * np.mean((found > 0) != (expected > 0)),
        "gross errors %": 100 * np.mean(np.abs(ratio - 1) > GROSS),
        "median cents": np.median(cents),
        "95 % cents": np.percentile(cents, 95),
    }


def changed(found: Tracks, expected: Tracks) -> float:
    """Percent of frames whose voicing, or whose pitch by more than 0.1 %, is not the same."""
    found, expected = np.concatenate(found), np.concatenate(expected)
    return 100 * np.mean(~np.isclose(found, expected, rtol=1e-3))


def by_speaker(rows: pd.DataFrame, ours: Tracks, theirs: Tracks) -> pd.DataFrame:
    """A row a speaker, and one for all."""
    groups = [(speaker, np.flatnonzero(rows.speaker == speaker)) for speaker in sorted(set(rows.speaker))]
    groups.append(("all", np.arange(len(rows))))
    lines = [
        {"speaker": name, "files": len(at), **compare([ours[i] for i in at], [theirs[i] for i in at])}
        for name, at in groups
    ]
    return pd.DataFrame(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--data_folder", type=Path, required=True, help="EMO-DB")
    parser.add_argument("--speakers", default=",".join(GENDERS), help="comma-separated")
    parser.add_argument("--files", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of files")
    parser.add_argument("--f_min", type=float, default=50.0)
    parser.add_argument("--f_max", type=float, default=600.0)
    parser.add_argument("--gain", type=float, default=0.03, help="of the level test")
    args = parser.parse_args()
    rows = choose(args.data_folder, args.speakers.split(","), args.files, args.seed)
    wavs = [soundfile.read(wav)[0] for wav in rows.wav]
    limits = {"f_min": args.f_min, "f_max": args.f_max}

    print(f"{machine()}, NumPy {np.__version__}, SciPy {scipy.__version__}")
    print(f"{len(wavs)} recordings of EMO-DB (seed {args.seed}), {sum(map(len, wavs)) / SAMPLE_RATE:.0f} s")
    ours, speed = track(wavs, **limits)
    print(f"rapt: {speed:.0f} times faster than real time")
    quiet, _ = track([(args.gain * wav).astype(np.float32) for wav in wavs], **limits)
    print(f"frames changed at {args.gain:g} of the level: {changed(quiet, ours):.3f} %")
    try:
        theirs, speed = track(wavs, method="pysptk", **limits)
    except UserError as error:
        print(error)
        return
    print(f"pysptk: {speed:.0f} times faster than real time")
    print(by_speaker(rows, ours, theirs).to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
