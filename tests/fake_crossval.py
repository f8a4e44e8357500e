"""Stands for crossval.py with fake runs: `FOLDER JOBS EPOCHS SECONDS NAME[:MODE[:NEEDED]] …`."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from speechbrain_ser.crossval.schedule import Interrupted, LocalProcesses, Outcome, Schedule, interruptible

PROGRAM = Path(__file__).with_name("fake_train.py")


@dataclass(eq=False)
class FakeRun:
    """What Schedule and LocalProcesses need of a run."""

    folder: Path
    n_epochs: int
    seconds: float
    mode: str = "works"
    needs: list = field(default_factory=list)

    @property
    def argv(self):
        return [str(self.folder), str(self.n_epochs), str(self.seconds), self.mode]

    @property
    def log(self):
        return self.folder.with_name(f"{self.folder.name}.log")

    def finished(self):
        return (self.folder / "finished").exists()

    def epochs_done(self):
        path = self.folder / "epochs.csv"
        return len(path.read_text().splitlines()) - 1 if path.exists() else 0

    def starts(self):
        path = self.folder / "starts"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def __str__(self):
        return self.folder.name


def fake_runs(folder: Path, n_epochs: int, seconds: float, names: list[str]) -> list[FakeRun]:
    runs: dict[str, FakeRun] = {}
    for spelled in names:
        name, mode, needed = [*spelled.split(":"), "", ""][:3]
        needs = [runs[needed]] if needed else []
        runs[name] = FakeRun(folder / name, n_epochs, seconds, mode or "works", needs)
    return list(runs.values())


def work(runs: list[FakeRun], jobs: int = 2) -> Outcome:
    return Schedule(runs, LocalProcesses(jobs, PROGRAM), progress=False, poll=0.02).work()


if __name__ == "__main__":
    try:
        with interruptible():
            runs = fake_runs(Path(sys.argv[1]), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5:])
            outcome = work(runs, int(sys.argv[2]))
    except Interrupted:
        sys.exit(130)
    sys.exit(1 if outcome.failed else 0)
