"""What runs inside a Slurm job; imports nothing heavy, for it only waits."""

import os
import signal
import subprocess
import time
from dataclasses import dataclass

from speechbrain_ser.locks import PARENT, TRY_LATER

WARNED = 120.0  # seconds until Slurm takes a job away that it has warned and submitit has queued again


@dataclass
class TrainJob:
    """One run of train.py, which resumes by itself: a job that was pre-empted or ran out of time starts again.

    Arguments
    ---------
    command : list of str
        The process.
    log : str
        Where what it says is appended.
    """

    command: list[str]
    log: str

    def __call__(self) -> None:
        """Wait for the process; its failure is the job's."""
        with open(self.log, "ab") as log:
            said = f"Slurm job {os.environ['SLURM_JOB_ID']}, start {os.environ.get('SLURM_RESTART_COUNT', '0')}\n"
            log.write(said.encode())
            log.flush()
            ended = subprocess.run(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**_threads(), **os.environ, PARENT: str(os.getpid())},
                preexec_fn=_leave_sigterm_to_us,
            )
            if ended.returncode == TRY_LATER:
                time.sleep(WARNED)
            ended.check_returncode()

    def checkpoint(self):
        """What submitit queues again: the same."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _threads() -> dict[str, str]:
    """As many threads as the job has cores."""
    cores = os.environ.get("SLURM_CPUS_PER_TASK")
    return {"OMP_NUM_THREADS": cores} if cores else {}


def _leave_sigterm_to_us() -> None:
    """Slurm signals every process of a job: the warning, SIGUSR2, has training save and end; SIGTERM must not."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
