"""What an epoch of a system costs, and which share of it is spent outside the model.

    python benchmarks/epoch.py hparams/fu_cross_lingual.yaml --corpus=emodb --data_folder=/corpora/EMO-DB

Takes train.py's own options. After one epoch to warm up (caches, memory), a second is timed; what is not spent in
forward pass, loss, backward pass and optimiser step is outside the model: loading, batching, bookkeeping.
"""

import sys
import tempfile
import time
from pathlib import Path

from machine import machine
from speechbrain import Stage

from speechbrain_ser.building import build
from speechbrain_ser.config import read_config
from speechbrain_ser.preparation import prepare

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the recipes


def timed_epoch(brain, loader, epoch: int) -> tuple[float, float]:
    """Seconds of a training epoch, and of its steps alone."""
    brain.train_sampler.set_epoch(epoch)
    brain.step, inside = 0, 0.0
    brain.on_stage_start(Stage.TRAIN, epoch)
    brain.modules.train()
    start = time.perf_counter()
    for batch in loader:
        brain.step += 1
        before = time.perf_counter()
        brain.fit_batch(batch)
        inside += time.perf_counter() - before
    return time.perf_counter() - start, inside


def main() -> None:
    """Build a run in a temporary folder, train two epochs, print the second one's seconds."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [*sys.argv[1:], f"--output_folder={folder}/run", "--noprogressbar"]
        setup = prepare(read_config(argv, ROOT / "hparams"))
        start = time.perf_counter()
        _, brain, loaders = build(setup)
        built = time.perf_counter() - start
        brain.on_fit_start()
        timed_epoch(brain, loaders["train"], 1)
        seconds, inside = timed_epoch(brain, loaders["train"], 2)
        n = len(setup.fold.train)
    print(machine())
    print(f"{n} utterances: {seconds:.1f} s an epoch, {n / seconds:.1f} utterances/s; building the run {built:.1f} s")
    print(f"outside the model: {1 - inside / seconds:.1%}")


if __name__ == "__main__":
    main()
