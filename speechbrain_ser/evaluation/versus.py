"""Two result folders, each of one variant, compared on the same utterances."""

import os
from pathlib import Path

from speechbrain_ser.errors import UserError
from speechbrain_ser.evaluation.report import Report
from speechbrain_ser.evaluation.runs import Problems, Runs, check_same_tests, load_runs, stacked
from speechbrain_ser.evaluation.table import Table
from speechbrain_ser.evaluation.tables import comparison_table
from speechbrain_ser.files import write_csv, write_text


def compare_folders(
    first: str | os.PathLike,
    second: str | os.PathLike,
    out_folder: str | os.PathLike = "comparison",
    *,
    allow_incomplete: bool = False,
) -> Report:
    """Compare the variant in one folder with the variant in another.

    Arguments
    ---------
    first, second : str or path
        Result folders, each with the runs of one variant; both of the same corpus, protocol and classes.
    out_folder : str or path
        Where ``comparison.md``, ``comparison.tex`` and ``comparisons.csv`` go.
    allow_incomplete : bool
        Compare the folds and seeds that both have finished.

    Returns
    -------
    Report

    Raises
    ------
    UserError
        If a folder has several variants, or the two were not tested on the same utterances.
    """
    both = [load_runs(f, allow_incomplete) for f in (first, second)]
    for folder, runs in zip((first, second), both, strict=True):
        if len(runs.variants) > 1:
            raise UserError(
                f"{folder} has {len(runs.variants)} variants, name the folder of one: {', '.join(runs.variants)}"
            )
    problems = Problems(f"{first} and {second}")
    check_same_tests(*both, problems, allow_incomplete)
    problems.raise_any()
    selection = both[0].selection
    names = _names(*both, first, second)
    predictions = {n: stacked(r.runs, selection) for n, r in zip(names, both, strict=True)}
    table = comparison_table(predictions, both[0].classes, selection)
    title = f"{names[1]} against {names[0]}: {both[0].corpus}, protocol {both[0].protocol}"
    if leak := both[0].leak or both[1].leak:
        title += f". LEAKY PROTOCOL: {leak}"
    if missing := [*both[0].missing, *both[1].missing]:
        title += f". INCOMPLETE, missing: {'; '.join(missing)}"
    return _write(title, table, Path(out_folder))


def _names(a: Runs, b: Runs, first, second) -> tuple[str, str]:
    """The variants' names where they tell the two apart, else the folders'."""
    names = tuple("/".join(r.runs[0].variant) for r in (a, b))
    return names if names[0] != names[1] else (f"A ({first})", f"B ({second})")


def _write(title: str, table: Table, folder: Path) -> Report:
    folder.mkdir(parents=True, exist_ok=True)
    files = (
        write_text(f"# {title}\n\n{table.markdown()}\n", folder / "comparison.md"),
        write_text(f"% {title}\n{table.latex()}\n", folder / "comparison.tex"),
        write_csv(table.values, folder / "comparisons.csv"),
    )
    return Report(title, {table.name: table}, f"{title}\n\n{table.console()}", folder, files)
