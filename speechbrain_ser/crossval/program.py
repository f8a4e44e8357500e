"""crossval.py from its command line to its exit status and report."""

import logging
import os
import shutil
import sys
from argparse import Namespace
from itertools import product
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from speechbrain_ser.crossval.plan import Plan, PlannedRun, check_builds, make_plans, read_arguments
from speechbrain_ser.crossval.schedule import Interrupted, LocalProcesses, Schedule, interruptible
from speechbrain_ser.crossval.slurm import SlurmJobs
from speechbrain_ser.data.batches import AudioCache
from speechbrain_ser.errors import INTERRUPTED, UserError, log_to_terminal, printable
from speechbrain_ser.evaluation.calibration import CALIBRATION, LOGITS
from speechbrain_ser.evaluation.controls import CONTROLS_FILE
from speechbrain_ser.evaluation.report import build_corpora_report, build_protocol_report, build_report
from speechbrain_ser.evaluation.runs import pooled
from speechbrain_ser.files import link_or_copy, locked, read_csv, write_csv
from speechbrain_ser.inference.evaluate import known_to, open_model
from speechbrain_ser.training.config import yaml_named
from speechbrain_ser.training.distributed import is_launched
from speechbrain_ser.training.run import check_machine

# all that a report is made of
FILES = ("metrics.json", "epochs.csv", "predictions*.csv", CALIBRATION, LOGITS, CONTROLS_FILE)


def make_report(plan: Plan, name: str) -> str:
    """Report the finished runs of a plan, and only them, the paper's own numbers beside ours; returns what to print."""
    missing = [str(run) for run in plan.reported if not run.finished()]
    folder = _report_folder(plan, name)
    words = f"INCOMPLETE, {len(missing)} of {len(plan.reported)} runs are missing: {'; '.join(missing)}"
    lines = [words] if missing else []
    if len(missing) == len(plan.reported):
        return "\n".join([*lines, "nothing is finished, so there is no report"])
    with locked(folder):  # another terminal may have other folds of the same
        text = build_report(_gather(plan, folder / "runs"), folder, _paper(plan), allow_incomplete=True).console
    return "\n".join(["", *lines, text, f"\nreport: {folder}{os.sep}"])


def _compare_protocols(plans: list[Plan], name: str) -> str:
    done = [p for p in plans if any(run.finished() for run in p.reported)]
    finished = {p.config.plain["protocol"]: _report_folder(p, name) / "runs" for p in done}
    if len(finished) < 2:
        return "fewer than two protocols have finished runs, so they are not compared"
    folder = _report_folder(plans[0], name, "protocols")
    text = build_protocol_report(finished, folder, _paper(plans[0])).console
    return f"\n{text}\n\nreport: {folder}{os.sep}"


def _cross_corpora(plans: list[Plan], name: str) -> str:
    """Test the finished runs of each corpus on all others, and report the matrix; what was tested is kept."""
    folder, first = Path(plans[0].config.plain["results_folder"]) / "reports" / f"{name}-corpora", plans[0].reported[0]
    found, leaks, lead = {}, {}, []
    for plan in plans:
        train, runs = plan.config.corpus, [run for run in plan.reported if run.finished()]
        lead.append(f"{train}: {len(runs)} of {len(plan.reported)} models, protocol {plan.config.plain['protocol']}.")
        for run, other in tqdm([*product(runs, plans)], f"models of {train}", disable=None, leave=False):
            path, leak = run.folder / "predictions.csv", run.setup.leak
            if other is not plan:
                path = folder / "predictions" / Path(*run.folder.parts[-5:]) / f"{other.config.corpus}.csv"
                leak = _test(run, other.reported[0].setup.frame, path)
            leaks |= {(train, other.config.corpus): leak} if leak else {}
            predictions = read_csv(path, dtype=str, keep_default_na=False)[["ID", "speaker", "emotion", "predicted"]]
            found.setdefault((run.name, train, other.config.corpus), []).append(predictions)
    if not found:
        return "nothing is finished, so there is no report across corpora"
    places = product([row.name for row in plans[0].rows], *[[plan.config.corpus for plan in plans]] * 2)
    cells = {place: pooled(found[place]) for place in places if place in found}
    report = build_corpora_report(cells, first.setup.classes, leaks, folder, plans[0].table.title, lead)
    return f"\n{report.console}\n\nreport: {folder}{os.sep}"


def _test(run: PlannedRun, frame: pd.DataFrame, path: Path) -> str | None:
    """Write a run's predictions of another corpus, unless they are there; say what the run knows of it."""
    facts = ["ID", "emotion"]
    is_new = path.is_file() and path.stat().st_mtime > (run.folder / "metrics.json").stat().st_mtime
    known = read_csv(path, dtype=str, keep_default_na=False)[facts] if is_new else None
    if known is None or known.to_numpy().tolist() != frame.sort_values("ID")[facts].to_numpy().tolist():
        model = open_model(str(run.folder), device=run.setup.config.run_opts.device, trust_run=True)
        write_csv(model.predictions(frame.assign(transcript=""))[0], path)  # so that nothing is transcribed
    own = run.setup.frame
    return known_to(frozenset(own["recording"][~own["ID"].isin(run.setup.fold.test)]), frame, frame)


def _report_folder(plan: Plan, name: str, of: str | None = None) -> Path:
    """Of the plan's protocol, or of what has another name."""
    plain = plan.config.plain
    return Path(plain["results_folder"]) / "reports" / f"{name}-{plan.config.corpus}-{of or plain['protocol']}"


def _gather(plan: Plan, folder: Path) -> Path:
    """The files of the plan's runs, linked into a folder of their own: others' results lie beside theirs."""
    shutil.rmtree(folder, ignore_errors=True)
    for run in plan.reported:
        if run.finished():
            place = folder.joinpath(*run.folder.parts[-5:])
            place.mkdir(parents=True)
            for file in (f for pattern in FILES for f in run.folder.glob(pattern)):
                link_or_copy(file, place / file.name)
    return folder


def _paper(plan: Plan) -> dict | None:
    """The paper's table in the report's words: its numbers by the variant of our run."""
    if plan.table is None:
        return None
    variants = {run.name: f"{run.setup.config.system}/{run.setup.config.variant()}" for run in plan.reported}
    published = f" (the paper: {plan.table.published})" if plan.table.published else ""
    return {
        "title": plan.table.title + published,
        "rows": {variants[row.name]: row.paper for row in plan.rows},
        "names": {variants[row.name]: row.name for row in plan.rows},
    }


def main(argv: list[str], root: Path) -> int:
    """Run a cross-validation and print its report; `root` is where train.py and hparams/ are.

    Returns 0; 1 where a run failed; 2 after an error that the user can mend; 130 where it was interrupted.
    """
    log_to_terminal(logging.WARNING, force=True)
    logging.getLogger("speechbrain").setLevel(logging.WARNING)  # it has a level of its own
    try:
        with interruptible():
            return _run(read_arguments(argv), root)
    except UserError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except Interrupted:
        print("\ninterrupted: the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


def _run(request: Namespace, root: Path) -> int:
    if is_launched():
        raise UserError("crossval.py starts what trains itself: start it without torchrun (Slurm: --slurm={gpus: N})")
    request.yaml = yaml_named(request.yaml, root / "hparams")
    plans = make_plans(request, root / "hparams")
    if request.executor != "slurm":  # whose nodes have others
        check_machine(plans[0].config)
    plain, runs = plans[0].config.plain, list({run.folder: run for plan in plans for run in plan.runs}.values())
    todo = [run for run in runs if not run.finished()]
    print(f"{len(runs)} runs, {len(runs) - len(todo)} of them finished already", flush=True)
    if todo:
        check_builds(todo)
        # resampled once, and not in every process at the same time
        wavs = dict.fromkeys(wav for plan in plans for wav in plan.reported[0].setup.frame["wav"])
        AudioCache(Path(plain["cache_folder"]) / "audio").fill([*wavs])
    program = root / "train.py"
    if request.executor == "slurm":
        command = [sys.executable, str(program)]
        executor = SlurmJobs(plain.get("slurm") or {}, Path(plain["results_folder"]) / "slurm", command)
    else:
        executor = LocalProcesses(request.jobs, program)
    outcome = Schedule(runs, executor, request.keep_optimizer, "--noprogressbar" not in request.options).work()
    try:
        for plan in plans:
            print(printable(make_report(plan, request.yaml.stem)))
        if plans[0].table and plans[0].table.corpora:
            print(printable(_cross_corpora(plans, request.yaml.stem)))
        elif len(plans) > 1:
            print(printable(_compare_protocols(plans, request.yaml.stem)))
    finally:
        if str(outcome):
            print(printable(f"\n{outcome}"), file=sys.stderr)
    return 1 if str(outcome) else 0
