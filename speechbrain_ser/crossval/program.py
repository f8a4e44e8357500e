"""crossval.py from its command line to its exit status."""

import logging
import sys
from pathlib import Path

from speechbrain_ser.crossval.arguments import USAGE, Request, read_arguments
from speechbrain_ser.crossval.interrupt import Interrupted, interruptible
from speechbrain_ser.crossval.local import LocalProcesses
from speechbrain_ser.crossval.plan import Plan, check_builds, make_plan
from speechbrain_ser.crossval.report import make_report
from speechbrain_ser.crossval.schedule import Executor, Schedule
from speechbrain_ser.dataio import AudioCache
from speechbrain_ser.distributed import is_launched
from speechbrain_ser.errors import UserError
from speechbrain_ser.stopping import INTERRUPTED


def main(argv: list[str], root: Path, command: list[str] | None = None) -> int:
    """Run a cross-validation and print its report.

    Arguments
    ---------
    argv : list of str
        The command line after the program's name.
    root : pathlib.Path
        Where train.py and hparams/ are.
    command : list of str, optional
        What trains, instead of this Python and train.py.

    Returns
    -------
    int
        0; 1 where a run failed; 2 after an error that the user can mend; 130 where it was interrupted.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("speechbrain").setLevel(logging.WARNING)  # it has a level of its own
    if set(argv) & {"-h", "--help"}:
        print(USAGE)
        return 0
    try:
        with interruptible():
            return _run(read_arguments(argv), root, command or [sys.executable, str(root / "train.py")])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted:
        print("\ninterrupted: the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


def _run(request: Request, root: Path, command: list[str]) -> int:
    if is_launched():
        raise UserError(
            "crossval.py starts what trains itself: start it without torchrun (on Slurm: --slurm={gpus: N})"
        )
    plan = make_plan(request, root / "hparams")
    todo = [run for run in plan.runs if not run.finished()]
    print(f"{len(plan.runs)} runs, {len(plan.runs) - len(todo)} of them finished already", flush=True)
    if todo:
        check_builds(todo)
        _resample(plan)
    schedule = Schedule(plan.runs, _executor(request, plan, command), request.keep_optimizer, _has_bar(request))
    outcome = schedule.work()
    try:
        print(make_report(plan, request.yaml.stem))
    finally:
        if str(outcome):
            print(f"\n{outcome}", file=sys.stderr)
    return 1 if str(outcome) else 0


def _executor(request: Request, plan: Plan, command: list[str]) -> Executor:
    if request.executor == "slurm":
        from speechbrain_ser.crossval.slurm import SlurmJobs

        plain = plan.config.plain
        return SlurmJobs(plain.get("slurm") or {}, Path(plain["results_folder"]) / "slurm", command)
    return LocalProcesses(request.jobs, command)


def _has_bar(request: Request) -> bool:
    return "--noprogressbar" not in request.options


def _resample(plan: Plan) -> None:
    """Once, and not in every process at the same time."""
    plain = plan.config.plain
    AudioCache(Path(plain["cache_folder"]) / "audio").fill(plan.reported[0].setup.frame["wav"].tolist())
