"""How long corpora of IEMOCAP's and of MSP-Podcast's size take to become a manifest.

    python benchmarks/prepare.py [--utterances=100000]

Makes a tree in the release's layout, with IEMOCAP's 10,039 turns in 150 dialogs or with so many utterances of
MSP-Podcast (the recordings are short, 0.3 s: what is measured is reading labels, transcripts and recordings, checking
and writing), then prepares it, and prepares it again.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
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


def msp_podcast_tree(folder: Path, n: int) -> Path:
    """A release of MSP-Podcast with so many utterances of 1,000 speakers, each of other noise."""
    random = np.random.default_rng(0)
    names = [f"MSP-PODCAST_{k // 100:04}_{k % 100:04}.wav" for k in range(n)]
    for part in ("Audios", "Labels"):
        (folder / part).mkdir(parents=True)
    for name in names:
        soundfile.write(folder / "Audios" / name, random.integers(-3000, 3000, 4800).astype(np.int16), 16_000)
    rows = ((f, "ASHUFDCNOX"[k % 10], 3.5, 2.5, 4.0, k % 1000, "Male", "Train") for k, f in enumerate(names))
    columns = ["FileName", "EmoClass", "EmoAct", "EmoVal", "EmoDom", "SpkrID", "Gender", "Split_Set"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "Labels" / "labels_consensus.csv", index=False)
    return folder


def main() -> None:
    """In a temporary folder; print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--utterances", type=int, help="of MSP-Podcast; without it IEMOCAP's turns")
    n = parser.parse_args().utterances
    with tempfile.TemporaryDirectory() as folder:
        name, tree = "iemocap" if n is None else "msp_podcast", Path(folder) / "release"
        if n is None:
            iemocap_tree(tree, TURNS)
        else:
            msp_podcast_tree(tree, n)
        path, first = timed(manifest.prepare, name, tree, Path(folder) / "manifests")
        content = path.read_bytes()
        path, second = timed(manifest.prepare, name, tree, Path(folder) / "manifests")
        path.unlink()
        path, again = timed(manifest.prepare, name, tree, Path(folder) / "manifests")
        assert path.read_bytes() == content
        n = len(pd.read_csv(path))
    print(f"{machine()}\n")
    print("| | s | s when nothing changed | s made anew, the same bytes | peak GB |")
    print(f"| --- |{' ---: |' * 4}")
    print(f"| {n:,} utterances | {first:.1f} | {second:.1f} | {again:.1f} | {peak_gb():.2f} |")


if __name__ == "__main__":
    main()
