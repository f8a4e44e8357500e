"""What runs inside a Slurm job; imports nothing heavy, for it only waits."""

import os
import signal
import subprocess
import time
from dataclasses import dataclass

from speechbrain_ser.errors import TRY_LATER
from speechbrain_ser.training.signals import PARENT

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
    nodes : int
        Machines; this runs once on each.
    processes : int
        That train together on each machine; above 1, or with several machines, torchrun starts them.
    """

    command: list[str]
    log: str
    nodes: int = 1
    processes: int = 1

    def __call__(self) -> None:
        """Wait for the process; its failure is the job's."""
        with open(self.log, "ab") as log:
            said = f"Slurm job {os.environ['SLURM_JOB_ID']}, start {os.environ.get('SLURM_RESTART_COUNT', '0')}\n"
            if os.environ.get("SLURM_NODEID", "0") == "0":
                log.write(said.encode())
                log.flush()
            ended = subprocess.run(
                self._whole_command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**_threads(self.processes), **os.environ, PARENT: str(os.getpid())},
                preexec_fn=_leave_sigterm_to_us,
            )
            if ended.returncode == TRY_LATER:
                time.sleep(WARNED)
            ended.check_returncode()

    def _whole_command(self) -> list[str]:
        if self.nodes * self.processes == 1:
            return self.command
        python, *program = self.command
        torchrun = [python, "-m", "torch.distributed.run", f"--nproc_per_node={self.processes}"]
        return [*torchrun, *(_meeting_place(self.nodes) if self.nodes > 1 else ["--standalone"]), *program]

    def checkpoint(self):
        """What submitit queues again: the same."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _meeting_place(nodes: int) -> list[str]:
    """Where the processes of a job's machines find each other: on the first one, at a port that is the job's."""
    import submitit

    port = 20_000 + int(os.environ["SLURM_JOB_ID"]) % 20_000
    first = submitit.JobEnvironment().hostnames[0]
    node = os.environ["SLURM_NODEID"]
    return [f"--nnodes={nodes}", f"--node_rank={node}", f"--master_addr={first}", f"--master_port={port}"]


def _threads(processes: int) -> dict[str, str]:
    """As many threads as a machine has cores for each of its processes."""
    cores = os.environ.get("SLURM_CPUS_PER_TASK")
    return {"OMP_NUM_THREADS": str(max(1, int(cores) // processes))} if cores else {}


def _leave_sigterm_to_us() -> None:
    """Slurm signals every process of a job: the warning, SIGUSR2, has training save and end; SIGTERM must not."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
