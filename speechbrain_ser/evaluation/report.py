"""A report of many runs, made from their files alone: it can be made again without training."""

import base64
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from speechbrain_ser.data.protocols import LINES
from speechbrain_ser.errors import Offenders, UserError, counted, nearest
from speechbrain_ser.evaluation import figures as draw
from speechbrain_ser.evaluation import tables as make
from speechbrain_ser.evaluation.calibration import coverage_curve, reliability_bins
from speechbrain_ser.evaluation.evaluated import Evaluation
from speechbrain_ser.evaluation.figures import save_figure
from speechbrain_ser.evaluation.metrics import FIGURES, SELECTIONS, metrics
from speechbrain_ser.evaluation.runs import (
    Run,
    Runs,
    check_same_tests,
    in_words_of_texts,
    items_of,
    load_runs,
    pooled,
    readable,
    stacked,
)
from speechbrain_ser.evaluation.tables import Table
from speechbrain_ser.files import write_csv, write_text

MEASURED = [metric for metric in draw.CURVES if metric != "loss"]
OF_VARIANTS = re.compile(
    r"((confusion|reliability)_\d+|second|words|groups|comparisons|calibration|abstention|coverage|curves_\w+)\.(csv|svg|pdf)"
)
LATEX_HEAD = "% needs \\usepackage{booktabs}; figures/*.pdf are the figures\n"
ON_CONSOLE = ("figures", "second", "comparisons", "selections", "texts", "words", "groups", "calibration")
PAGES = Environment(
    loader=PackageLoader("speechbrain_ser", "evaluation"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
# a heading's unit stays on the line of its figure; a variant's name may break after a comma or an equals sign
UNITS = "|".join(dict.fromkeys(re.escape(figure.unit) for figure in FIGURES.values()))
PAGES.filters["base64"] = lambda path: base64.b64encode(path.read_bytes()).decode()
PAGES.filters["unbroken"] = lambda heading: re.sub(rf" ({UNITS})(?!\w)", "\N{NO-BREAK SPACE}\\1", heading)
PAGES.filters["interval"] = lambda cell: re.sub(r"(?<=,) (?=[-+\d.]+\])", "\N{NO-BREAK SPACE}", cell)
PAGES.filters["breakable"] = lambda name: Markup("<wbr>").join(re.split("(?<=[,=])", name))


class Picture(NamedTuple):
    """A saved SVG and what it shows."""

    path: Path
    caption: str


@dataclass(frozen=True, eq=False)
class Report:
    """What a report says, and where."""

    title: str  # with what is leaky or missing in it
    tables: dict[str, Table]  # by name: figures, comparisons, selections, texts, calibration, …
    console: str  # the first tables as text
    folder: Path
    files: tuple[Path, ...]  # all of them; report.html first


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
    """
    runs = replace(load_runs(results_folder, allow_incomplete), names=(paper or {}).get("names", {}))
    rows = make.paper_rows(paper)
    place = {key: k for k, key in enumerate(rows)}
    runs = runs.sorted_by(lambda variant, name: place.get(make.paper_key(variant, name, rows), len(place)))
    selection = selection or runs.selection
    if lacking := [str(r) for r in runs.runs if selection not in r.predictions]:
        raise UserError(f"no predictions of selection '{selection}' in: {'; '.join(lacking[:20])}")
    if reference is not None and reference not in runs.variants:
        raise UserError(f"no variant '{reference}'{nearest(reference, runs.variants)}: {', '.join(runs.variants)}")
    title = _title(runs, (paper or {}).get("title"))
    tables = _tables(runs, selection, paper, reference)
    if runs.leak:  # wherever such a number appears
        tables = [replace(t, title=f"{t.title}, LEAKY PROTOCOL") for t in tables]
    folder, drawn = Path(out_folder or Path(results_folder) / "report"), _drawn(runs, selection)
    quiet = [t.name for t in tables if t.name not in ON_CONSOLE]
    report = write_report(title, _lead(runs), runs.leak, [], tables, drawn, folder, quiet)
    latex = [LATEX_HEAD + "% " + " ".join(title.split()), *(t.latex() for t in tables)]
    pictures = [save_figure(figure, folder / "figures" / f"{name}.pdf") for name, (figure, _) in drawn.items()]
    files = (*report.files, write_text("\n\n".join(latex) + "\n", folder / "report.tex"), *pictures)
    for path in {*folder.glob("*.csv"), *folder.glob("figures/*")} - set(files):
        if OF_VARIANTS.fullmatch(path.name):  # of an earlier report, that had more of them
            path.unlink()
    return replace(report, files=files)


def build_protocol_report(
    folders: Mapping[str, str | os.PathLike], out_folder: str | os.PathLike, paper: Mapping | None = None
) -> Report:
    """Make the report of the same variants under several protocols, by protocol the folder that holds their runs."""
    names = (paper or {}).get("names", {})
    loaded = {p: load_runs(f, allow_incomplete=True) for p, f in folders.items()}
    by_protocol = {p: replace(runs, names=_same_everywhere(runs, names)) for p, runs in loaded.items()}
    first = next(iter(by_protocol.values()))
    what = (paper or {}).get("title") or ", ".join(dict.fromkeys(r.metrics["system"] for r in first.runs))
    title = f"{what}: {first.corpus}, protocols {', '.join(by_protocol)}"
    tested = pooled(stacked(of, first.selection) for of in first.variants.values())  # every protocol tests them all
    (table,) = make.with_floor([make.protocol_table(by_protocol, first.selection)], tested, first.classes)
    lead = [f"{p}: {said}" for p, runs in by_protocol.items() for said in (*_missing(runs), *_texts_in_words(runs))]
    caption = "UA under each protocol, with 95 % intervals by speaker."
    return _report_of_one(title, lead, table, draw.plot_protocols(table.values, title), caption, Path(out_folder))


def _same_everywhere(runs: Runs, names: Mapping[str, str]) -> dict[str, str]:
    """Names of variants that do not tell the lines of their protocol (text_folds), which others do not have."""
    named = {_without_protocol(key): name for key, name in names.items()}
    keys = {key: _without_protocol(key) for key in ("/".join(run.variant) for run in runs.runs)}
    return {
        key: named.get(short, short.partition("/")[2]) for key, short in keys.items() if short in named or short != key
    }


def _without_protocol(key: str) -> str:
    system, _, variant = key.partition("/")
    return f"{system}/{items_of(variant, without=LINES) or 'default'}"


def build_corpora_report(
    cells: Mapping[tuple[str, str, str], pd.DataFrame],
    classes: Sequence[str],
    leaks: Mapping[tuple[str, str], str],
    out_folder: str | os.PathLike,
    title: str,
    lead: Sequence[str],
) -> Report:
    """Make the report of models of several corpora on each other: the arguments of :func:`make.corpora_table`."""
    lead = [*lead, *(f"LEAKY, trained on {a}, tested on {b}: {said}" for (a, b), said in leaks.items())]
    title += ". LEAKY" if leaks else ""
    table = make.corpora_table(cells, classes, leaks)
    caption = "UA by the corpus trained on and the corpus tested on, with 95 % intervals by speaker."
    return _report_of_one(title, lead, table, draw.plot_corpora(table.values, title), caption, Path(out_folder))


def _report_of_one(
    title: str, lead: Sequence[str], table: Table, picture: Figure, caption: str, folder: Path
) -> Report:
    shown = Picture(save_figure(picture, folder / f"{table.name}.svg"), caption)
    files = _write_page(title, lead, [], [table], [shown], folder)
    files += [shown.path, save_figure(picture, folder / f"{table.name}.png")]
    console = "\n\n".join([fill(title, 120), *lead, table.console()])
    return Report(title, {table.name: table}, console, folder, tuple(files))


def build_evaluation_report(evaluation: Evaluation, found: Mapping, out_folder: str | os.PathLike) -> Report:
    """Make the report of a model on a corpus, of what :func:`evaluation_figures` found."""
    title = evaluation.title
    tables = make.evaluation_tables(evaluation, found)
    by_way = {way: evaluation.scores(way) for way in evaluation.ways}
    bins = {way: reliability_bins(scores["confidence"], scores["right"]) for way, scores in by_way.items()}
    of_all, name = found["all"], fill(title, 60)
    head = f"{name}\nWA {of_all['WA']:.1%}, UA {of_all['UA']:.1%}"
    drawn = {
        "confusion": (
            draw.plot_confusion(of_all["confusion"], evaluation.classes, head),
            "Confusion matrix: utterances and share of the true class.",
        ),
        "reliability": (
            draw.plot_reliability(bins, name),
            "Reliability: share of the utterances that is right, by their largest posterior.",
        ),
    }
    return write_report(title, evaluation.notes, evaluation.leak, [], tables, drawn, out_folder, quiet=("confusion",))


def write_report(
    title: str,
    lead: Sequence[str],
    leak: str | None,
    warnings: Sequence[str],
    tables: Sequence[Table],
    drawn: Mapping[str, tuple[Figure, str]],
    out_folder: str | os.PathLike,
    quiet: Collection[str] = (),
) -> Report:
    """Write the page, its tables and pictures (figures and captions by name); `quiet` tables are not for a console.

    `leak` says what the model knows of what it was tested on.
    """
    folder = Path(out_folder)
    if leak:
        warnings = [f"LEAKY: {leak}. These figures say little about new speakers.", *warnings]
    pictures = [Picture(save_figure(f, folder / "figures" / f"{n}.svg"), caption) for n, (f, caption) in drawn.items()]
    written = _write_page(title, lead, warnings, tables, pictures, folder)
    shown = [t.console() for t in tables if t.name not in quiet]
    console = "\n\n".join([fill(title, 120), *warnings, *lead, *shown])
    return Report(title, {t.name: t for t in tables}, console, folder, (*written, *(p.path for p in pictures)))


def _missing(runs: Runs) -> list[str]:
    return [f"INCOMPLETE, missing: {'; '.join(runs.missing)}."] if runs.missing else []


def _title(runs: Runs, what: str | None) -> str:
    what = what or ", ".join(dict.fromkeys(r.metrics["system"] for r in runs.runs))
    done, folds = len({r.fold for r in runs.runs}), counted(len(runs.folds), "fold")
    folds = folds if done == len(runs.folds) else f"{done} of {folds}"
    seeds = f"seed{'s' * (len(runs.seeds) > 1)} {', '.join(map(str, runs.seeds))}"
    title = f"{what}: {runs.corpus}, protocol {runs.protocol}, {folds}, {seeds}"
    if runs.leak:
        title += ". LEAKY PROTOCOL"
    if runs.missing:
        title += f". INCOMPLETE, missing: {'; '.join(runs.missing)}"
    return title


def _lead(runs: Runs) -> list[str]:
    tested = {r.fold: r.predictions[runs.selection] for r in runs.runs}.values()  # the test part of each fold, once
    speakers = {s for r in runs.runs for s in stacked([r], runs.selection)["speaker"]}
    by = "unknown speakers" if "" in speakers else counted(len(speakers), "speaker")
    who = f"{counted(sum(map(len, tested)), 'test utterance')} of {by}"
    classes = f", {counted(len(runs.classes), 'class', 'classes')} ({', '.join(runs.classes)})" if runs.classes else ""
    lead = [f"{who}{classes}."]
    first = {name: of_variant[0].metrics for name, of_variant in runs.variants.items()}
    if runs.names:
        lines = {
            name: readable(items_of(m["variant"], without=runs.common), m["changed"]) or "default"
            for name, m in first.items()
        }
        lead.append("Variants: " + "; ".join(f"{name}: {line}" for name, line in lines.items()) + ".")
    if len({m["n_epochs"] for m in first.values()}) > 1:
        lead.append("Epochs of training: " + ", ".join(f"{name} {m['n_epochs']}" for name, m in first.items()) + ".")
    if len(first) > 1 and runs.common:
        lead.append("All variants: " + ", ".join(f"{k}={v}" for k, v in runs.common.items()) + ".")
    lead += runs.never_trained
    if not runs.leak:
        lead.append("No test speaker was in training.")
    return [*lead, *_texts_in_words(runs)]


def _texts_in_words(runs: Runs) -> list[str]:
    """What the texts tell, over all folds: counted in each run's test part."""
    found = [r.metrics["texts"] | {"n": r.metrics["utterances"]["test"]} for r in runs.runs if "texts" in r.metrics]
    known = sum(t["n"] * (t["known"] or 0) for t in found)
    heard = sum(t["n"] * (t["known"] or 0) * (t["heard"] or 0) for t in found)
    told = sum(t["n"] * (t["known"] or 0) * (t["heard"] or 0) * (t["told"] or 0) for t in found)
    if not (n := sum(t["n"] for t in found)):
        return []
    texts = {"known": known / n, "heard": heard / known if known else None, "told": told / heard if heard else None}
    said = in_words_of_texts(texts)
    return [f"{said[0].upper()}{said[1:]}."]


def _tables(runs: Runs, selection: str, paper: Mapping | None, reference: str | None) -> list[Table]:
    predictions = {name: stacked(of_variant, selection) for name, of_variant in runs.variants.items()}
    tables = [
        make.main_table(runs, selection, paper),
        make.second_table(runs, selection),
        make.comparison_table(predictions, runs.classes, selection, reference),
        make.selection_table(runs),
        make.text_table(runs, selection),
        make.words_table(runs, selection),
        make.group_table(predictions, runs.classes, selection),
        make.calibration_table(runs, selection),
        make.abstention_table(runs, selection),
        make.spread_table(runs, selection),
        make.fold_table(runs, selection),
        make.recall_table(runs, selection),
        *(make.confusion_table(runs, selection, name, k) for k, name in enumerate(runs.variants, 1) if runs.classes),
    ]
    return make.with_floor([table for table in tables if table is not None], pooled(predictions.values()), runs.classes)


def _drawn(runs: Runs, selection: str) -> dict[str, tuple[Figure, str]]:
    """Curves of all variants, a confusion matrix and a reliability diagram each, with captions."""
    where = f"{runs.corpus}, protocol {runs.protocol}{', LEAKY' if runs.leak else ''}"
    by = SELECTIONS[selection].words
    drawn: dict[str, tuple[Figure, str]] = {}
    part, curves = mean_curves(runs)
    confusions = [run.epochs[column][0] for run in runs.runs if (column := f"{part}_confusion") in run.epochs]
    floors = draw.floors(confusions) if confusions else {}
    for metric in (m for m in MEASURED if any(m in curve for curve in curves.values())):
        caption = (
            f"{metric} per epoch on the {part} part ({'to look at, not to choose by; ' * (part == 'test')}mean over "
            "folds and seeds; a run that stopped early keeps its last value)."
        )
        picture = draw.plot_variant_curves(curves, metric, part, where, floors.get(metric))
        drawn[f"curves_{metric}"] = (picture, caption)
    for k, (name, of_variant) in enumerate(runs.variants.items() if runs.classes else (), 1):
        found = metrics(stacked(of_variant, selection), runs.classes)
        title = f"{fill(name, 40)}\n{where}\n{by}: WA {found['WA']:.1%}, UA {found['UA']:.1%}"
        caption = f"Confusion matrix of {name} ({by}): utterances and share of the true class."
        drawn[f"confusion_{k}"] = (draw.plot_confusion(found["confusion"], runs.classes, title), caption)
    coverages = {}
    for k, (name, of_variant) in enumerate(runs.variants.items(), 1):
        if scores := make.scores_of(of_variant, selection, runs.classes):
            bins = {way: reliability_bins(each["confidence"], each["right"]) for way, each in scores.items()}
            caption = (
                f"Reliability of {name} ({by}): share of the test utterances that is right, by their largest posterior."
            )
            drawn[f"reliability_{k}"] = (draw.plot_reliability(bins, f"{fill(name, 60)}\n{where}\n{by}"), caption)
            coverages[name] = coverage_curve(list(scores.values())[-1])
    if coverages:
        caption = (
            f"Accuracy against coverage ({by}): of the test utterances with the largest posteriors, calibrated where "
            "there is a temperature, the share that is right. To look at, not to choose a threshold by."
        )
        drawn["coverage"] = (draw.plot_coverage(coverages, f"{where}\n{by}"), caption)
    return drawn


def mean_curves(runs: Runs) -> tuple[str, dict[str, pd.DataFrame]]:
    """Average WA, WER and MSE by epoch over folds and seeds, by variant.

    They, and their name first, are those of the test part where every run measured it, else of the validation part.
    """
    for part in ("test", "valid"):
        if all(f"{part}_WA" in r.epochs for r in runs.runs):
            return part, {name: _mean_curve(of_variant, part) for name, of_variant in runs.variants.items()}
    return "", {}


def _mean_curve(of_variant: Sequence[Run], part: str) -> pd.DataFrame:
    epochs = [r.epochs.set_index("epoch") for r in of_variant]
    measured = [m for m in MEASURED if all(f"{part}_{m}" in each for each in epochs)]
    return pd.DataFrame(
        {m: pd.concat([each[f"{part}_{m}"] for each in epochs], axis=1).ffill().mean(axis=1) for m in measured}
    )


def _write_page(
    title: str,
    lead: Sequence[str],
    warnings: Sequence[str],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    folder: Path,
) -> list[Path]:
    page = PAGES.get_template("report.html").render(
        title=title, lead=lead, warnings=warnings, tables=tables, pictures=pictures
    )
    images = [f"![{make.in_markdown(p.caption)}]({p.path.relative_to(folder).as_posix()})" for p in pictures]
    head, said, warned = map(make.in_markdown, (title, [*lead], [*warnings]))
    markdown = [f"# {head}", *(f"**{w}**" for w in warned), *said, *(t.markdown() for t in tables), *images]
    return [
        write_text(page, folder / "report.html"),
        write_text("\n\n".join(markdown) + "\n", folder / "report.md"),
        *(write_csv(t.values, folder / f"{t.name}.csv") for t in tables),
    ]


def compare_folders(
    first: str | os.PathLike,
    second: str | os.PathLike,
    out_folder: str | os.PathLike = "comparison",
    *,
    allow_incomplete: bool = False,
) -> Report:
    """Compare the variant in one folder with the variant in another.

    Both hold the runs of one variant, on the same corpus, protocol and classes; ``comparison.md``, ``comparison.tex``
    and ``comparisons.csv`` go into `out_folder`. With `allow_incomplete`, folds and seeds that both have are compared.
    """
    both = [load_runs(f, allow_incomplete) for f in (first, second)]
    for folder, variants in ((first, both[0].variants), (second, both[1].variants)):
        if len(variants) > 1:
            raise UserError(f"{folder} has {len(variants)} variants, name the folder of one: {', '.join(variants)}")
    problems = Offenders(f"{first} and {second}: no report can be made of this", UserError)
    check_same_tests(*both, problems, allow_incomplete)
    problems.raise_any()
    names = ["/".join(runs.runs[0].variant) for runs in both]
    if names[0] == names[1]:
        names = [f"A ({first})", f"B ({second})"]
    predictions = {n: stacked(r.runs, r.selection) for n, r in zip(names, both, strict=True)}
    table = make.comparison_table(predictions, both[0].classes, both[0].selection)
    title = f"{names[1]} against {names[0]}: {both[0].corpus}, protocol {both[0].protocol}"
    if leak := both[0].leak or both[1].leak:
        title += f". LEAKY PROTOCOL: {leak}"
    if missing := [*both[0].missing, *both[1].missing]:
        title += f". INCOMPLETE, missing: {'; '.join(missing)}"
    folder = Path(out_folder)
    files = (
        write_text(f"# {make.in_markdown(title)}\n\n{table.markdown()}\n", folder / "comparison.md"),
        write_text(f"% {' '.join(title.split())}\n{table.latex()}\n", folder / "comparison.tex"),
        write_csv(table.values, folder / "comparisons.csv"),
    )
    return Report(title, {table.name: table}, f"{title}\n\n{table.console()}", folder, files)
