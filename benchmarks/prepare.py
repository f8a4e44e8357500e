"""How long a corpus of IEMOCAP's size takes to become a manifest.

    python benchmarks/prepare.py

Makes a tree in the release's layout with its 10,039 turns in 150 dialogs (the recordings are short: what is measured
is reading labels, transcripts and audio headers, checking and writing), then prepares it, and prepares it again.
"""

import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from machine import machine, peak_gb

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the tests, which know what the release looks like

from speechbrain_ser.data import manifest  # noqa: E402
from tests.corpus_trees import iemocap_tree  # noqa: E402

CODES = ("neu", "hap", "exc", "ang", "sad", "fru", "xxx")
TURNS = [
    (
        f"Ses{k % 5 + 1:02}{'FM'[k // 5 % 2]}_impro{k // 10 % 15:02}_{'FM'[k // 150 % 2]}{k // 300:03}",
        CODES[k % 7],
        f"{k}",
    )
    for k in range(10039)
]


def timed(function, *args):
    """What a function gives, and seconds."""
    start = time.perf_counter()
    found = function(*args)
    return found, time.perf_counter() - start


def main() -> None:
    """In a temporary folder; print the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        tree = iemocap_tree(Path(folder) / "IEMOCAP_full_release", TURNS)
        path, first = timed(manifest.prepare, "iemocap", tree, Path(folder) / "manifests")
        content = path.read_bytes()
        path, second = timed(manifest.prepare, "iemocap", tree, Path(folder) / "manifests")
        path.unlink()
        path, again = timed(manifest.prepare, "iemocap", tree, Path(folder) / "manifests")
        assert path.read_bytes() == content
        n = len(pd.read_csv(path))
    print(f"{machine()}\n")
    print("| | s | s when nothing changed | s made anew, the same bytes | peak GB |")
    print(f"| --- |{' ---: |' * 4}")
    print(f"| {n:,} turns | {first:.1f} | {second:.1f} | {again:.1f} | {peak_gb():.2f} |")


if __name__ == "__main__":
    main()
