"""In what order runs go: what is ready is started, what fails is tried once more, the rest goes on."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tqdm import tqdm

from speechbrain_ser.locks import holder
from speechbrain_ser.optimizer_state import drop_optimizer

if TYPE_CHECKING:
    from speechbrain_ser.crossval.plan import Run

ATTEMPTS = 2
TAIL = 15  # lines of a failed run's log
SHOW = (1.0, 60.0)  # seconds between two pictures of the bar: on a terminal, in a file


class Executor(Protocol):
    """Where runs go."""

    def room(self, run: Run) -> bool:
        """Whether a run can be given to it now."""

    def has(self, run: Run) -> bool:
        """Whether it works on the run since an earlier start of this program; to start it is then to follow it."""

    def start(self, run: Run) -> None:
        """Begin it; returns at once."""

    def ended(self) -> list[Run]:
        """Runs that are no longer going, each told once; how they ended is seen from their results."""

    def stop(self) -> None:
        """End everything that goes on; it can be resumed."""


@dataclass
class Outcome:
    """What came of the runs.

    Arguments
    ---------
    skipped : int
        Were finished before.
    failed : list of Run
        Twice.
    blocked : list of Run
        Not tried, for a run they need has failed.
    """

    skipped: int = 0
    failed: list[Run] = field(default_factory=list)
    blocked: list[Run] = field(default_factory=list)

    def __str__(self) -> str:
        lines = []
        for run in self.failed:
            lines += [f"FAILED {ATTEMPTS} times: {run}", f"  {run.log} ends with:", *tail(run.log)]
        for run in self.blocked:
            lines.append(f"NOT RUN: {run}: needs {', '.join(map(str, run.needs))}")
        return "\n".join(lines)


def tail(path: Path, n_lines: int = TAIL) -> list[str]:
    """The last lines of a log, indented."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 20_000))
            said = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return ["    (no log)"]
    return [f"    {line}" for line in [line for line in said if line.strip()][-n_lines:]]


class Schedule:
    """Takes runs through an executor.

    Arguments
    ---------
    runs : list of Run
        Needed ones first.
    executor : Executor
        Where they go.
    keep_optimizer : bool
        Whether finished runs keep their optimiser's state.
    progress : bool
        Whether to show the bar.
    poll : float
        Seconds between two looks.
    """

    def __init__(self, runs: list[Run], executor: Executor, keep_optimizer=False, progress=True, poll=0.2):
        self.executor, self.keep_optimizer, self.poll = executor, keep_optimizer, poll
        self.runs = runs
        self.running: list[Run] = []
        self.attempts: Counter[Run] = Counter()
        self.finished: set[Run] = set()
        self.outcome = Outcome()
        for run in runs:
            if run.finished():
                self._finish(run)
        self.outcome.skipped = len(self.finished)
        self.waiting = [run for run in runs if run not in self.finished]
        self.bar = tqdm(
            desc="runs",
            total=sum(run.n_epochs for run in runs),
            initial=self._epochs(),
            unit="epoch",
            disable=not progress,
            dynamic_ncols=True,
            smoothing=0.05,
        )

    def work(self) -> Outcome:
        """Until nothing is left to do; an interruption stops what is going and leaves it resumable.

        Returns
        -------
        Outcome
        """
        looked = 0.0
        try:
            while self.waiting or self.running:
                self._collect()
                self._start()
                if time.monotonic() - looked > SHOW[not sys.stderr.isatty()] or not (self.waiting or self.running):
                    self._show()
                    looked = time.monotonic()
                time.sleep(self.poll if self.running or self.waiting else 0)
        finally:
            self.bar.close()
            self.executor.stop()
        return self.outcome

    def _collect(self) -> None:
        for run in self.executor.ended():
            self.running.remove(run)
            if run.finished():
                self._finish(run)
                self.bar.write(f"finished {run}")
            elif self._held(run) or not all(need in self.finished for need in run.needs):
                # another program was there first, or it could not even begin: no failure of its own
                self.attempts[run] -= 1
                self.waiting.append(run)
            elif self.attempts[run] < ATTEMPTS:
                self.bar.write(f"failed, tried again: {run} ({run.log})")
                self.waiting.insert(0, run)
            else:
                self.bar.write(f"FAILED: {run} ({run.log})")
                self.outcome.failed.append(run)

    def _start(self) -> None:
        lost = {*self.outcome.failed, *self.outcome.blocked}
        for run in list(self.waiting):
            if lost & set(run.needs):
                self.waiting.remove(run)
                self.outcome.blocked.append(run)
                lost.add(run)
            elif self.executor.room(run) and (not self._held(run) or self.executor.has(run)):
                self.waiting.remove(run)
                if run.finished():  # by another program, meanwhile
                    self._finish(run)
                else:
                    self.attempts[run] += 1
                    self.executor.start(run)
                    self.running.append(run)

    def _finish(self, run: Run) -> None:
        self.finished.add(run)
        if not self.keep_optimizer and not holder(run.folder):
            drop_optimizer(run.folder / "save")

    def _held(self, run: Run) -> bool:
        return holder(run.folder) is not None

    def _epochs(self) -> int:
        """Epochs behind us; a finished run counts in full, though it may have stopped early."""
        return sum(r.n_epochs if r in self.finished else min(r.epochs_done(), r.n_epochs) for r in self.runs)

    def _show(self) -> None:
        self.bar.n = self._epochs()
        failed = len(self.outcome.failed) + len(self.outcome.blocked)
        words = [f"{len(self.finished)} of {len(self.runs)} runs finished", f"{len(self.running)} running"]
        words += [f"{failed} FAILED"] * bool(failed)
        if elsewhere := sum(map(self._held, self.waiting)) if not self.running else 0:
            words.append(f"{elsewhere} in another program")
        self.bar.set_postfix_str(", ".join(words))
