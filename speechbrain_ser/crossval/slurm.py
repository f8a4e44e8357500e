"""Runs as Slurm jobs: one a run, those it needs as dependencies, followed through squeue.

A job itself imports this module too and only waits: nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from speechbrain_ser.errors import TRY_LATER, UserError
from speechbrain_ser.files import path_component
from speechbrain_ser.training.signals import PARENT

if TYPE_CHECKING:
    from speechbrain_ser.crossval.plan import PlannedRun

LOOK = 5.0  # seconds between two looks at the queue
WARNED = 120.0  # seconds until Slurm takes a job away that it has warned and submitit has queued again
# our words -> submitit's; any other word of the `slurm` lines is an option of sbatch
WORDS = {word: word for word in ("partition", "time", "nodes", "setup")}
WORDS |= {"gpus": "gpus_per_node", "cpus": "cpus_per_task", "memory": "mem", "warning": "signal_delay_s"}
MANY = 1_000_000  # how often a job may run out of its time and start again


class SlurmJobs:
    """A job for each run, all in the queue at once (see `LocalProcesses`).

    Jobs outlive this program: their numbers lie beside the runs' folders, and a later start follows them further.
    `settings` are the YAML's `slurm` lines, `folder` is submitit's, a run's arguments are appended to `command`.
    """

    def __init__(self, settings: dict, folder: Path, command: Sequence[str]):
        try:
            import submitit
        except ImportError:
            raise UserError('--executor=slurm needs submitit: pip install -e ".[slurm]"') from None
        try:
            self.submitit = submitit.SlurmExecutor(folder=folder.resolve(), max_num_timeout=MANY)
        except RuntimeError:
            raise UserError("--executor=slurm needs Slurm's commands (srun, sbatch, squeue): none found here") from None
        self.folder, self.command, self.settings = folder, list(command), parameters(settings)
        self.nodes, self.processes = processes(settings)
        self.jobs: dict[PlannedRun, str] = {}
        self.looked = 0.0

    def room(self, run: PlannedRun) -> bool:
        return all(need.finished() or need in self.jobs for need in run.needs)

    def has(self, run: PlannedRun) -> bool:
        if (number := _number(run)) is None:
            return False
        queued = _queued()
        return queued is None or number in queued  # None: no answer, so it may be there

    def start(self, run: PlannedRun) -> None:
        """Queue a job, or follow the one that an earlier start has queued."""
        if self.has(run):
            self.jobs[run] = _number(run)
        else:
            self.jobs[run] = self._submit(run)
            _job_file(run).write_text(self.jobs[run])

    def ended(self) -> list[PlannedRun]:
        if not self.jobs or time.monotonic() - self.looked < LOOK:
            return []
        there, self.looked = _queued(), time.monotonic()
        if there is None:  # no answer: look again
            return []
        over = [run for run, number in self.jobs.items() if number not in there]
        for run in over:
            del self.jobs[run]
            _job_file(run).unlink(missing_ok=True)
        return over

    def stop(self) -> None:
        if self.jobs:
            subprocess.run(["scancel", *self.jobs.values()], check=False)
        for run in self.jobs:
            _job_file(run).unlink(missing_ok=True)

    def _submit(self, run: PlannedRun) -> str:
        run.log.parent.mkdir(parents=True, exist_ok=True)
        settings = dict(self.settings)
        extra = {"requeue": True, "chdir": os.getcwd(), **settings.pop("additional_parameters")}
        if numbers := [self.jobs[need] for need in run.needs if need in self.jobs]:
            extra |= {"dependency": "afterok:" + ":".join(numbers), "kill-on-invalid-dep": "yes"}
        root = str(Path(__file__).parents[2])
        setup = [f'export PYTHONPATH="{root}${{PYTHONPATH:+:$PYTHONPATH}}"', *settings.pop("setup", [])]
        name = path_component(f"{run.setup.config.system} {run}".replace(" ", "_"))
        self.submitit.update_parameters(**settings, setup=setup, job_name=name, additional_parameters=extra)
        try:
            command, log = [*self.command, *run.argv], str(run.log.resolve())
            return self.submitit.submit(TrainJob(command, log, self.nodes, self.processes)).job_id
        except Exception as error:  # submitit wraps what sbatch says in several kinds
            raise UserError(f"Slurm does not take the job of {run}: {error}") from error


def parameters(settings: dict) -> dict:
    """Say the YAML's `slurm` lines in submitit's words; lines that are null, or no GPU, are left to Slurm.

    Example
    -------
    >>> parameters({"partition": "gpu", "gpus": 1, "time": 60, "memory": None, "qos": "long"})
    {'partition': 'gpu', 'gpus_per_node': 1, 'time': 60, 'additional_parameters': {'qos': 'long'}}
    >>> parameters({"cpus": 4, "nodes": 2, "processes": 8})["srun_args"]
    ['--cpus-per-task=4', '--kill-on-bad-exit=1']
    """
    given = {k: v for k, v in settings.items() if v is not None and (k, v) != ("gpus", 0) and k != "processes"}
    ours = {WORDS[k]: v for k, v in given.items() if k in WORDS}
    # since Slurm 22.05 a step does not inherit the job's; and a machine does not wait for one that has failed
    arguments = [f"--cpus-per-task={given['cpus']}"] if "cpus" in given else []
    arguments += ["--kill-on-bad-exit=1"] if given.get("nodes", 1) != 1 else []
    if arguments:
        ours["srun_args"] = arguments
    return {**ours, "additional_parameters": {k: v for k, v in given.items() if k not in WORDS}}


def processes(settings: dict) -> tuple[int, int]:
    """Return a job's machines, and the processes that train together on each: one a GPU, or as `processes` says.

    Example
    -------
    >>> processes({"gpus": 4}), processes({"nodes": 2, "gpus": 0, "processes": 3}), processes({})
    ((1, 4), (2, 3), (1, 1))
    """
    numbers = {"nodes": 1, "gpus": 1, "processes": None}
    numbers |= {word: settings[word] for word in numbers if settings.get(word) is not None}
    for word, value in numbers.items():
        if value is not None and not (isinstance(value, int) and value >= (word != "gpus")):
            raise UserError(f"slurm: {word}: expected a whole number, found {value!r}")
    return numbers["nodes"], numbers["processes"] or max(1, numbers["gpus"])


def _job_file(run: PlannedRun) -> Path:
    """Return where a run's job number lies while the job is in the queue."""
    return run.folder.with_name(f"{run.folder.name}.job")


def _queued() -> set[str] | None:
    """Return the numbers of this user's jobs that wait or run; None where Slurm gives no answer."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        found = subprocess.run(["squeue", "-h", "--me", "-o", "%A"], capture_output=True, text=True, timeout=60)
        if found.returncode == 0:
            return set(found.stdout.split())
    return None


def _number(run: PlannedRun) -> str | None:
    try:
        return _job_file(run).read_text().strip() or None
    except FileNotFoundError:
        return None


@dataclass
class TrainJob:
    """One run of train.py, which resumes by itself: a job that was pre-empted or ran out of time starts again.

    This runs once on each of the job's machines, and appends what the process says to `log`; where several `processes`
    a machine, or several machines (`nodes`) train together, torchrun starts them.
    """

    command: list[str]
    log: str
    nodes: int = 1
    processes: int = 1

    def __call__(self) -> None:
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
