"""Runs as processes of this machine: what is ready is started, what fails is tried once more, the rest goes on."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from speechbrain_ser.data.audio import cores
from speechbrain_ser.files import is_locked
from speechbrain_ser.training.signals import handled

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from speechbrain_ser.crossval.plan import PlannedRun
    from speechbrain_ser.crossval.slurm import SlurmJobs

ATTEMPTS = 2
GRACE = 30.0  # seconds between asking a process to end and ending it: a step, and its checkpoint
TAIL = 15  # lines of a failed run's log
SHOW = 1.0  # seconds between two pictures of the bar
SHARED = "speechbrain_ser.training.run"  # what takes seconds to import, once for all runs


class Interrupted(BaseException):
    """Someone wants the program to end; what it has begun is to be left resumable."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise :class:`Interrupted`, once: further ones must not disturb the tidying up."""
    numbers = [signal.SIGINT, signal.SIGTERM]  # SIGINT also where a shell's & had it ignored
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        numbers.append(signal.SIGHUP)

    def interrupt(number, frame):
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted

    with handled(numbers, interrupt):
        yield


@dataclass(eq=False)
class _Slot:
    """One of the places for a run: its process, and the GPU it gets where there are several."""

    gpu: str | None = None
    run: PlannedRun | None = None
    process: BaseProcess | None = None


class LocalProcesses:
    """Where runs go: at most `jobs` processes at a time, each `program` with a run's arguments.

    All are forked from one process that has imported what they need, and used neither threads nor GPU so far.
    """

    def __init__(self, jobs: int, program: Path):
        self.program = program
        gpus = _visible_gpus() if jobs > 1 else []
        self.slots = [_Slot(gpus[k % len(gpus)] if gpus else None) for k in range(jobs)]
        if jobs > 1:  # heard by libraries as they are loaded
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // jobs)))
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(["__main__", SHARED])

    def room(self, run: PlannedRun) -> bool:
        """Whether a run can be given to it now."""
        return any(slot.process is None for slot in self.slots) and all(need.finished() for need in run.needs)

    def has(self, run: PlannedRun) -> bool:
        """Whether it works on a run since an earlier start of this program; to start it is then to follow it."""
        return False  # our processes end when we do

    def start(self, run: PlannedRun) -> None:
        """Begin a run; return at once."""
        slot = next(slot for slot in self.slots if slot.process is None)
        run.log.parent.mkdir(parents=True, exist_ok=True)
        slot.run = run
        environment = {**os.environ} if slot.gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": slot.gpu}
        slot.process = self.processes.Process(target=_work, args=(self.program, run.argv, run.log, environment))
        slot.process.start()

    def ended(self) -> list[PlannedRun]:
        """Return the runs that are no longer going, each once; how they ended is seen from their results."""
        over = [slot for slot in self.slots if slot.process is not None and not slot.process.is_alive()]
        runs = [slot.run for slot in over]
        for slot in over:
            slot.run = slot.process = None
        return runs

    def stop(self) -> None:
        """Ask all that goes on to end, which can be resumed; after a while, end it."""
        processes = [slot.process for slot in self.slots if slot.process is not None]
        for process in processes:
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                _signal(process, signal.SIGKILL)
                process.join()


def _work(program: Path, argv: list[str], log: Path, environment: dict[str, str]) -> None:
    """Be a run's process, in a group of its own: Ctrl-C reaches the parent alone, which tells its children."""
    os.setsid()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(program), *argv]
    try:
        runpy.run_path(str(program), run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # trackers upload there; a forked process would leave them out


def _visible_gpus() -> list[str]:
    """Return the GPUs to share out, as CUDA_VISIBLE_DEVICES names them."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in chosen.split(",") if gpu]
    import torch

    return [str(k) for k in range(torch.cuda.device_count())]


def _signal(process: BaseProcess, number: int) -> None:
    """To the process and its own children (loader workers)."""
    with contextlib.suppress(ProcessLookupError):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:  # just born, it has no group yet
            os.kill(process.pid, number)


@dataclass
class Outcome:
    """What came of the runs: finished before, failed twice, or not tried since a run that they need has failed."""

    skipped: int = 0
    failed: list[PlannedRun] = field(default_factory=list)
    blocked: list[PlannedRun] = field(default_factory=list)

    def __str__(self) -> str:
        lines = []
        for run in self.failed:
            lines += [f"FAILED {ATTEMPTS} times: {run}", f"  {run.log} ends with:", *_tail(run.log)]
        for run in self.blocked:
            lines.append(f"NOT RUN: {run}: needs {', '.join(map(str, run.needs))}")
        return "\n".join(lines)


def _tail(log: Path) -> list[str]:
    said = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else ["(no log)"]
    return [f"    {line}" for line in said if line.strip()][-TAIL:]


class Schedule:
    """Takes runs, needed ones first, through an executor, looking after them every `poll` seconds.

    Finished runs keep their optimiser's state, which is twice the model's size, only where `keep_optimizer` says so.
    """

    def __init__(
        self,
        runs: list[PlannedRun],
        executor: LocalProcesses | SlurmJobs,
        keep_optimizer=False,
        progress=True,
        poll=0.2,
    ):
        self.executor, self.keep_optimizer, self.poll = executor, keep_optimizer, poll
        self.waits = False  # for another program, and has said so
        self.runs = runs
        self.running: list[PlannedRun] = []
        self.attempts: Counter[PlannedRun] = Counter()
        self.finished: set[PlannedRun] = set()
        for run in runs:
            if run.finished():
                self._finish(run)
        self.outcome = Outcome(len(self.finished))
        self.waiting = [run for run in runs if run not in self.finished]
        self.bar = tqdm(
            desc="runs",
            total=sum(run.n_epochs for run in runs),
            initial=self._epochs(),
            unit="epoch",
            disable=None if progress else True,  # None: where there is no terminal
            dynamic_ncols=True,
            smoothing=0.05,
        )

    def work(self) -> Outcome:
        """Work until nothing is left to do; an interruption stops what is going and leaves it resumable."""
        looked = 0.0
        try:
            while self.waiting or self.running:
                self._collect()
                self._start()
                if time.monotonic() - looked > SHOW or not (self.waiting or self.running):
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
            elif is_locked(run.folder) or not all(need in self.finished for need in run.needs):
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
            elif self.executor.room(run) and (not is_locked(run.folder) or self.executor.has(run)):
                self.waiting.remove(run)
                if run.finished():  # by another program, meanwhile
                    self._finish(run)
                else:
                    self.attempts[run] += 1
                    self.executor.start(run)
                    self.running.append(run)

    def _finish(self, run: PlannedRun) -> None:
        self.finished.add(run)
        if not self.keep_optimizer and not is_locked(run.folder):
            for state in run.folder.glob("save/CKPT*/optimizer.ckpt"):
                state.unlink(missing_ok=True)

    def _epochs(self) -> int:
        """Epochs behind us; a finished run counts in full, though it may have stopped early."""
        return sum(r.n_epochs if r in self.finished else min(r.epochs_done(), r.n_epochs) for r in self.runs)

    def _show(self) -> None:
        self.bar.n = self._epochs()
        failed = len(self.outcome.failed) + len(self.outcome.blocked)
        words = [f"{len(self.finished)} of {len(self.runs)} runs finished", f"{len(self.running)} running"]
        words += [f"{failed} FAILED"] * bool(failed)
        if not self.running and (elsewhere := sum(is_locked(run.folder) for run in self.waiting)):
            words.append(f"{elsewhere} in another program")
            if self.bar.disable and not self.waits:  # else nothing would say why nothing happens
                self.bar.write(f"waiting for another program that works in {elsewhere} of these runs' folders")
            self.waits = True
        self.bar.set_postfix_str(", ".join(words))
