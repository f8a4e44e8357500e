"""From finished runs to the report that was asked for."""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from speechbrain_ser.crossval.plan import Plan, Run
from speechbrain_ser.evaluation.metrics import metrics
from speechbrain_ser.files import write_csv
from speechbrain_ser.results import SELECTION_NAMES

FIGURES = ("WA", "UA", "WER")
FILES = ("metrics.json", "epochs.csv", "predictions*.csv")  # all that a report is made of


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
    build = _builder()
    text = build(runs, folder, _paper(plan), allow_incomplete=True).console if build else _plain_report(plan, folder)
    return "\n".join(["", *lines, text, f"\nreport: {folder}{os.sep}"])


def _builder() -> Callable | None:
    """The evaluation's report, where it is installed."""
    with contextlib.suppress(ImportError):
        from speechbrain_ser.evaluation.report import build_report

        return build_report
    return None


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
    variants = {run.name: run.setup.config.variant() for run in plan.reported}
    return {"title": _title(plan), "rows": {variants[row.name]: row.paper for row in plan.rows if row.paper}}


def _title(plan: Plan) -> str:
    if plan.table is None:
        return plan.config.system
    return plan.table.title + (f" (the paper: {plan.table.published})" if plan.table.published else "")


# ------------------------------------------------------------------ without the evaluation's report


def _plain_report(plan: Plan, folder: Path) -> str:
    table = pooled_table(plan)
    write_csv(table, folder / "table.csv")
    leaky = {run.setup.results()["leak"] for run in plan.reported if run.finished()} - {None}
    title = f"{_title(plan)}: {plan.config.plain['corpus']}, protocol {plan.config.plain['protocol']}"
    for column in table.columns.intersection([*FIGURES, *(f"paper {f}" for f in (*FIGURES, "speaker"))]):
        table[column] = [f"{v:.2%}" if pd.notna(v) else "" for v in table[column]]
    return "\n".join([title + " (LEAKY: test speakers are trained on)" * bool(leaky), table.to_string(index=False)])


def pooled_table(plan: Plan) -> pd.DataFrame:
    """A row for each variant and selection; predictions pooled over folds and seeds."""
    rows = []
    for row in plan.rows:
        runs = [run for run in plan.reported if run.name == row.name and run.finished()]
        for selection in _selections(runs):
            predictions = pd.concat([_predictions(run, selection) for run in runs], ignore_index=True)
            figures = metrics(predictions, runs[0].setup.classes)
            rows.append(
                {"variant": row.name, "selection": SELECTION_NAMES[selection], "runs": len(runs), "n": len(predictions)}
                | {f: figures[f] for f in FIGURES if f in figures}
                | {f"paper {figure}": value for figure, value in row.paper.items()}
            )
    return pd.DataFrame(rows)


def _selections(runs: list[Run]) -> list[str]:
    """Those that every run has."""
    found = [set(run.setup.results()["selections"]) for run in runs]
    return [s for s in SELECTION_NAMES if found and all(s in of_run for of_run in found)]


def _predictions(run: Run, selection: str) -> pd.DataFrame:
    suffix = "" if selection == run.setup.config.plain["selection"] else f"_{selection}"
    return pd.read_csv(
        run.folder / f"predictions{suffix}.csv", dtype={"ID": str, "speaker": str}, keep_default_na=False
    )
