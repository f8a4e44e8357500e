"""The tables of a report, from checked runs, each written four ways: console, Markdown, LaTeX, HTML."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

from speechbrain_ser.evaluation.calibration import (
    BINS,
    abstention,
    calibration_figures,
    chance_error,
    utterance_scores,
    with_temperature,
)
from speechbrain_ser.evaluation.compare import (
    FIGURES,
    Difference,
    compare_predictions,
    holm,
)
from speechbrain_ser.evaluation.intervals import (
    SCALES,
    Interval,
    estimate,
    ratio_sums,
    speaker_interval,
    speaker_sums,
)
from speechbrain_ser.evaluation.metrics import metrics
from speechbrain_ser.evaluation.runs import (
    Run,
    Runs,
    items_of,
    selections_of,
    stacked,
)

NONE = "none"  # nothing to measure there


ABSENT = "-"  # the variant has no such head


ORACLE = "ORACLE/leaky"


class Unit(NamedTuple):
    """What a figure is printed in, with one decimal.

    Arguments
    ---------
    symbol : str
        Behind the figure's name, above its column.
    per_one : float
        How many of it make 1.

    Example
    -------
    >>> share, error = Unit("%", 100), Unit("e-4", 1e4)
    >>> share.text(0.78154), error.text(5.34e-4), share.text(None)
    ('78.2', '5.3', 'none')
    >>> share.change(0.034), error.change(-2e-5), share.change(-0.0001)
    ('+3.4', '-0.2', '0.0')
    """

    symbol: str
    per_one: float

    def text(self, value: float | None) -> str:
        """A value; 'none' where there is nothing to measure."""
        return NONE if value is None or pd.isna(value) else f"{self.per_one * value:.1f}"

    def change(self, value: float) -> str:
        """A difference of two values, signed."""
        text = f"{self.per_one * value:+.1f}"
        return "0.0" if float(text) == 0 else text


PERCENT = Unit("%", 100)


UNITS = {"MSE": Unit("e-4", 1e4)}  # every other figure is a share, or a rate like one


SYMBOLS = tuple(unit.symbol for unit in (PERCENT, *UNITS.values()))


def unit_of(figure: str) -> Unit:
    """The unit of a figure.

    Example
    -------
    >>> unit_of("MSE").symbol, unit_of("WER").symbol
    ('e-4', '%')
    """
    return UNITS.get(figure, PERCENT)


def heading(figure: str) -> str:
    """A figure's name with its unit.

    Example
    -------
    >>> heading("WA"), heading("MSE")
    ('WA %', 'MSE e-4')
    """
    return f"{figure} {unit_of(figure).symbol}"


def with_interval(value: str, ends: Sequence[str] | None) -> str:
    """A figure and its interval.

    Example
    -------
    >>> with_interval("78.2", ("71.0", "83.9")), with_interval("78.2", None)
    ('78.2 [71.0, 83.9]', '78.2')
    """
    return value if ends is None else f"{value} [{', '.join(ends)}]"


def marked(text: str, selection: str) -> str:
    """A number that the test part chose says so.

    Example
    -------
    >>> marked("78.2", "test"), marked("78.2", "last"), marked("none", "test")
    ('78.2 ORACLE/leaky', '78.2', 'none')
    """
    return f"{text} {ORACLE}" if selection == "test" and text not in (ABSENT, NONE) else text


def p_value(p: float | None) -> str:
    """A p-value.

    Example
    -------
    >>> p_value(0.0312), p_value(0.00001), p_value(None)
    ('0.031', '<0.001', 'none')
    """
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


@dataclass(frozen=True, eq=False)
class Table:
    """What a report prints, and the numbers in full.

    Attributes
    ----------
    name : str
        Of its CSV file.
    title : str
        Above it.
    text : pandas.DataFrame
        Strings, as printed; the first column names the row.
    values : pandas.DataFrame
        The same figures in full, whatever their printed unit: shares between 0 and 1.
    notes : tuple of str
        What a reader must know, below it.
    """

    name: str
    title: str
    text: pd.DataFrame
    values: pd.DataFrame
    notes: tuple[str, ...] = field(default=())

    def console(self) -> str:
        """Aligned columns of plain text."""
        columns = [[str(c), *map(str, self.text[c])] for c in self.text]
        widths = [max(map(len, c)) for c in columns]
        is_first = [True] + [False] * (len(columns) - 1)
        lines = [
            "  ".join(v.ljust(w) if f else v.rjust(w) for v, w, f in zip(row, widths, is_first, strict=True)).rstrip()
            for row in zip(*columns, strict=True)
        ]
        rule = "-" * max(map(len, lines))
        return "\n".join([self.title, rule, lines[0], rule, *lines[1:], rule, *self.notes])

    def markdown(self) -> str:
        """A pipe table under a heading."""
        rows = [list(self.text), ["---"] + ["---:"] * (self.text.shape[1] - 1), *self.text.to_numpy().tolist()]
        lines = ["| " + " | ".join(str(v).replace("|", "\\|") for v in row) + " |" for row in rows]
        return "\n".join([f"## {self.title}", "", *lines, *(f"\n{note}" for note in self.notes)])

    def latex(self) -> str:
        """A booktabs table with a caption."""
        head, *rows = (" & ".join(map(escape_latex, row)) + r" \\" for row in [list(self.text), *self.text.to_numpy()])
        return "\n".join(
            [
                r"\begin{table}[ht]",
                r"\centering",
                rf"\caption{{{escape_latex('. '.join([self.title, *(n.rstrip('.') for n in self.notes)]))}.}}",
                rf"\label{{tab:{self.name}}}",
                rf"\begin{{tabular}}{{l{'r' * (self.text.shape[1] - 1)}}}",
                r"\toprule",
                head,
                r"\midrule",
                *rows,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
            ]
        )

    def html(self) -> str:
        """A section with a heading; the table scrolls sideways where the screen is narrow."""
        head = "".join(f'<th scope="col">{_unbroken(html.escape(str(c)))}</th>' for c in self.text)
        rows = "\n".join(
            f'<tr><th scope="row"><div>{_breakable(html.escape(str(first)))}</div></th>'
            + "".join(f"<td>{html.escape(str(v))}</td>" for v in rest)
            + "</tr>"
            for first, *rest in self.text.to_numpy().tolist()
        )
        notes = "\n".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return (
            f'<section id="{self.name}">\n<h2>{html.escape(self.title)}</h2>\n'
            f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n'
            f"<tbody>\n{rows}\n</tbody>\n</table></div>\n{notes}\n</section>"
        )


def _unbroken(heading: str) -> str:
    """A column's heading whose unit stays on the line of its figure."""
    return re.sub(rf" ({'|'.join(map(re.escape, SYMBOLS))})(?!\w)", r"&nbsp;\1", heading)


def _breakable(name: str) -> str:
    """A variant's name that may break after a comma or an equals sign."""
    return name.replace(",", ",<wbr>").replace("=", "=<wbr>")


LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


LATEX |= {c: rf"\{c}" for c in "&%$#_{}"} | {"±": r"$\pm$", "<": "$<$", ">": "$>$", "…": r"\ldots{}"}


def escape_latex(text: object) -> str:
    """Text for LaTeX.

    Example
    -------
    >>> escape_latex("alpha_0 & 5 %")
    'alpha\\\\_0 \\\\& 5 \\\\%'
    """
    escaped = re.sub("|".join(map(re.escape, LATEX)), lambda m: LATEX[m[0]], str(text))
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)  # a minus, not a hyphen


SELECTED_BY = {"last": "last epoch", "valid": "best on validation", "test": "ORACLE/leaky: best on TEST"}


SHOWN = ("WA", "UA", "WER", "MSE")  # F1 stands in few tables


def figures_of(predictions: pd.DataFrame, classes: Sequence[str]) -> dict:
    """Figures and their intervals of some predictions.

    Arguments
    ---------
    predictions : pandas.DataFrame
        Of one variant, folds and seeds stacked: WA is correct / all of them (Cai et al. 2021, eq. 4).
    classes : sequence of str
        All classes.

    Returns
    -------
    dict
        n, WA, UA, F1, recall, confusion, WER and MSE where there are such, and ``WA_low``, ``WA_high``, … (None without
        a second speaker).
    """
    found = metrics(predictions, classes)
    for name, sums in speaker_sums(predictions, classes).items():
        if found.get(name) is not None:
            found |= _ends(name, speaker_interval(sums, SCALES[name]))
    return found


def speaker_figures(runs: Sequence[Run]) -> dict:
    """Speaker accuracy on `seen`, pooled over folds and seeds; empty without a speaker head."""
    if runs[0].seen is None:
        return {}
    seen = pd.concat([r.seen for r in runs], ignore_index=True)
    sums = ratio_sums(seen["speaker"], seen["speaker"] == seen["speaker_predicted"], np.ones(len(seen)))
    return {
        "speaker": float(estimate(sums)),
        "speaker_n": len(seen),
        **_ends("speaker", speaker_interval(sums, SCALES["speaker"])),
    }


def _ends(name: str, interval) -> dict:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _by(runs: Sequence[Run], selection: str, classes: Sequence[str], keys: list[str]) -> pd.DataFrame:
    """WA, UA, F1, WER, MSE and n of each fold, seed, or both."""
    rows = []
    for values, part in stacked(runs, selection).groupby(keys, sort=False):
        found = metrics(part, classes)
        rows.append({**dict(zip(keys, values, strict=True)), **{m: found.get(m) for m in ("n", *FIGURES)}})
    return pd.DataFrame(rows)


def _cell(found: Mapping, name: str) -> str:
    """A figure in its unit with its interval; a dash where the variant has no such head."""
    if name not in found:
        return ABSENT
    unit, low, high = unit_of(name), found.get(f"{name}_low"), found.get(f"{name}_high")
    return with_interval(unit.text(found[name]), None if low is None else (unit.text(low), unit.text(high)))


def _spread(values: pd.Series, unit: Unit) -> str:
    """Mean ± standard deviation."""
    values = values.dropna().astype(float)
    if values.empty:
        return ABSENT
    return unit.text(values.mean()) + (f" ± {unit.text(values.std(ddof=1))}" if len(values) > 1 else "")


def main_table(runs: Runs, selection: str, paper: Mapping | None = None) -> Table:
    """WA, UA, F1, WER, MSE and speaker accuracy of each variant, the paper's numbers beside them.

    Arguments
    ---------
    runs : Runs
        Checked.
    selection : str
        Which predictions.
    paper : mapping, optional
        ``columns`` and ``rows``, see :func:`speechbrain_ser.evaluation.report.build_report`.

    Returns
    -------
    Table
    """
    text, values = [], []
    papers = paper_rows(paper)
    keys, not_run = list(papers), dict(papers)
    for name, of_variant in runs.variants.items():
        predictions = stacked(of_variant, selection)
        found = figures_of(predictions, runs.classes) | speaker_figures(of_variant)
        found["share_text_heard"] = float(predictions["text_heard"].mean())
        per_fold = _by(of_variant, selection, runs.classes, ["fold", "seed"]).groupby("fold")["WER"]
        found["WER_fold_mean"] = _mean(per_fold.apply(_mean)) if "WER" in found else None
        row = {"variant": name, **{heading(m): marked(_cell(found, m), selection) for m in ("WA", "UA")}}
        row[heading("F1")] = marked(unit_of("F1").text(found["F1"]), selection)
        row[heading("WER")] = marked(_cell(found, "WER"), selection)
        fold_mean = unit_of("WER").text(found["WER_fold_mean"]) if "WER" in found else ABSENT
        row[f"{heading('WER')}, fold mean"] = marked(fold_mean, selection)
        row[heading("MSE")] = marked(_cell(found, "MSE"), selection)
        row["texts heard %"] = PERCENT.text(found["share_text_heard"])
        row["speaker acc. on seen %"] = _cell(found, "speaker")
        row["predictions"] = str(found["n"])
        key = paper_key("/".join(of_variant[0].variant), name, papers)
        theirs = papers.get(key, {})
        not_run.pop(key, None)
        text.append(row | _paper_text(theirs))
        label = {"variant": name, "selection": SELECTED_BY[selection], "speaker_disjoint": not runs.leak}
        values.append(label | _flat(found) | _paper_values(theirs))
    for key, theirs in not_run.items():  # at its place among those that were; runs are in the paper's order
        place = sum(k not in not_run for k in keys[: keys.index(key)]) + list(not_run).index(key)
        name = f"{runs.names.get(key, key)} (not run)"
        text.insert(place, {"variant": name} | _paper_text(theirs))
        values.insert(place, {"variant": name} | _paper_values(theirs))
    return Table(
        "figures",
        f"Results, {SELECTED_BY[selection]}",
        _without_empty(pd.DataFrame(text).fillna("")),
        pd.DataFrame(values),
        _main_notes(runs, values),
    )


def _main_notes(runs: Runs, values: Sequence[Mapping]) -> tuple[str, ...]:
    speakers = stacked(runs.runs[:1], runs.selection)["speaker"]
    notes = ["WA: correct / all utterances, pooled over folds (and seeds); UA: mean recall; F1: macro."]
    if (speakers == "").any():
        notes.append("Speakers are not known: no intervals.")
    else:
        notes.append("In brackets: 95 % intervals clustered by speaker (jackknife, Student's t).")
    if any("WER" in v for v in values):
        notes.append(
            "WER: pooled over words, and the mean of the folds'. Texts heard: share of the test utterances whose text "
            "is said in training; WER there is telling known sentences apart, see the text-disjoint part."
        )
    if any("MSE" in v for v in values):
        notes.append(
            "MSE: squared error of the reconstructed mel spectrogram (0 to 1), mean over an utterance's frames and "
            "bands, then over utterances; 5.0 e-4 is 0.0005."
        )
    if any("speaker" in v for v in values):
        notes.append("Speaker accuracy: on `seen`, held-out utterances of training speakers.")
    return tuple(notes)


def paper_rows(paper: Mapping | None) -> dict[str, dict[str, float]]:
    """The paper's own numbers by variant and column; a list stands for its columns in order.

    Example
    -------
    >>> paper_rows({"columns": ["WA", "WER"], "rows": {"alpha=0": [0.7166, 0.9981], "default": {"WA": 0.7815}}})
    {'alpha=0': {'WA': 0.7166, 'WER': 0.9981}, 'default': {'WA': 0.7815}}
    """
    if not paper:
        return {}
    columns = list(paper.get("columns", ()))
    return {
        str(key): dict(row) if isinstance(row, Mapping) else dict(zip(columns, row, strict=True))
        for key, row in paper["rows"].items()
    }


def paper_key(variant: str, name: str, rows: Mapping[str, Mapping]) -> str:
    """The paper's row of a variant: its system and name, its name, or its lines of the keys that the table sweeps.

    Example
    -------
    >>> paper_key("cai/alpha=0", "", {"cai/alpha=0": {}, "ha/alpha=0": {}})
    'cai/alpha=0'
    >>> rows = {"alpha=0": {}, "default": {}}
    >>> paper_key("alpha=0,encoder=tiny", "", rows), paper_key("encoder=tiny", "", rows)
    ('alpha=0', 'default')
    """
    swept = {item.split("=")[0] for key in rows for item in key.rpartition("/")[2].split(",") if "=" in item}
    of_system = variant.partition("/")[2] or variant
    candidates = (variant, of_system, name, items_of(of_system, only=swept) or "default")
    return next((c for c in candidates if c in rows), "")


def _paper_text(row: Mapping[str, float]) -> dict:
    return {f"paper {heading(c)}": unit_of(c).text(v) for c, v in row.items()}


def _paper_values(row: Mapping[str, float]) -> dict:
    return {f"paper_{c}": v for c, v in row.items()}


def second_table(runs: Runs, selection: str) -> Table | None:
    """Figures of each variant that was trained on a second corpus as well, on held-out utterances of that one.

    Arguments
    ---------
    runs : Runs
        Checked.
    selection : str
        Which predictions.

    Returns
    -------
    Table or None
        None where no variant has a second corpus.
    """
    text, values = [], []
    for name, of_variant in runs.variants.items():
        tested = [r for r in of_variant if r.second]  # a small second corpus is not held out of in every fold
        if not tested:
            continue
        found = figures_of(stacked(tested, selection, "second"), runs.classes)
        row = {"variant": name, "second corpus": tested[0].metrics["second_corpus"]}
        values.append(row | _flat(found))
        row |= {heading(m): marked(_cell(found, m), selection) for m in ("WA", "UA")}
        row[heading("F1")] = marked(unit_of("F1").text(found["F1"]), selection)
        text.append(row | {"predictions": str(found["n"])})
    if not text:
        return None
    note = "Its own held-out utterances, each tested in one fold at most; UA and F1 over the classes that it has."
    title = f"On the second corpus, {SELECTED_BY[selection]}"
    return Table("second", title, pd.DataFrame(text), pd.DataFrame(values), (note,))


def text_table(runs: Runs, selection: str) -> Table:
    """Figures on test utterances whose text was, and was not, heard in training."""
    text, values = [], []
    for name, of_variant in runs.variants.items():
        predictions = stacked(of_variant, selection)
        measured = metrics(predictions, runs.classes)
        for part, rows in _text_parts(predictions):
            label = {"variant": name, "texts": part, "predictions": str(len(rows))}
            if rows.empty:
                text.append(label | {heading(m): NONE if m in measured else ABSENT for m in SHOWN})
                values.append({"variant": name, "texts": part, "n": 0})
                continue
            found = figures_of(rows, runs.classes)
            text.append(label | {heading(m): marked(_cell(found, m), selection) for m in SHOWN})
            values.append({"variant": name, "texts": part} | _flat(found))
    notes = ("Text-disjoint: the test utterances whose text no training utterance says; 'none' where there is none.",)
    return Table("texts", "Text-disjoint part", _without_empty(pd.DataFrame(text)), pd.DataFrame(values), notes)


def _text_parts(predictions: pd.DataFrame):
    heard = predictions["text_heard"]
    return (("heard in training", predictions[heard]), ("text-disjoint", predictions[~heard]))


def selection_table(runs: Runs) -> Table:
    """What choosing an epoch costs: last, best on validation and the oracle side by side."""
    text, values = [], []
    for name, of_variant in runs.variants.items():
        found = {s: metrics(stacked(of_variant, s), runs.classes) for s in selections_of(of_variant)}
        for m in SHOWN:
            unit = unit_of(m)
            by_selection = {s: f[m] for s, f in found.items() if f.get(m) is not None}
            if not by_selection:
                continue
            row = {"variant": name, "figure": heading(m)}
            row |= {SELECTED_BY[s]: marked(unit.text(v), s) for s, v in by_selection.items()}
            if {"last", "test"} <= set(by_selection):
                row["choosing on test gains"] = unit.change(by_selection["test"] - by_selection["last"])
            text.append(row)
            values.append({"variant": name, "figure": m} | {_csv_selection(s): v for s, v in by_selection.items()})
    if len(runs.runs[0].predictions) == 1:
        note = "These runs kept one selection only; --test_every_epoch=True keeps all three."
    else:
        note = "The ORACLE/leaky column picks each fold's best epoch on the test part: no result of a system."
    return Table("selections", "Cost of selection", pd.DataFrame(text).fillna(ABSENT), pd.DataFrame(values), (note,))


def _csv_selection(selection: str) -> str:
    return "test_ORACLE_leaky" if selection == "test" else selection


def spread_table(runs: Runs, selection: str) -> Table:
    """Mean and standard deviation over folds, and over seeds."""
    text, values = [], []
    for name, of_variant in runs.variants.items():
        both = _by(of_variant, selection, runs.classes, ["fold", "seed"])
        spreads = {
            "folds": both.groupby("fold", sort=False)[list(FIGURES)].agg(_mean),
            "seeds": _by(of_variant, selection, runs.classes, ["seed"]),
        }
        for over, rows in spreads.items():
            label = {"variant": name, "over": f"{len(rows)} {over if len(rows) > 1 else over[:-1]}"}
            text.append(label | {heading(m): marked(_spread(rows[m], unit_of(m)), selection) for m in FIGURES})
            means = {f"{m}_mean": _mean(rows[m]) for m in FIGURES}
            sds = {f"{m}_sd": rows[m].dropna().astype(float).std(ddof=1) for m in FIGURES}
            values.append({"variant": name, "over": over, "number": len(rows)} | means | sds)
    notes = (
        "Mean ± standard deviation. Over folds: of the folds' figures, each the mean of its seeds. Over seeds: of the "
        "figures pooled over folds.",
    )
    return Table(
        "spread", "Spread over folds and seeds", _without_empty(pd.DataFrame(text)), pd.DataFrame(values), notes
    )


def fold_table(runs: Runs, selection: str) -> Table:
    """WA (and WER and MSE) of each fold, variants side by side, seeds averaged."""
    long = [
        _by(of_variant, selection, runs.classes, ["fold", "seed"]).assign(variant=name)
        for name, of_variant in runs.variants.items()
    ]
    values = pd.concat(long, ignore_index=True)[["variant", "fold", "seed", "n", *FIGURES]]
    text = []
    for fold in [f for f in runs.folds if f in set(values["fold"])]:
        here = values[values["fold"] == fold]
        row = {"fold": fold, "tested": str(here["n"].iloc[0])}
        for m in ("WA", "WER", "MSE"):
            for name in runs.variants:
                mean = _mean(here[m][here["variant"] == name])
                row[f"{heading(m)} {name}"] = ABSENT if mean is None else marked(unit_of(m).text(mean), selection)
        text.append(row)
    return Table("folds", "Folds", _without_empty(pd.DataFrame(text)), values)


def recall_table(runs: Runs, selection: str) -> Table:
    """Recall of each class."""
    text, values = [], []
    for name, of_variant in runs.variants.items():
        found = metrics(stacked(of_variant, selection), runs.classes)
        text.append({"variant": name} | {c: marked(PERCENT.text(v), selection) for c, v in found["recall"].items()})
        values.append({"variant": name} | found["recall"])
    return Table("recall", "Recall of each class, %", pd.DataFrame(text), pd.DataFrame(values))


def confusion_table(runs: Runs, selection: str, name: str, number: int) -> Table:
    """Counts and row shares of a variant."""
    counts = np.array(metrics(stacked(runs.variants[name], selection), runs.classes)["confusion"])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    text, values = [], []
    for k, true in enumerate(runs.classes):
        cells = {c: f"{counts[k, j]} ({PERCENT.text(shares[k, j])})" for j, c in enumerate(runs.classes)}
        text.append({"true \\ predicted": true} | cells | {"all": str(counts[k].sum())})
        for j, said in enumerate(runs.classes):
            values.append({"variant": name, "true": true, "predicted": said, "n": counts[k, j], "share": shares[k, j]})
    seeds = f", summed over {len(runs.seeds)} seeds" if len(runs.seeds) > 1 else ""
    title = f"Confusion, {name} ({SELECTED_BY[selection]}): utterances{seeds} (% of the row)"
    return Table(f"confusion_{number}", title, pd.DataFrame(text), pd.DataFrame(values))


def comparison_table(
    predictions: Mapping[str, pd.DataFrame], classes: Sequence[str], selection: str, reference: str | None = None
) -> Table:
    """Paired differences of variants on the same utterances, corrected for their number.

    Arguments
    ---------
    predictions : mapping of str to pandas.DataFrame
        Stacked predictions by variant.
    classes : sequence of str
        All classes.
    selection : str
        Which predictions these are.
    reference : str, optional
        Compare each variant to this one; by default all pairs.

    Returns
    -------
    Table
    """
    names = list(predictions)
    pairs = [(reference, n) for n in names if n != reference] if reference else list(combinations(names, 2))
    found = {(a, b): compare_predictions(predictions[a], predictions[b], classes) for a, b in pairs}
    values = [row for pair, f in found.items() for row in _comparison_rows(pair, f)]
    for column in ("p", "p_bootstrap", "p_mcnemar"):
        for figure in FIGURES:  # a family is the comparisons of one figure by one test
            rows = [r for r in values if r["figure"] == figure]
            for row, p in zip(rows, holm(r[column] for r in rows), strict=True):
                row[f"{column}_holm"] = p
    text = [_comparison_text(row, selection) for row in values if row["figure"] != "F1"]
    in_what = "in points (MSE: in 1e-4)" if any(r["figure"] == "MSE" for r in values) else "in points"
    notes = [
        f"Difference: second minus first, {in_what}, on the same utterances and seeds, with the 95 % interval and p of "
        "the jackknife by speaker. Bootstrap: over speakers (wild, studentised).",
        "McNemar's test takes utterances for independent and IGNORES that they cluster by speaker (and seed): where "
        "speakers differ its p is too small. Quote the other two.",
        f"p: corrected for {len(pairs)} comparison{'s' * (len(pairs) != 1)} (Holm), for each figure and test alone; "
        "intervals are not corrected.",
    ]
    left_out = [f"{a} and {b}" for (a, b), f in found.items() if f["n"] < max(len(predictions[n]) for n in (a, b))]
    if left_out:
        notes.append(f"Only what both have was compared for {'; '.join(left_out)}.")
    return Table("comparisons", "Paired comparison", pd.DataFrame(text), pd.DataFrame(values), tuple(notes))


def _comparison_rows(pair: tuple[str, str], found: dict):
    for figure, difference in found["figures"].items():
        mcnemar = found["mcnemar"] if figure == "WA" else None
        yield {
            "first": pair[0],
            "second": pair[1],
            "figure": figure,
            "n": found["n"],
            "speakers": found["speakers"],
            **difference._asdict(),
            "p_bootstrap": found["bootstrap_p"][figure],
            "only_first_right": mcnemar and mcnemar.only_first,
            "only_second_right": mcnemar and mcnemar.only_second,
            "p_mcnemar": mcnemar and mcnemar.p,
            "mcnemar_is_exact": mcnemar and mcnemar.is_exact,
        }


def _comparison_text(row: dict, selection: str) -> dict:
    unit, difference = unit_of(row["figure"]), Difference(*(row[k] for k in Difference._fields))
    ends = None if difference.low is None else (unit.change(difference.low), unit.change(difference.high))
    mcnemar = ABSENT
    if row["figure"] == "WA":
        counts = f"{row['only_second_right']}:{row['only_first_right']}"
        mcnemar = f"{p_value(row['p_mcnemar_holm'])} ({counts}{', exact' if row['mcnemar_is_exact'] else ''})"
    return {
        "second vs first": f"{row['second']} vs {row['first']}",
        "figure": row["figure"],
        "pairs": str(row["n"]),
        "difference": marked(with_interval(unit.change(difference.difference), ends), selection),
        "p (Holm)": p_value(row["p_holm"]),
        "bootstrap p (Holm)": p_value(row["p_bootstrap_holm"]),
        "McNemar p (Holm; only second : only first right)": mcnemar,
    }


def _mean(values: pd.Series) -> float | None:
    values = values.dropna().astype(float)
    return float(values.mean()) if len(values) else None


def _flat(found: Mapping) -> dict:
    return {k: v for k, v in found.items() if k not in ("recall", "confusion")}


def _without_empty(text: pd.DataFrame) -> pd.DataFrame:
    """Without the columns of heads that no variant has."""
    return text[[c for c in text if not text[c].isin([ABSENT, ""]).all()]]


AS_TRAINED, CALIBRATED = "as trained", "calibrated"


def scores_of(runs: Sequence[Run], selection: str, classes: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Scores of the test utterances of some runs, their posteriors as trained and calibrated.

    Arguments
    ---------
    runs : sequence of Run
        Of one variant.
    selection : str
        Which predictions.
    classes : sequence of str
        All classes.

    Returns
    -------
    dict of str to pandas.DataFrame
        Those of :func:`~speechbrain_ser.evaluation.calibration.utterance_scores`, and ``speaker``, ``fold`` and
        ``seed``; all runs stacked. ``calibrated`` only where a run has a temperature: each with its own, 1 where it has
        none. Empty where predictions have no posteriors.
    """
    if not all(f"posterior_{c}" in r.predictions[selection] for r in runs for c in classes):
        return {}
    temperatures = [r.temperature(selection) for r in runs]
    ways = {AS_TRAINED: [1.0] * len(runs)}
    if any(temperatures):
        ways[CALIBRATED] = [t or 1.0 for t in temperatures]
    found = {}
    for way, each in ways.items():
        scored = [_scores(run, selection, classes, t) for run, t in zip(runs, each, strict=True)]
        scored = pd.concat(scored, ignore_index=True)
        found[way] = scored.assign(speaker="") if (scored["speaker"] == "").any() else scored
    return found


def _scores(run: Run, selection: str, classes: Sequence[str], temperature: float) -> pd.DataFrame:
    predictions = run.predictions[selection]
    if run.logits is not None and selection == run.metrics["selection"]:
        logits = run.logits.to_numpy()
    else:
        with np.errstate(divide="ignore"):  # a posterior that was rounded to 0
            logits = np.log(predictions[[f"posterior_{c}" for c in classes]].to_numpy())
    true = pd.Index(classes).get_indexer(predictions["emotion"])
    scores = utterance_scores(with_temperature(logits, temperature), true)
    return scores.assign(speaker=predictions["speaker"], fold=run.fold, seed=run.seed)


def calibration_table(runs: Runs, selection: str) -> Table | None:
    """ECE, Brier score and NLL of each variant's test posteriors, as trained and calibrated.

    Arguments
    ---------
    runs : Runs
        Checked.
    selection : str
        Which predictions.

    Returns
    -------
    Table or None
        None where no predictions have posteriors.
    """
    text, values = [], []
    for name, of_variant in runs.variants.items():
        temperatures = [t for r in of_variant if (t := r.temperature(selection)) is not None]
        for way, scores in scores_of(of_variant, selection, runs.classes).items():
            found = _figures(scores)
            shown = _range(temperatures) if way == CALIBRATED else NONE if not temperatures else "1"
            row = {"variant": name, "posteriors": way, "temperature": shown}
            text.append(row | _shown(found, selection))
            range_ = {"temperature_min": 1.0, "temperature_max": 1.0}
            if way == CALIBRATED:
                range_ = {"temperature_min": min(temperatures), "temperature_max": max(temperatures)}
            runs_with = {"runs": len(of_variant), "runs_with_temperature": len(temperatures)}
            values.append({"variant": name, "posteriors": way, **runs_with, **range_, **found})
    if not text:
        return None
    title = f"Calibration, {SELECTED_BY[selection]}"
    notes = tuple(_notes(runs, selection))
    return Table("calibration", title, pd.DataFrame(text), pd.DataFrame(values), notes)


def _figures(scores: pd.DataFrame) -> dict:
    """Figures with the intervals that they have."""
    found = {"n": len(scores), **calibration_figures(scores), "ECE_of_chance": chance_error(scores["confidence"])}
    of_folds = [calibration_figures(part)["ECE"] for _, part in scores.groupby(["fold", "seed"])]
    found["ECE_fold_mean"] = float(np.mean(of_folds))
    found["too_sure"] = found["confidence"] - found["WA"]
    if not np.isfinite(found["NLL"]):  # a posterior that was rounded to 0
        found["NLL"] = None
    means = {"too_sure": (scores["confidence"] - scores["right"], "identity")}
    means |= {name: (scores[name], "log_mean") for name in ("Brier", "NLL") if found[name] is not None}
    for name, (each, scale) in means.items():
        found[f"{name}_low"], found[f"{name}_high"] = _interval(scores, each, np.ones(len(scores)), scale)
    return found


def _interval(scores: pd.DataFrame, numerators, denominators, scale: str) -> Interval | tuple[None, None]:
    return speaker_interval(ratio_sums(scores["speaker"], numerators, denominators), scale) or (None, None)


def _shown(found: Mapping, selection: str) -> dict:
    cells = {
        "largest posterior, mean %": PERCENT.text(found["confidence"]),
        "too sure by, points": _with_ends(found, "too_sure", PERCENT.change),
        "ECE %": PERCENT.text(found["ECE"]),
        "ECE %, fold mean": PERCENT.text(found["ECE_fold_mean"]),
        "ECE by chance %": PERCENT.text(found["ECE_of_chance"]),
        "NLL": NONE if found["NLL"] is None else _with_ends(found, "NLL", "{:.3f}".format),
    }
    return {name: marked(cell, selection) for name, cell in cells.items()} | {"predictions": str(found["n"])}


def _with_ends(found: Mapping, name: str, text) -> str:
    ends = found[f"{name}_low"], found[f"{name}_high"]
    return with_interval(text(found[name]), None if ends[0] is None else [text(end) for end in ends])


def _range(temperatures: Sequence[float]) -> str:
    """Of several runs, the lowest and the highest.

    Example
    -------
    >>> _range([1.2865]), _range([2.05, 0.9, 2.954])
    ('1.29', '0.9 to 2.95')
    """
    low, high = (f"{t:.3g}" for t in (min(temperatures), max(temperatures)))
    return low if low == high else f"{low} to {high}"


def _notes(runs: Runs, selection: str):
    yield (
        f"ECE: the mean distance between the largest posterior and the share that is right, in {BINS} bins of equal "
        "width (Guo et al. 2017), on the test utterances. It has no interval, being no mean over utterances, and is "
        "never 0 with few of them: by chance, what exact posteriors would have. Pooled, folds that are too sure and "
        "folds that are not sure enough make up for each other; in their mean they do not. Too sure by: the mean "
        "largest posterior minus WA. NLL: in nats. In brackets: 95 % intervals by speaker. The CSV has Brier scores."
    )
    if selection != runs.selection:
        yield f"Temperatures are fitted for the configured selection ({SELECTED_BY[runs.selection]}) alone."
        return
    fitted = [r.calibration for r in runs.runs if r.temperature(selection) is not None]
    if not fitted:
        yield f"No temperature: {'; '.join(_reasons(runs, selection))}."
        return
    sizes = sorted({c["n"] for c in fitted if "n" in c})
    utterances = " to ".join(map(str, dict.fromkeys([sizes[0], sizes[-1]]))) if sizes else "its"
    told = dict.fromkeys(note for c in fitted for note in str(c.get("note") or "").split("; "))
    told = [note for note in told if note and not note.startswith("fitted on")]  # the next sentence says on how many
    yield "; ".join([f"Calibrated: each run with the temperature of {utterances} validation utterances", *told]) + "."
    if len(fitted) < len(runs.runs):
        lacking, all_runs = len(runs.runs) - len(fitted), len(runs.runs)
        yield f"{lacking} of {all_runs} runs have none and stay as trained: {'; '.join(_reasons(runs, selection))}."


def _reasons(runs: Runs, selection: str) -> list[str]:
    """Why runs have no temperature, each reason once."""
    lacking = [r for r in runs.runs if r.temperature(selection) is None]
    reasons = ("no calibration.json" if r.calibration is None else str(r.calibration.get("reason")) for r in lacking)
    return list(dict.fromkeys(reasons))


def abstention_table(runs: Runs, selection: str) -> Table | None:
    """How many utterances get an answer at some thresholds, and how many of these answers are right.

    Arguments
    ---------
    runs : Runs
        Checked.
    selection : str
        Which predictions.

    Returns
    -------
    Table or None
        None where no predictions have posteriors.
    """
    text, values = [], []
    for name, of_variant in runs.variants.items():
        scored = scores_of(of_variant, selection, runs.classes)
        if not scored:
            continue
        way, scores = list(scored.items())[-1]  # calibrated, where there is a temperature
        on_valid = _on_valid(of_variant) if way == CALIBRATED else {}
        for found in abstention(scores):
            answered = scores["confidence"] >= found["threshold"]
            ends = _interval(scores, scores["right"] & answered, answered, "logit") if found["n"] else (None, None)
            found |= dict(zip(("WA_low", "WA_high"), ends, strict=True)) | on_valid.get(found["threshold"], {})
            values.append({"variant": name, "posteriors": way, **found})
            row = {"variant": name, "posteriors": way, "threshold": f"{found['threshold']:g}"}
            wa = NONE if found["WA"] is None else _with_ends(found, "WA", PERCENT.text)
            cells = {"answered %": PERCENT.text(found["coverage"]), "of these right (WA) %": wa}
            row |= {column: marked(cell, selection) for column, cell in cells.items()}
            shown = {"answered %, valid": "valid_coverage", "right %, valid": "valid_WA"}
            text.append(row | {column: PERCENT.text(found.get(key)) for column, key in shown.items()})
    if not text:
        return None
    note = (
        "No emotion where the largest posterior is below the threshold (predict --threshold). Choose one by the "
        "validation utterances (the last two columns), not by the test utterances."
    )
    title = f"Answers above a threshold, {SELECTED_BY[selection]}"
    return Table("abstention", title, pd.DataFrame(text), pd.DataFrame(values), (note,))


def _on_valid(runs: Sequence[Run]) -> dict[float, dict]:
    """Coverage and accuracy on the validation utterances of all runs that have them, by threshold."""
    found = [r.calibration for r in runs if r.calibration and r.calibration.get("thresholds")]
    every = pd.DataFrame([row | {"of": c["n"]} for c in found for row in c["thresholds"]])
    if every.empty:
        return {}
    every["right"] = every["n"] * every["WA"].fillna(0).astype(float)
    sums = every.groupby("threshold")[["n", "of", "right"]].sum()
    return {
        t: {"valid_coverage": row["n"] / row["of"], "valid_WA": row["right"] / row["n"] if row["n"] else None}
        for t, row in sums.iterrows()
    }
