"""From finished runs to the table that was asked for."""

from pathlib import Path

import pandas as pd

from speechbrain_ser.crossval.plan import Plan, Run
from speechbrain_ser.evaluation.metrics import metrics
from speechbrain_ser.files import write_csv
from speechbrain_ser.results import SELECTION_NAMES

FIGURES = ("WA", "UA", "WER")


def report_folder(plan: Plan, name: str) -> Path:
    """Where the report goes, beside the runs."""
    plain = plan.config.plain
    return Path(plain["results_folder"]) / "reports" / f"{name}-{plain['corpus']}-{plain['protocol']}"


def make_report(plan: Plan, name: str) -> str:
    """Pooled figures of every row and selection, the paper's own beside them.

    Arguments
    ---------
    plan : Plan
        Its finished runs are reported; a title line says which are missing.
    name : str
        Of the report's folder.

    Returns
    -------
    str
        What the console shows; the same goes to a CSV.
    """
    table = pooled_table(plan)
    folder = report_folder(plan, name)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(table, folder / "table.csv")
    shown = table.copy()
    for column in shown.columns.intersection([*FIGURES, *(f"paper {f}" for f in FIGURES), "paper speaker"]):
        shown[column] = [f"{v:.2%}" if pd.notna(v) else "" for v in shown[column]]
    text = shown.to_string(index=False) if len(shown) else "(nothing is finished)"
    return f"\n{_title(plan)}\n{text}\n\nreport: {folder}"


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


def _title(plan: Plan) -> str:
    plain, missing = plan.config.plain, [str(run) for run in plan.reported if not run.finished()]
    title = plan.table.title if plan.table else plan.config.system
    title += f" | {plain['corpus']}, protocol {plain['protocol']}"
    leaks = {run.setup.results()["leak"] for run in plan.reported if run.finished()} - {None}
    title += " (LEAKY: test speakers are trained on)" if leaks else ""
    if plan.table and plan.table.published:
        title += f"\nthe paper's own figures: {plan.table.published}"
    return title + (f"\nINCOMPLETE, {len(missing)} runs are missing: {'; '.join(missing)}" if missing else "")
