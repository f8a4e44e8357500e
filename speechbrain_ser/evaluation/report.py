"""A report of many runs, made from their files alone: it can be made again without training."""

import base64
import html
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from textwrap import fill

import pandas as pd

from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.evaluation import tables as make
from speechbrain_ser.evaluation.calibration import coverage_curve, reliability_bins
from speechbrain_ser.evaluation.figures import (
    CURVES,
    plot_confusion,
    plot_coverage,
    plot_reliability,
    plot_variant_curves,
    save_figure,
)
from speechbrain_ser.evaluation.metrics import metrics
from speechbrain_ser.evaluation.runs import (
    Problems,
    Run,
    Runs,
    check_same_tests,
    items_of,
    load_runs,
    stacked,
)
from speechbrain_ser.evaluation.tables import Table, abstention_table, calibration_table, comparison_table, scores_of
from speechbrain_ser.files import write_csv, write_text


@dataclass(frozen=True)
class Picture:
    """A saved SVG and what it shows."""

    path: Path
    caption: str

    def html(self) -> str:
        """The figure, inlined: as an image, so that two SVGs cannot share IDs."""
        content = base64.b64encode(self.path.read_bytes()).decode()
        caption = html.escape(self.caption)
        return (
            f'<figure><img src="data:image/svg+xml;base64,{content}" alt="{caption}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem 1.25rem 4rem; background: #fff; color: #1c1c1c;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 1rem 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; overflow-wrap: anywhere; }
p { max-width: 46rem; margin: .4rem 0; overflow-wrap: anywhere; }
section p { color: #4a4a4a; font-size: .9rem; }
.warning { border-left: 4px solid #b3261e; background: #fdf3f2; padding: .5rem .75rem; color: #7a1710; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem;
  border-top: 2px solid #1c1c1c; border-bottom: 2px solid #1c1c1c; }
thead th { border-bottom: 1px solid #1c1c1c; vertical-align: bottom; max-width: 9rem; font-weight: 600; }
td, th { padding: .3rem .7rem; text-align: right; white-space: nowrap; }
thead th { white-space: normal; }
th:first-child { text-align: left; position: sticky; left: 0; background: #fff; padding-left: 0; }
tbody th { font-weight: 400; white-space: normal; }
tbody th div { width: max-content; max-width: 18rem; overflow-wrap: break-word; }
tbody tr:nth-child(even) :is(td, th) { background: #f6f7f9; }
.figures { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { color: #4a4a4a; font-size: .9rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  body { padding: .5rem .9rem 3rem; }
  h1 { font-size: 1.25rem; }
  tbody th div { max-width: 8.5rem; }
  td, th { padding: .3rem .5rem; }
}
</style>
</head>
<body>
<h1>$title</h1>
$lead
$body
</body>
</html>
""")


def render_page(
    title: str, lead: Sequence[str], warnings: Sequence[str], tables: Sequence[Table], pictures: Sequence[Picture]
) -> str:
    """The whole page.

    Arguments
    ---------
    title : str
        Its first line.
    lead : sequence of str
        Paragraphs below it.
    warnings : sequence of str
        What leaks, what is missing: before everything else.
    tables : sequence of Table
        In their order.
    pictures : sequence of Picture
        Shown after the first table.

    Returns
    -------
    str
        HTML without any reference to another file.
    """
    opening = [f'<p class="warning">{html.escape(w)}</p>' for w in warnings] + [
        f"<p>{html.escape(p)}</p>" for p in lead
    ]
    figures = '<h2>Figures</h2>\n<div class="figures">\n' + "\n".join(p.html() for p in pictures) + "\n</div>"
    sections = [t.html() for t in tables]
    body = "\n".join([*sections[:2], figures if pictures else "", *sections[2:]])
    return PAGE.substitute(title=html.escape(title), lead="\n".join(opening), body=body)


MEASURED = [metric for metric in CURVES if metric != "loss"]


LATEX_HEAD = "% needs \\usepackage{booktabs}; figures/*.pdf are the figures\n"


@dataclass(frozen=True, eq=False)
class Report:
    """What a report says, and where.

    Attributes
    ----------
    title : str
        With what is leaky or missing in it.
    tables : dict of str to Table
        By name: figures, comparisons, selections, texts, calibration, abstention, spread, folds, recall,
        confusion_1, …
    console : str
        The first tables as text.
    folder : pathlib.Path
        Where the files are.
    files : tuple of pathlib.Path
        All of them; ``report.html`` first.
    """

    title: str
    tables: dict[str, Table]
    console: str
    folder: Path
    files: tuple[Path, ...]


def build_report(
    results_folder: str | os.PathLike,
    out_folder: str | os.PathLike | None = None,
    paper: Mapping | None = None,
    *,
    allow_incomplete: bool = False,
    selection: str | None = None,
    reference: str | None = None,
) -> Report:
    """Make the report of every run below a folder.

    Arguments
    ---------
    results_folder : str or path
        Holds runs of one corpus, protocol and label set.
    out_folder : str or path, optional
        Where the files go; ``<results_folder>/report`` by default.
    paper : mapping, optional
        The paper's own table: ``title``, ``columns`` (such as [WA, WER]) and ``rows``, which maps a variant
        (``default``, ``alpha=0``) to its numbers, a list in the columns' order or a mapping; shares between 0 and 1
        (MSE: as it is, such as 5.3e-4). ``names`` may map variants to what the table calls them.
    allow_incomplete : bool
        Report what has finished, the title naming what has not.
    selection : str, optional
        ``last``, ``valid`` or ``test`` (oracle): whose figures come first; the configured one by default.
    reference : str, optional
        Compare each variant with this one instead of all pairs.

    Returns
    -------
    Report

    Raises
    ------
    UserError
        If the runs cannot be averaged honestly; the message names why.
    """
    runs = replace(load_runs(results_folder, allow_incomplete), names=(paper or {}).get("names", {}))
    rows = make.paper_rows(paper)
    runs = runs.in_order_of(list(rows), lambda variant, name: make.paper_key(variant, name, rows))
    selection = _known_selection(runs, selection)
    if reference is not None and reference not in runs.variants:
        raise UserError(f"no variant '{reference}'{nearest(reference, runs.variants)}: {', '.join(runs.variants)}")
    title = _title(runs, paper)
    tables = {t.name: t for t in _tables(runs, selection, paper, reference)}
    if runs.leak:  # wherever such a number appears
        tables = {n: replace(t, title=f"{t.title}, LEAKY PROTOCOL") for n, t in tables.items()}
    folder = Path(out_folder or Path(results_folder) / "report")
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    pictures = _pictures(runs, selection, folder / "figures")
    written = _write(title, runs, list(tables.values()), pictures, folder)
    shown = ("figures", "second", "comparisons", "selections", "texts", "calibration")
    console = "\n\n".join([fill(title, 120), *_lead(runs), *(tables[n].console() for n in shown if n in tables)])
    return Report(title, tables, console, folder, tuple(written))


def _known_selection(runs: Runs, selection: str | None) -> str:
    selection = selection or runs.selection
    if lacking := [str(r) for r in runs.runs if selection not in r.predictions]:
        raise UserError(f"no predictions of selection '{selection}' in: {'; '.join(lacking[:20])}")
    return selection


def _title(runs: Runs, paper: Mapping | None) -> str:
    """What, on what, and first of all what is wrong with it."""
    systems = ", ".join(dict.fromkeys(r.metrics["system"] for r in runs.runs))
    done = len({r.fold for r in runs.runs})
    folds = f"{len(runs.folds)} folds" if done == len(runs.folds) else f"{done} of {len(runs.folds)} folds"
    seeds = f"seed{'s' * (len(runs.seeds) > 1)} {', '.join(map(str, runs.seeds))}"
    what = (paper or {}).get("title") or systems
    title = f"{what}: {runs.corpus}, protocol {runs.protocol}, {folds}, {seeds}"
    if runs.leak:
        title += ". LEAKY PROTOCOL"
    if runs.missing:
        title += f". INCOMPLETE, missing: {'; '.join(runs.missing)}"
    return title


def _lead(runs: Runs) -> list[str]:
    speakers = {s for r in runs.runs for s in stacked([r], r.metrics["selection"])["speaker"]}
    tested = f"{sum(len(f) for f in _tests(runs))} test utterances"
    lead = [f"{tested} of {len(speakers)} speakers, {len(runs.classes)} classes ({', '.join(runs.classes)})."]
    told = {name: of_variant[0].metrics["variant"] for name, of_variant in runs.variants.items()}
    if runs.names:
        lines = {name: items_of(variant, without=runs.common) or "default" for name, variant in told.items()}
        lead.append("Variants: " + "; ".join(f"{name}: {line}" for name, line in lines.items()) + ".")
    epochs = {name: of_variant[0].metrics["n_epochs"] for name, of_variant in runs.variants.items()}
    if len(set(epochs.values())) > 1:
        lead.append("Epochs of training: " + ", ".join(f"{name} {n}" for name, n in epochs.items()) + ".")
    if len(runs.variants) > 1 and runs.common:
        lead.append("All variants: " + ", ".join(f"{k}={v}" for k, v in runs.common.items()) + ".")
    if not runs.leak:
        lead.append("No test speaker was in training.")
    return lead


def _tests(runs: Runs) -> list[pd.DataFrame]:
    """The test part of each fold, once."""
    return list({r.fold: r.predictions[r.metrics["selection"]] for r in runs.runs}.values())


def _warnings(runs: Runs) -> list[str]:
    warnings = []
    if runs.leak:
        warnings.append(f"LEAKY PROTOCOL: {runs.leak}. These figures say little about new speakers.")
    return warnings


def _tables(runs: Runs, selection: str, paper: Mapping | None, reference: str | None) -> list[Table]:
    predictions = {name: stacked(of_variant, selection) for name, of_variant in runs.variants.items()}
    return [
        make.main_table(runs, selection, paper),
        *filter(None, [make.second_table(runs, selection)]),
        *([make.comparison_table(predictions, runs.classes, selection, reference)] if len(predictions) > 1 else []),
        make.selection_table(runs),
        make.text_table(runs, selection),
        *filter(None, [calibration_table(runs, selection), abstention_table(runs, selection)]),
        make.spread_table(runs, selection),
        make.fold_table(runs, selection),
        make.recall_table(runs, selection),
        *(make.confusion_table(runs, selection, name, k) for k, name in enumerate(runs.variants, 1)),
    ]


def _pictures(runs: Runs, selection: str, folder: Path) -> list[Picture]:
    """Curves of all variants, a confusion matrix and a reliability diagram each: SVG for the page, PDF for papers."""
    where = f"{runs.corpus}, protocol {runs.protocol}{', LEAKY' if runs.leak else ''}"
    figures = {}
    part, curves = mean_curves(runs)
    if curves:
        measured = [m for m in MEASURED if any(m in c for c in curves.values())]
        for metric in measured:
            caption = (
                f"{metric} per epoch on the {part} part ({'to look at, not to choose by; ' * (part == 'test')}mean "
                "over folds and seeds; a run that stopped early keeps its last value)."
            )
            figures[f"curves_{metric}"] = (plot_variant_curves(curves, metric, part, where), caption)
    for k, (name, of_variant) in enumerate(runs.variants.items(), 1):
        found = metrics(stacked(of_variant, selection), runs.classes)
        by = make.SELECTED_BY[selection]
        title = f"{fill(name, 40)}\n{where}\n{by}: WA {found['WA']:.1%}, UA {found['UA']:.1%}"
        caption = f"Confusion matrix of {name} ({by}): utterances and share of the true class."
        figures[f"confusion_{k}"] = (plot_confusion(found["confusion"], runs.classes, title), caption)
    figures |= _calibration_figures(runs, selection, where)
    for name, (figure, _) in figures.items():
        save_figure(figure, folder / f"{name}.pdf")
    return [Picture(save_figure(f, folder / f"{name}.svg"), caption) for name, (f, caption) in figures.items()]


def _calibration_figures(runs: Runs, selection: str, where: str) -> dict:
    """A reliability diagram a variant; for all together, what keeping silent gives."""
    figures, curves, by = {}, {}, make.SELECTED_BY[selection]
    for k, (name, of_variant) in enumerate(runs.variants.items(), 1):
        scores = scores_of(of_variant, selection, runs.classes)
        if not scores:
            continue
        bins = {way: reliability_bins(each["confidence"], each["right"]) for way, each in scores.items()}
        caption = (
            f"Reliability of {name} ({by}): share of the test utterances that is right, by their largest posterior."
        )
        figures[f"reliability_{k}"] = (plot_reliability(bins, f"{fill(name, 60)}\n{where}\n{by}"), caption)
        curves[name] = coverage_curve(list(scores.values())[-1])
    if curves:
        caption = (
            f"Accuracy against coverage ({by}): of the test utterances with the largest posteriors, calibrated where "
            "there is a temperature, the share that is right. To look at, not to choose a threshold by."
        )
        figures["coverage"] = (plot_coverage(curves, f"{where}\n{by}"), caption)
    return figures


def mean_curves(runs: Runs) -> tuple[str, dict[str, pd.DataFrame]]:
    """WA, WER and MSE by epoch, mean over folds and seeds, of the test part where every run measured it, else valid.

    Arguments
    ---------
    runs : Runs
        Checked.

    Returns
    -------
    tuple
        The part's name, and a table by variant.
    """
    for part in ("test", "valid"):
        if all(f"{part}_WA" in r.epochs for r in runs.runs):
            return part, {name: _mean_curve(of_variant, part) for name, of_variant in runs.variants.items()}
    return "", {}


def _mean_curve(of_variant: Sequence[Run], part: str) -> pd.DataFrame:
    curves = {}
    for metric in MEASURED:
        column = f"{part}_{metric}"
        if all(column in r.epochs for r in of_variant):
            each = pd.concat([r.epochs.set_index("epoch")[column] for r in of_variant], axis=1)
            curves[metric] = each.ffill().mean(axis=1)
    return pd.DataFrame(curves)


def _write(title: str, runs: Runs, tables: list[Table], pictures: list[Picture], folder: Path) -> list[Path]:
    lead, warnings = _lead(runs), _warnings(runs)
    images = [f"![{p.caption}](figures/{p.path.name})" for p in pictures]
    markdown = [f"# {title}", *(f"**{w}**" for w in warnings), *lead, *(t.markdown() for t in tables), *images]
    latex = [LATEX_HEAD + "% " + title, *(t.latex() for t in tables)]
    written = [
        write_text(render_page(title, lead, warnings, tables, pictures), folder / "report.html"),
        write_text("\n\n".join(markdown) + "\n", folder / "report.md"),
        write_text("\n\n".join(latex) + "\n", folder / "report.tex"),
    ]
    _sweep(folder, tables, pictures)
    written += [write_csv(t.values, folder / f"{t.name}.csv") for t in tables]
    return [*written, *(p.path for p in pictures), *(p.path.with_suffix(".pdf") for p in pictures)]


def _sweep(folder: Path, tables: Sequence[Table], pictures: Sequence[Picture]) -> None:
    """Files of an earlier report that had more variants."""
    kept = {f"{t.name}.csv" for t in tables} | {f"{p.path.stem}{s}" for p in pictures for s in (".svg", ".pdf")}
    ours = re.compile(
        r"((confusion|reliability)_\d+|second|comparisons|calibration|abstention|coverage|curves_\w+)\.(csv|svg|pdf)"
    )
    for path in [*folder.glob("*.csv"), *folder.glob("figures/*")]:
        if ours.fullmatch(path.name) and path.name not in kept:
            path.unlink()


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
    return _write_versus(title, table, Path(out_folder))


def _names(a: Runs, b: Runs, first, second) -> tuple[str, str]:
    """The variants' names where they tell the two apart, else the folders'."""
    names = tuple("/".join(r.runs[0].variant) for r in (a, b))
    return names if names[0] != names[1] else (f"A ({first})", f"B ({second})")


def _write_versus(title: str, table: Table, folder: Path) -> Report:
    folder.mkdir(parents=True, exist_ok=True)
    files = (
        write_text(f"# {title}\n\n{table.markdown()}\n", folder / "comparison.md"),
        write_text(f"% {title}\n{table.latex()}\n", folder / "comparison.tex"),
        write_csv(table.values, folder / "comparisons.csv"),
    )
    return Report(title, {table.name: table}, f"{title}\n\n{table.console()}", folder, files)
