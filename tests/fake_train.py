"""Stands for train.py: `FOLDER EPOCHS SECONDS MODE`; holds the folder's lock, writes epochs.csv, may fail or hang."""

import os
import sys
import time
from pathlib import Path

from speechbrain_ser.files import locked
from speechbrain_ser.training.signals import end_with_parent, ending_on_signals

HANGS_AFTER = 2  # epochs: a run that `hangs once` is still there when it is killed, however busy the machine


def train(folder: Path, n_epochs: int, seconds: float, mode: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "pid").write_text(str(os.getpid()))
    with (folder / "starts").open("a") as starts:
        starts.write("x\n")
    first = len((folder / "starts").read_text().splitlines()) == 1
    if mode == "fails" or (mode == "fails once" and first):
        sys.exit(f"the reason of {folder.name}")
    epochs = folder / "epochs.csv"
    if not epochs.exists():
        epochs.write_text("epoch\n")
    for epoch in range(len(epochs.read_text().splitlines()), n_epochs + 1):
        time.sleep(seconds)
        with epochs.open("a") as rows:
            rows.write(f"{epoch}\n")
        if mode == "hangs once" and first and epoch == HANGS_AFTER:
            time.sleep(300)  # longer than a test waits; not for ever, where a test fails
    (folder / "finished").touch()


if __name__ == "__main__":
    end_with_parent(0.05)
    place = Path(sys.argv[1])
    with ending_on_signals(), locked(place):
        train(place, int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
