"""Utterances that benchmarks make: as long as a corpus's, of noise that has a text."""

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
import soundfile

SAMPLE_RATE = 16_000
TEXT = "NOBODY KNOWS WHAT HAPPENED HERE BEFORE THE WINTER AND WHO CAME BACK FROM THE MOUNTAINS OR THE SEA"
CHARACTERS = 11  # a second


def lengths_like_iemocap(n: int, seed: int = 0) -> np.ndarray:
    """Seconds [n]: many short and few long ones, 0.9 to 12, mean 4.4."""
    return _log_normal(n, seed, spread=0.62, mean=4.4, shortest=0.9, longest=12.0)


def lengths_like_savee(n: int = 480, seed: int = 0) -> np.ndarray:
    """Seconds [n]: 1.6 to 7.1, mean 3.8."""
    return _log_normal(n, seed, spread=0.25, mean=3.8, shortest=1.6, longest=7.1)


def _log_normal(n: int, seed: int, spread: float, mean: float, shortest: float, longest: float) -> np.ndarray:
    """The distribution's quantiles, shuffled: few utterances have its short and long ones, too."""
    raw = np.exp(spread * np.array([NormalDist().inv_cdf((k + 0.5) / n) for k in range(n)]))
    scale = mean
    for _ in range(50):  # until the mean is right after cutting
        scale *= mean / (scale * raw).clip(shortest, longest).mean()
    return np.random.default_rng(seed).permutation((scale * raw).clip(shortest, longest))


def make_corpus(
    folder: Path,
    seconds: Sequence[float],
    parts: Sequence[str],
    classes: Sequence[str] = ("angry", "happy", "neutral", "sad"),
    speakers: int = 2,
) -> Path:
    """A corpus of noise with a table: every utterance's emotion, speaker, transcript and part.

    Arguments
    ---------
    folder : Path
        Where it is made.
    seconds : sequence of float
        Lengths of the utterances.
    parts : sequence of str
        Their ``train``, ``valid`` or ``test``.
    classes : sequence of str
        Emotions, in turn.
    speakers : int
        How many training speakers take turns; the other parts have a speaker of their own each.
    """
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(1), []
    for k, (length, part) in enumerate(zip(seconds, parts, strict=True)):
        soundfile.write(folder / f"{k}.wav", 0.1 * rng.standard_normal(round(SAMPLE_RATE * length)), SAMPLE_RATE)
        speaker = f"s{k // len(classes) % speakers}" if part == "train" else part
        row = {"wav": f"{k}.wav", "emotion": classes[k % len(classes)], "speaker": speaker, "split": part}
        rows.append({**row, "transcript": TEXT[: max(3, int(CHARACTERS * length))]})
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder
