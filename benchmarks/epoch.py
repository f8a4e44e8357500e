"""What an epoch of a system costs, and which share of it is spent outside the model.

    python benchmarks/epoch.py hparams/fu_cross_lingual.yaml             # noise, of a fold of SAVEE's size and lengths
    python benchmarks/epoch.py hparams/fu_cross_lingual.yaml --corpus=emodb --data_folder=/corpora/EMO-DB

Takes train.py's own options. After one epoch to warm up (caches, memory), a second is timed; what is not spent in
forward pass, loss, backward pass and optimiser step is outside the model: loading, batching, bookkeeping.
"""

import contextlib
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import machine, peak_gb
from speechbrain import Stage
from utterances import lengths_like_savee, make_corpus

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the recipes

from speechbrain_ser.training.config import read_config  # noqa: E402
from speechbrain_ser.training.run import (  # noqa: E402
    build,
    prepare,
)

EMOTIONS = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")


@dataclass
class Took:
    """What a training epoch took: seconds, those of them that were a step's own, and utterances."""

    seconds: float
    inside: float
    utterances: int


def train_epoch(brain, loader, epoch: int, at_most: int | None = None) -> Took:
    """Train an epoch, or its first optimiser steps, as train.py does."""
    brain.train_sampler.set_epoch(epoch)
    brain.step, inside, utterances, steps = 0, 0.0, 0, 0
    brain.on_stage_start(Stage.TRAIN, epoch)
    brain.modules.train()
    start = time.perf_counter()
    for batch in loader:
        brain.step += 1
        before = time.perf_counter()
        brain.fit_batch(batch)
        inside += time.perf_counter() - before
        utterances, steps = utterances + sum(len(micro.id) for micro in batch), steps + 1
        if steps == at_most:
            break
    if brain.device != "cpu":
        torch.cuda.synchronize()
    return Took(time.perf_counter() - start, inside, utterances)


def fold_like_savee(folder: Path) -> Path:
    """Three speakers to train on, one to test: 480 utterances of seven emotions."""
    return make_corpus(folder, lengths_like_savee(), ["train"] * 360 + ["test"] * 120, EMOTIONS, speakers=3)


def main() -> None:
    """Build a run in a temporary folder, train two epochs, print the second one's seconds."""
    given = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):  # the log; the table stays
        lines = [f"--output_folder={folder}/run", "--noprogressbar"]
        if not any(word.startswith("--data_folder") for word in given):
            lines += [f"--data_folder={fold_like_savee(Path(folder) / 'corpus')}", "--corpus=table"]
            lines += ["--protocol=given", f"--results_folder={folder}/results"]
        setup = prepare(read_config([*given[:1], *lines, *given[1:]], ROOT / "hparams"))
        start = time.perf_counter()
        hparams, brain = build(setup)
        built = time.perf_counter() - start
        brain.on_fit_start()
        train_epoch(brain, brain.loaders["train"], 1)
        took = train_epoch(brain, brain.loaders["train"], 2)
    epochs = hparams["n_epochs"]
    print(f"{machine(brain.device)}\n")
    print("| | utterances | s an epoch | utterances/s | outside the model | padding | peak GB | building, s |", end="")
    print(f" {epochs} epochs, min |\n| --- |{' ---: |' * 8}")
    cells = f"{took.utterances} | {took.seconds:.2f} | {took.utterances / took.seconds:.1f}"
    cells += f" | {1 - took.inside / took.seconds:.1%} | {brain.train_sampler.padding_share():.1%}"
    cells += f" | {peak_gb(brain.device):.2f} | {built:.1f} | {took.seconds * epochs / 60:.1f}"
    print(f"| {hparams['system']}, {hparams['precision']} | {cells} |")


if __name__ == "__main__":
    main()
