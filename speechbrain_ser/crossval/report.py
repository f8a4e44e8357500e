"""From finished runs to the report that was asked for."""

import os
import shutil
from pathlib import Path

from speechbrain_ser.calibration import CALIBRATION, LOGITS
from speechbrain_ser.crossval.plan import Plan
from speechbrain_ser.evaluation.report import build_report

FILES = ("metrics.json", "epochs.csv", "predictions*.csv", CALIBRATION, LOGITS)  # all that a report is made of


def make_report(plan: Plan, name: str) -> str:
    """Report the finished runs of a plan, and only them, the paper's own numbers beside ours.

    Arguments
    ---------
    plan : Plan
        Some of its runs may be missing: they are named.
    name : str
        Of the report's folder.

    Returns
    -------
    str
        What the console shows.
    """
    plain, missing = plan.config.plain, [str(run) for run in plan.reported if not run.finished()]
    folder = Path(plain["results_folder"]) / "reports" / f"{name}-{plain['corpus']}-{plain['protocol']}"
    lines = [f"INCOMPLETE, {len(missing)} of {len(plan.reported)} runs are missing: {'; '.join(missing)}"] * bool(
        missing
    )
    if len(missing) == len(plan.reported):
        return "\n".join([*lines, "nothing is finished, so there is no report"])
    runs = _gather(plan, folder / "runs")
    text = build_report(runs, folder, _paper(plan), allow_incomplete=True).console
    return "\n".join(["", *lines, text, f"\nreport: {folder}{os.sep}"])


def _gather(plan: Plan, folder: Path) -> Path:
    """The files of the plan's runs, linked into a folder of their own: others' results lie beside theirs."""
    shutil.rmtree(folder, ignore_errors=True)
    for run in plan.reported:
        if run.finished():
            place = folder.joinpath(*run.folder.parts[-5:])
            place.mkdir(parents=True)
            for file in (f for pattern in FILES for f in run.folder.glob(pattern)):
                try:
                    os.link(file, place / file.name)
                except OSError:  # file systems without hard links
                    shutil.copyfile(file, place / file.name)
    return folder


def _paper(plan: Plan) -> dict | None:
    """The paper's table in the report's words: its numbers by the variant of our run."""
    if plan.table is None:
        return None
    variants = {run.name: f"{run.setup.config.system}/{run.setup.config.variant()}" for run in plan.reported}
    names = {variants[row.name]: row.name for row in plan.rows}
    return {"title": _title(plan), "rows": {variants[row.name]: row.paper for row in plan.rows}, "names": names}


def _title(plan: Plan) -> str:
    if plan.table is None:
        return plan.config.system
    return plan.table.title + (f" (the paper: {plan.table.published})" if plan.table.published else "")
