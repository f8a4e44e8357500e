"""Runs as processes of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speechbrain_ser.locks import PARENT

if TYPE_CHECKING:
    from speechbrain_ser.crossval.plan import Run

GRACE = 30.0  # seconds between asking a process to end and ending it: a step, and its checkpoint


@dataclass(eq=False)
class _Slot:
    """One of the places for a run: its process, and the GPU it gets where there are several."""

    gpu: str | None = None
    run: Run | None = None
    process: subprocess.Popen | None = None


class LocalProcesses:
    """At most so many processes at a time.

    Arguments
    ---------
    jobs : int
        How many.
    command : list of str
        What a run's arguments are appended to.
    """

    def __init__(self, jobs: int, command: Sequence[str]):
        self.command = list(command)
        gpus = visible_gpus() if jobs > 1 else []
        self.slots = [_Slot(gpus[k % len(gpus)] if gpus else None) for k in range(jobs)]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.threads = max(1, cores // jobs) if jobs > 1 else None

    def room(self, run: Run) -> bool:
        """Whether a place is free and nothing that the run needs is missing."""
        return any(slot.process is None for slot in self.slots) and all(need.finished() for need in run.needs)

    def has(self, run: Run) -> bool:
        """Never: our processes end when we do."""
        return False

    def start(self, run: Run) -> None:
        """Start a process; what it says goes to the run's log."""
        slot = next(slot for slot in self.slots if slot.process is None)
        run.log.parent.mkdir(parents=True, exist_ok=True)
        with run.log.open("ab") as log:
            slot.run = run
            slot.process = subprocess.Popen(
                [*self.command, *run.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(slot),
                start_new_session=True,  # Ctrl-C reaches us alone, and we tell the children
            )

    def ended(self) -> list[Run]:
        """Runs whose process is over."""
        over = [slot for slot in self.slots if slot.process is not None and slot.process.poll() is not None]
        runs = [slot.run for slot in over]
        for slot in over:
            slot.run = slot.process = None
        return runs

    def stop(self) -> None:
        """Ask all processes to end; after a while, end them."""
        processes = [slot.process for slot in self.slots if slot.process is not None]
        for process in processes:
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL)
                process.wait()

    def _environment(self, slot: _Slot) -> dict[str, str]:
        environment = {**os.environ, PARENT: str(os.getpid())}
        if self.threads:
            environment.setdefault("OMP_NUM_THREADS", str(self.threads))
        if slot.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot.gpu
        return environment


def visible_gpus() -> list[str]:
    """GPUs to share out, as CUDA_VISIBLE_DEVICES names them."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in chosen.split(",") if gpu]
    import torch

    return [str(k) for k in range(torch.cuda.device_count())]


def _signal(process: subprocess.Popen, number: int) -> None:
    """To the process and its own children (loader workers)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
