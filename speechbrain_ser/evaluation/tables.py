"""The tables of a report, from checked runs."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np
import pandas as pd

from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.evaluation.calibration import (
    BINS,
    abstention,
    calibration_figures,
    chance_error,
    utterance_scores,
    with_temperature,
)
from speechbrain_ser.evaluation.compare import compare_predictions, holm
from speechbrain_ser.evaluation.controls import CONTROLS
from speechbrain_ser.evaluation.evaluated import AS_IT_CAME, Evaluation
from speechbrain_ser.evaluation.groups import LEAST, gap_of, groups_of
from speechbrain_ser.evaluation.intervals import ratio_sums, speaker_interval, speaker_sums
from speechbrain_ser.evaluation.metrics import (
    CCC,
    FIGURES,
    NONE,
    RECOGNITION,
    SELECTIONS,
    Sums,
    metrics,
    printed,
    share_heard,
    signed,
    with_interval,
)
from speechbrain_ser.evaluation.runs import Run, Runs, items_of, pooled, stacked

OWN_WORDS = "words_heard"  # the control that reads a variant's own hypotheses
WORDS_ALONE = "words alone, no audio"
ABSENT = "-"  # the variant has no such head
ORACLE = "ORACLE/leaky"  # behind every number that the test part chose
SHOWN = tuple(name for name in RECOGNITION if name != "F1")  # which stands in few tables
AS_TRAINED, CALIBRATED = "as trained", "calibrated"
# names from data make no tags, links and cells
MARKDOWN = {"&": "&amp;", "<": "&lt;", "](": "]\\(", "|": "\\|", "\n": " ", "\r": " "}
LATEX = {"\n": " ", "\r": " ", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {c: rf"\{c}" for c in "&%$#_{}"} | {"±": r"$\pm$", "<": "$<$", ">": "$>$", "…": r"\ldots{}"}


@dataclass(frozen=True, eq=False)
class Table:
    """What a report prints, and the numbers in full."""

    name: str  # of its CSV file
    title: str
    text: pd.DataFrame  # strings, as printed; the first column names the row
    values: pd.DataFrame  # the same figures in full, whatever their printed unit: shares between 0 and 1
    notes: tuple[str, ...] = ()  # what a reader must know, below it

    def console(self) -> str:
        """Return aligned columns of plain text."""
        first, *others = self.text.columns
        rows = self.text.set_index(first).rename_axis(index=None, columns=first)
        head, *rows = rows.to_string(col_space=[len(c) + 1 for c in others]).splitlines()
        rule = "-" * len(head)
        return "\n".join([self.title, rule, head, rule, *rows, rule, *self.notes])

    def markdown(self) -> str:
        """Return a pipe table under a heading."""
        rows = [list(self.text), ["---"] + ["---:"] * (self.text.shape[1] - 1), *self.text.to_numpy().tolist()]
        lines = ["| " + " | ".join(map(in_markdown, row)) + " |" for row in rows]
        title, *notes = map(in_markdown, (self.title, *self.notes))
        return "\n".join([f"## {title}", "", *lines, *(f"\n{note}" for note in notes)])

    def latex(self) -> str:
        """Return a booktabs table with a caption."""
        caption = ". ".join([self.title, *(note.rstrip(".") for note in self.notes)]) + "."
        style = self.text.map(in_latex).rename(columns=in_latex).style.hide(axis="index")
        return style.to_latex(
            hrules=True,
            position="ht",
            position_float="centering",
            column_format="l" + "r" * (self.text.shape[1] - 1),
            caption=in_latex(caption),
            label=f"tab:{self.name}",
        ).strip()


def in_markdown(content):
    """Return a text as Markdown that shows it; of mappings and lists, every text of theirs."""
    if isinstance(content, Mapping):
        return {in_markdown(key): in_markdown(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [in_markdown(each) for each in content]
    return _replaced(content, MARKDOWN) if isinstance(content, str) else content


def in_latex(text: str) -> str:
    """Return a text as LaTeX that shows it."""
    escaped = _replaced(text, LATEX)
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)  # a minus, not a hyphen


def _replaced(text: str, by: Mapping[str, str]) -> str:
    return re.sub("|".join(map(re.escape, by)), lambda found: by[found[0]], text)


def _table(name: str, title: str, rows: Iterable[tuple[dict, dict]], *notes: str, empty: str = ABSENT) -> Table | None:
    """Of rows as printed and in full, without the columns of heads that no variant has; None without any row."""
    if not (rows := list(rows)):
        return None
    text, values = (pd.DataFrame(list(each)) for each in zip(*rows, strict=True))
    text = text.fillna(empty)
    return Table(name, title, text[[c for c in text if not text[c].isin([ABSENT, ""]).all()]], values, notes)


# ------------------------------------------------------------------ cells


def _with_ends(write: Callable[[float], str], found: Mapping, name: str) -> str:
    return with_interval(write, found[name], (found.get(f"{name}_low"), found.get(f"{name}_high")))


def _cell(found: Mapping, name: str) -> str:
    """A figure in its unit with its interval; a dash where the variant has no such head."""
    return _with_ends(FIGURES[name].text, found, name) if name in found else ABSENT


def _marked(text: str, selection: str) -> str:
    return f"{text} {ORACLE}" if selection == "test" and text not in (ABSENT, NONE) else text


def _all_marked(cells: Mapping[str, str], selection: str) -> dict[str, str]:
    return {column: _marked(cell, selection) for column, cell in cells.items()}


def _p(p: float | None) -> str:
    return NONE if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


# ------------------------------------------------------------------ figures


def _figures_of(predictions: pd.DataFrame, classes: Sequence[str]) -> dict:
    """Figures of some predictions and, where they have any, the ends of their intervals, such as ``WA_low``.

    Folds and seeds are stacked: WA is correct / all of them (Cai et al. 2021, eq. 4).
    """
    found = metrics(predictions, classes)
    sums = speaker_sums(predictions, classes)
    return found | _ends({name: of for name, of in sums.items() if found[name] is not None})


def _speaker_figures(runs: Sequence[Run]) -> dict:
    """Speaker accuracy on `seen`, pooled over folds and seeds; empty without a speaker head."""
    if runs[0].seen is None:
        return {}
    seen = pd.concat([r.seen for r in runs], ignore_index=True)
    found = {"speaker": FIGURES["speaker"].of(seen), "speaker_n": len(seen)}
    return found | _ends(speaker_sums(seen, (), ["speaker"]))


def _ends(sums: Mapping[str, Sums], scale: str | None = None) -> dict[str, float | None]:
    found = {}
    for name, of in sums.items():
        ends = speaker_interval(of, scale or FIGURES[name].scale) or (None, None)
        found |= {f"{name}_low": ends[0], f"{name}_high": ends[1]}
    return found


def _by(runs: Sequence[Run], selection: str, classes: Sequence[str], keys: list[str]) -> pd.DataFrame:
    parts = stacked(runs, selection).groupby(keys, sort=False)
    found = [dict(zip(keys, values, strict=True)) | metrics(part, classes) for values, part in parts]
    return pd.DataFrame(found).reindex(columns=[*keys, "n", *RECOGNITION])


def _mean(values: pd.Series) -> float | None:
    values = values.dropna().astype(float)
    return float(values.mean()) if len(values) else None


def _flat(found: Mapping) -> dict:
    return {k: v for k, v in found.items() if k not in ("recall", "confusion")}


def with_floor(tables: Sequence[Table], predictions: pd.DataFrame, classes: Sequence[str]) -> list[Table]:
    """Add to the tables of WA and UA a line of what always saying the commonest class would give, and chance."""
    counts = predictions["emotion"].value_counts().sort_index(kind="stable").sort_values(ascending=False, kind="stable")
    if not classes or counts.empty:
        return tables
    always = f"always {counts.index[0]}, the commonest of them: WA {100 * counts.iloc[0] / counts.sum():.1f} %"
    line = f"Of all tested utterances, {always}, UA {100 / len(counts):.1f} %, which is also UA by chance."
    accuracies = {FIGURES["WA"].heading, FIGURES["UA"].heading}
    # the second corpus's table is of other utterances
    return [replace(t, notes=(*t.notes, line)) if accuracies & {*t.text} and t.name != "second" else t for t in tables]


def main_table(runs: Runs, selection: str, paper: Mapping | None = None) -> Table:
    """Make the table of WA, UA, F1, WER, MSE and speaker accuracy of each variant, the paper's numbers beside them."""
    papers = paper_rows(paper)
    rows: dict[str, list] = {}  # by the paper's key
    for name, of_variant in runs.variants.items():
        key = paper_key("/".join(of_variant[0].variant), name, papers)
        row = _main_row(name, of_variant, runs, selection)
        rows.setdefault(key, []).append(_beside_paper(*row, papers.get(key, {})))
    for key, theirs in papers.items():
        name = {"variant": f"{runs.names.get(key, key)} (not run)"}
        rows.setdefault(key, [_beside_paper(name, name, theirs)])
    found = [row for key in dict.fromkeys([*papers, ""]) for row in rows.get(key, [])]
    notes = _main_notes(runs, [values for _, values in found])
    return _table("figures", f"Results, {SELECTIONS[selection].words}", found, *notes, empty="")


def _main_row(name: str, of_variant: Sequence[Run], runs: Runs, selection: str) -> tuple[dict, dict]:
    predictions = stacked(of_variant, selection)
    found = _figures_of(predictions, runs.classes) | _speaker_figures(of_variant)
    found["share_text_heard"] = share_heard(predictions)
    per_fold = _by(of_variant, selection, runs.classes, ["fold", "seed"]).groupby("fold")["WER"]
    found["WER_fold_mean"] = _mean(per_fold.apply(_mean)) if "WER" in found else None
    cells = {FIGURES[m].heading: _cell(found, m) for m in RECOGNITION}
    cells["F1 %"] = printed(found["F1"]) if "F1" in found else ABSENT  # its interval is in the CSV
    cells["WER %, fold mean"] = printed(found["WER_fold_mean"]) if "WER" in found else ABSENT
    text = {"variant": name, **_all_marked(cells, selection)}
    text |= {"texts heard %": printed(found["share_text_heard"]), "speaker acc. on seen %": _cell(found, "speaker")}
    label = {"variant": name, "selection": SELECTIONS[selection].words, "speaker_disjoint": not runs.leak}
    return text | {"predictions": str(found["n"])}, label | _flat(found)


def _main_notes(runs: Runs, values: Sequence[Mapping]) -> list[str]:
    are_known = (stacked(runs.runs[:1], runs.selection)["speaker"] != "").all()
    intervals = "In brackets: 95 % intervals clustered by speaker (jackknife, Student's t)."
    notes = ["WA: correct / all utterances, pooled over folds (and seeds); UA: mean recall; F1: macro."]
    notes.append(intervals if are_known else "Speakers are not known: no intervals.")
    of_heads = {
        "WER": "WER: pooled over words, and the mean of the folds'. Texts heard: share of the test utterances whose "
        "text is said in training; WER there is telling known sentences apart, see the text-disjoint part.",
        "MSE": "MSE: squared error of the reconstructed mel spectrogram (0 to 1), mean over an utterance's frames and "
        "bands, then over utterances; 5.0 e-4 is 0.0005.",
        **{name: "CCC: Lin's concordance with the ratings, in hundredths, pooled over utterances." for name in CCC},
        "speaker": "Speaker accuracy: on `seen`, held-out utterances of training speakers.",
    }
    return notes + list(dict.fromkeys(note for head, note in of_heads.items() if any(head in v for v in values)))


def paper_rows(paper: Mapping | None) -> dict[str, dict[str, float]]:
    """Return the paper's own numbers by variant and figure; a list stands for its columns in order."""
    if not paper:
        return {}
    columns = list(paper.get("columns", ()))
    listed = {str(key): row for key, row in paper["rows"].items()}
    rows = {k: dict(r if isinstance(r, Mapping) else zip(columns, r, strict=True)) for k, r in listed.items()}
    for unknown in (c for row in rows.values() for c in row if c not in FIGURES):
        raise UserError(f"paper: '{unknown}' is no figure{nearest(unknown, FIGURES)}; known: {', '.join(FIGURES)}")
    return rows


def paper_key(variant: str, name: str, rows: Mapping[str, Mapping]) -> str:
    """Return the paper's row of a variant: its system and name, its name, or its lines of the keys a table sweeps.

    Example
    -------
    >>> rows = {"alpha=0": {}, "default": {}}
    >>> paper_key("alpha=0,encoder=tiny", "", rows), paper_key("encoder=tiny", "", rows)
    ('alpha=0', 'default')
    """
    swept = {item.split("=")[0] for key in rows for item in key.rpartition("/")[2].split(",") if "=" in item}
    of_system = variant.partition("/")[2] or variant
    candidates = (variant, of_system, name, items_of(of_system, only=swept) or "default")
    return next((c for c in candidates if c in rows), "")


def _beside_paper(text: dict, values: dict, theirs: Mapping[str, float]) -> tuple[dict, dict]:
    cells = {f"paper {FIGURES[c].heading}": FIGURES[c].text(v) for c, v in theirs.items()}
    return text | cells, values | {f"paper_{c}": v for c, v in theirs.items()}


def second_table(runs: Runs, selection: str) -> Table | None:
    """Make the table of variants trained on a second corpus as well, on its held-out utterances; None without any."""
    rows = []
    for name, of_variant in runs.variants.items():
        if tested := [r for r in of_variant if r.second]:  # a small second corpus is not held out of in every fold
            found = _figures_of(stacked(tested, selection, "second"), runs.classes)
            row = {"variant": name, "second corpus": tested[0].metrics["second_corpus"]}
            cells = {FIGURES[m].heading: _cell(found, m) for m in ("WA", "UA", *CCC)}
            cells |= {"F1 %": printed(found["F1"])} if runs.classes else {}
            rows.append((row | _all_marked(cells, selection) | {"predictions": str(found["n"])}, row | _flat(found)))
    note = "Its own held-out utterances, each tested in one fold at most; UA and F1 over the classes that it has."
    return _table("second", f"On the second corpus, {SELECTIONS[selection].words}", rows, note)


def text_table(runs: Runs, selection: str) -> Table:
    """Make the table of figures on test utterances whose text was, and was not, heard in training."""
    rows = []
    for name, of_variant in runs.variants.items():
        predictions = stacked(of_variant, selection)
        measured, heard = metrics(predictions, runs.classes), predictions["text_heard"]
        parts = {"heard in training": heard.eq(True), "text-disjoint": heard.eq(False), "not known": heard.isna()}
        for part, here in ((part, predictions[rows]) for part, rows in parts.items()):
            if part == "not known" and here.empty:
                continue
            label = {"variant": name, "texts": part}
            found = _figures_of(here, runs.classes) if len(here) else {"n": 0}
            cells = {m: _cell(found, m) if len(here) or m not in measured else NONE for m in SHOWN}
            text = _all_marked({FIGURES[m].heading: cell for m, cell in cells.items()}, selection)
            rows.append((label | {"predictions": str(len(here))} | text, label | _flat(found)))
    note = (
        "Text-disjoint: the test utterances whose text no training utterance says; 'none' where there is none. "
        "Not known: the corpus does not tell what they say."
    )
    return _table("texts", "Text-disjoint part", rows, note)


def group_table(predictions: Mapping[str, pd.DataFrame], classes: Sequence[str], selection: str) -> Table | None:
    """Make the table of the worst and the best speaker, gender, session and text, by UA, and of their gap.

    The values in full have a row a group. None where predictions tell of no two groups.
    """
    text, values = [], []
    for name, rows in predictions.items():
        for by, parts in groups_of(rows).items():
            found = {group: _figures_of(part, classes) for group, part in parts.items()}
            label = {"variant": name, "by": by}
            for group, figures in found.items():
                about = label | {"group": group, "speakers": parts[group]["speaker"].nunique()}
                values.append(about | _flat(figures))
            gap = gap_of(parts, classes, by)
            ends = {g: f"{g}: {_cell(found[g], 'UA')} ({found[g]['n']})" for g in (gap.worst, gap.best)}
            cells = {"worst, UA % (n)": ends[gap.worst], "best, UA % (n)": ends[gap.best]}
            cells["gap, points"] = with_interval(signed, gap.gap, (gap.low, gap.high))
            text.append(label | {"groups": str(len(parts))} | _all_marked(cells, selection))
    note = (
        f"Groups of {LEAST} utterances or more; UA over the classes that a group has. Some group is always worst: the "
        "gap's 95 % interval is corrected for all pairs of groups (Bonferroni), and is by speaker. That between two "
        "speakers is of these two, by their utterances. It has none where a group is of one speaker, or all fare alike."
    )
    if not text:
        return None
    return Table("groups", "Worst and best group", pd.DataFrame(text), pd.DataFrame(values), (note,))


def words_table(runs: Runs, selection: str) -> Table | None:
    """Make the table of what the words alone give on the same folds, and what each variant has beyond the best of them.

    Controls are the same whatever the variant and seed, but for those that read a variant's own hypotheses.
    """
    if not (said := controls_said(runs, selection)):
        return None
    rows = []
    for name, predictions in said.items():
        found, label = _figures_of(predictions, runs.classes), {"words alone": name}
        cells = {FIGURES[m].heading: _cell(found, m) for m in ("WA", "UA")}
        rows.append((label | cells | {"predictions": str(found["n"])}, label | _flat(found)))
    best = best_of(said, runs.classes)
    for name, of_variant in runs.variants.items():
        label = {"words alone": f"{name}, beyond {best}"}
        cells, values = _gain(said[best], stacked(of_variant, selection), runs.classes, selection)
        rows.append((label | cells, label | values))
    note = (
        "Controls that hear nothing, from the same folds: the training part's most frequent class; the emotion that "
        "the same text has there; TF-IDF of words and logistic regression, on transcripts and on what a system "
        "understood. Below: how far each variant is beyond the best of them, paired by speaker."
    )
    return _table("words", "What the words alone would give", rows, note)


def controls_said(runs: Runs, selection: str) -> dict[str, pd.DataFrame]:
    """Return the controls' predictions by their names, stacked over folds; empty where a run has none."""
    if any(run.controls is None for run in runs.runs):
        return {}
    variants = runs.variants
    first = next(iter(variants.values()))
    first = [run for run in first if run.seed == first[0].seed]
    found = {name: _said_by(first, column, selection) for column, name in CONTROLS.items() if column != OWN_WORDS}
    own = {f"{CONTROLS[OWN_WORDS]} of {name}": _said_by(of, OWN_WORDS, selection) for name, of in variants.items()}
    return {name: predictions for name, predictions in (found | own).items() if predictions is not None}


def best_of(predictions: Mapping[str, pd.DataFrame], classes: Sequence[str]) -> str:
    """Return the name of the predictions of the highest UA."""
    return max(predictions, key=lambda name: FIGURES["UA"].of(predictions[name], classes))


def _said_by(runs: Sequence[Run], column: str, selection: str) -> pd.DataFrame | None:
    if any(column not in run.controls for run in runs):
        return None
    facts = ["ID", "speaker", "emotion"]
    said = ((r, r.predictions[selection][facts].assign(predicted=r.controls[column].to_numpy())) for r in runs)
    return pooled(frame.assign(fold=run.fold, seed=run.seed) for run, frame in said)


def _gain(first: pd.DataFrame, second: pd.DataFrame, classes: Sequence[str], selection: str) -> tuple[dict, dict]:
    """The second's WA and UA minus the first's, with intervals, as printed and in full."""
    if first["seed"].nunique() == 1:  # a control, or a single training
        first = first.drop(columns="seed").merge(second[["ID", "seed"]], on="ID")
    pairs = {row["figure"]: row for row in compare_predictions(first, second, classes)}
    cells, values = {}, {}
    for figure in map(FIGURES.get, ("WA", "UA")):
        row = pairs[figure.name]
        text = with_interval(figure.change, row["difference"], (row["low"], row["high"]))
        cells[figure.heading] = _marked(text, selection)
        ends = {"": "difference", "_low": "low", "_high": "high", "_p": "p"}
        values |= {f"{figure.name}_difference{end}": row[key] for end, key in ends.items()}
    return cells | {"predictions": str(pairs["WA"]["n"])}, values


def protocol_table(by_protocol: Mapping[str, Runs], selection: str) -> Table:
    """Make the table of each variant, and of the best control without audio, under several protocols.

    Differences are to the first protocol that leaks no speaker, on the same utterances and seeds.
    """
    rows, base = [], next((p for p, runs in by_protocol.items() if not runs.leak), next(iter(by_protocol)))
    of_variant = {
        # a single system as it is shipped has its own name
        p: {v[0].metrics["system"] if n == "default" else n: stacked(v, selection) for n, v in runs.variants.items()}
        for p, runs in by_protocol.items()
    }
    for protocol, runs in by_protocol.items():
        if said := controls_said(runs, selection):
            of_variant[protocol][WORDS_ALONE] = said[best_of(said, runs.classes)]
    names = dict.fromkeys(name for found in of_variant.values() for name in found)
    for name, (protocol, runs) in product(names, by_protocol.items()):
        if (predictions := of_variant[protocol].get(name)) is None:
            continue
        found = _figures_of(predictions, runs.classes)
        label = {"variant": name, "protocol": f"{protocol} (LEAKY)" if runs.leak else protocol}
        text = label | {FIGURES[m].heading: _cell(found, m) for m in ("WA", "UA", "WER") if m in found}
        if protocol != base and name in of_variant[base]:
            cells, values = _gain(of_variant[base][name], predictions, runs.classes, selection)
            text |= {f"{heading}, minus {base}": cells[heading] for heading in cells if heading != "predictions"}
            found |= values
        found["share_text_heard"] = share_heard(stacked(next(iter(runs.variants.values())), selection))
        text |= {"texts heard %": printed(found["share_text_heard"]), "predictions": str(found["n"])}
        rows.append((text, label | _flat(found)))
    note = (
        f"Differences: to protocol {base}, paired on the same utterances, with 95 % intervals by speaker. "
        "speaker_fewer has as few training utterances as speaker_text, whatever they say: what speaker_text loses "
        "beyond it is due to known texts. Words alone: the best of the controls without audio under that protocol."
    )
    return _table("protocols", f"Protocols, {SELECTIONS[selection].words}", rows, note)


def selection_table(runs: Runs) -> Table:
    """Make the table of what choosing an epoch costs: last, best on validation and the oracle side by side."""
    rows = []
    for name, of_variant in runs.variants.items():
        found = {s: metrics(stacked(of_variant, s), runs.classes) for s in SELECTIONS if s in of_variant[0].predictions}
        for figure in map(FIGURES.get, SHOWN):
            by = {s: f[figure.name] for s, f in found.items() if f.get(figure.name) is not None}
            if not by:
                continue
            text = {"variant": name, "figure": figure.heading}
            text |= {SELECTIONS[s].words: _marked(figure.text(v), s) for s, v in by.items()}
            if {"last", "test"} <= set(by):
                text["choosing on test gains"] = figure.change(by["test"] - by["last"])
            values = {"test_ORACLE_leaky" if s == "test" else s: v for s, v in by.items()}
            rows.append((text, {"variant": name, "figure": figure.name} | values))
    note = f"The {ORACLE} column picks each fold's best epoch on the test part: no result of a system."
    if len(runs.runs[0].predictions) == 1:
        note = "These runs kept one selection only; --test_every_epoch=True keeps all three."
    return _table("selections", "Cost of selection", rows, note)


def spread_table(runs: Runs, selection: str) -> Table:
    """Make the table of mean and standard deviation over folds, and over seeds."""
    rows = []
    for name, of_variant in runs.variants.items():
        both = _by(of_variant, selection, runs.classes, ["fold", "seed"])
        spreads = {
            "folds": both.groupby("fold", sort=False)[list(RECOGNITION)].agg(_mean),
            "seeds": _by(of_variant, selection, runs.classes, ["seed"]),
        }
        for over, found in spreads.items():
            means = {m: _mean(found[m]) for m in RECOGNITION}
            sds = {m: found[m].dropna().astype(float).std(ddof=1) for m in RECOGNITION}
            text = {"variant": name, "over": f"{len(found)} {over if len(found) > 1 else over[:-1]}"}
            for m, mean in means.items():
                spread = f" ± {FIGURES[m].text(sds[m])}" if found[m].count() > 1 else ""
                cell = ABSENT if mean is None else FIGURES[m].text(mean) + spread
                text[FIGURES[m].heading] = _marked(cell, selection)
            values = {"variant": name, "over": over, "number": len(found)} | {f"{m}_mean": v for m, v in means.items()}
            rows.append((text, values | {f"{m}_sd": v for m, v in sds.items()}))
    note = (
        "Mean ± standard deviation. Over folds: of the folds' figures, each the mean of its seeds. Over seeds: of the "
        "figures pooled over folds."
    )
    return _table("spread", "Spread over folds and seeds", rows, note)


def fold_table(runs: Runs, selection: str) -> Table:
    """Make the table of WA (and WER, MSE and CCC) of each fold, variants side by side, seeds averaged."""
    values = pd.concat(
        _by(of_variant, selection, runs.classes, ["fold", "seed"]).assign(variant=name)
        for name, of_variant in runs.variants.items()
    )[["variant", "fold", "seed", "n", *RECOGNITION]]
    text = []
    for fold in [f for f in runs.folds if f in set(values["fold"])]:
        here = values[values["fold"] == fold]
        row = {"fold": fold, "tested": str(here["n"].iloc[0])}
        for figure in map(FIGURES.get, ("WA", "WER", "MSE", *CCC)):
            for name in runs.variants:
                mean = _mean(here[figure.name][here["variant"] == name])
                cell = ABSENT if mean is None else _marked(figure.text(mean), selection)
                row[f"{figure.heading} {name}"] = cell
        text.append(row)
    return replace(_table("folds", "Folds", [(row, {}) for row in text]), values=values)


def recall_table(runs: Runs, selection: str) -> Table | None:
    """Make the table of each class's recall; None where only dimensions are told."""
    rows = []
    for name, of_variant in runs.variants.items() if runs.classes else ():
        recall = metrics(stacked(of_variant, selection), runs.classes)["recall"]
        text = {c: _marked(printed(share), selection) for c, share in recall.items()}
        rows.append(({"variant": name} | text, {"variant": name} | recall))
    return _table("recall", "Recall of each class, %", rows)


def confusion_table(runs: Runs, selection: str, name: str, number: int) -> Table:
    """Make the table of a variant's counts and row shares."""
    seeds = f", summed over {len(runs.seeds)} seeds" if len(runs.seeds) > 1 else ""
    title = f"Confusion, {name} ({SELECTIONS[selection].words}): utterances{seeds} (% of the row)"
    found = metrics(stacked(runs.variants[name], selection), runs.classes)
    return _confusion(name, found["confusion"], runs.classes, f"confusion_{number}", title)


def _confusion(name: str, confusion: Sequence, classes: Sequence[str], table: str, title: str) -> Table:
    counts = pd.DataFrame(confusion, classes, classes)
    shares = counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    cells = counts.astype(str) + " (" + shares.map(printed) + ")"
    text = cells.assign(all=counts.sum(axis=1).astype(str)).rename_axis("true \\ predicted").reset_index()
    values = [(name, t, p, counts.at[t, p], shares.at[t, p]) for t in classes for p in classes]
    values = pd.DataFrame(values, columns=["variant", "true", "predicted", "n", "share"])
    return Table(table, title, text, values)


# ------------------------------------------------------------------ comparisons


def comparison_table(
    predictions: Mapping[str, pd.DataFrame], classes: Sequence[str], selection: str, reference: str | None = None
) -> Table | None:
    """Make the table of paired differences of variants on the same utterances, corrected for their number.

    Each variant's stacked predictions are compared to the reference's, without one all pairs; None of one variant.
    """
    names = list(predictions)
    pairs = [(reference, n) for n in names if n != reference] if reference else list(combinations(names, 2))
    found = {(a, b): compare_predictions(predictions[a], predictions[b], classes) for a, b in pairs}
    values = [{"first": a, "second": b} | row for (a, b), rows in found.items() for row in rows]
    for column in ("p", "p_bootstrap", "p_mcnemar"):
        for figure in RECOGNITION:  # a family is the comparisons of one figure by one test
            rows = [r for r in values if r["figure"] == figure]
            for row, p in zip(rows, holm(r[column] for r in rows), strict=True):
                row[f"{column}_holm"] = p
    in_what = "in points (MSE: in 1e-4)" if any(r["figure"] == "MSE" for r in values) else "in points"
    notes = [
        f"Difference: second minus first, {in_what}, on the same utterances and seeds, with the 95 % interval and p of "
        "the jackknife by speaker. Bootstrap: over speakers (wild, studentised).",
        "McNemar's test takes utterances for independent and IGNORES that they cluster by speaker (and seed): where "
        "speakers differ its p is too small. Quote the other two.",
        f"p: corrected for {len(pairs)} comparison{'s' * (len(pairs) != 1)} (Holm), for each figure and test alone; "
        "intervals are not corrected.",
    ]
    whole = {pair: max(len(predictions[name]) for name in pair) for pair in found}
    if left_out := [f"{a} and {b}" for (a, b), rows in found.items() if any(r["n"] < whole[a, b] for r in rows)]:
        notes.append(f"Only what both have was compared for {'; '.join(left_out)}.")
    text = [_comparison_text(row, selection) for row in values if row["figure"] != "F1"]
    if not text:
        return None
    return Table("comparisons", "Paired comparison", pd.DataFrame(text), pd.DataFrame(values), tuple(notes))


def _comparison_text(row: dict, selection: str) -> dict:
    mcnemar = ABSENT
    if row["figure"] == "WA":
        counts = f"{row['only_second_right']}:{row['only_first_right']}"
        mcnemar = f"{_p(row['p_mcnemar_holm'])} ({counts}{', exact' if row['mcnemar_is_exact'] else ''})"
    difference = with_interval(FIGURES[row["figure"]].change, row["difference"], (row["low"], row["high"]))
    return {
        "second vs first": f"{row['second']} vs {row['first']}",
        "figure": row["figure"],
        "pairs": str(row["n"]),
        "difference": _marked(difference, selection),
        "p (Holm)": _p(row["p_holm"]),
        "bootstrap p (Holm)": _p(row["p_bootstrap_holm"]),
        "McNemar p (Holm; only second : only first right)": mcnemar,
    }


# ------------------------------------------------------------------ calibration


def scores_of(runs: Sequence[Run], selection: str, classes: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return :func:`utterance_scores` of a variant's test utterances, with speaker, fold and seed, all runs stacked.

    By ``as trained`` and, where a run has a temperature, ``calibrated``: each run with its own, 1 where it has none.
    Empty where predictions have no posteriors.
    """
    if not classes or not all(f"posterior_{c}" in r.predictions[selection] for r in runs for c in classes):
        return {}
    temperatures = [r.temperature(selection) for r in runs]
    ways = {AS_TRAINED: [1.0] * len(runs)}
    if any(temperatures):
        ways[CALIBRATED] = [t or 1.0 for t in temperatures]
    return {
        way: pooled(_scores(run, selection, classes, t) for run, t in zip(runs, each, strict=True))
        for way, each in ways.items()
    }


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
    """Make the table of ECE and NLL of the test posteriors, as trained and calibrated; None where there are none."""
    rows = []
    for name, of_variant in runs.variants.items():
        temperatures = [t for r in of_variant if (t := r.temperature(selection)) is not None]
        for way, scores in scores_of(of_variant, selection, runs.classes).items():
            found = _calibration_figures(scores)
            low, high = (min(temperatures), max(temperatures)) if way == CALIBRATED else (1.0, 1.0)
            temperature = _range(low, high) if temperatures else NONE
            label = {"variant": name, "posteriors": way}
            text = label | {"temperature": temperature} | _all_marked(_calibration_cells(found), selection)
            values = label | {"runs": len(of_variant), "runs_with_temperature": len(temperatures)}
            values |= {"temperature_min": low, "temperature_max": high}
            rows.append((text | {"predictions": str(found["n"])}, values | found))
    return _table("calibration", f"Calibration, {SELECTIONS[selection].words}", rows, *_notes(runs, selection))


def _range(low: float, high: float) -> str:
    return " to ".join(dict.fromkeys(f"{t:.3g}" for t in (low, high)))


def _calibration_cells(found: Mapping) -> dict[str, str]:
    return {
        "largest posterior, mean %": printed(found["confidence"]),
        "too sure by, points": _with_ends(signed, found, "too_sure"),
        "ECE %": printed(found["ECE"]),
        "ECE %, fold mean": printed(found["ECE_fold_mean"]),
        "ECE by chance %": printed(found["ECE_of_chance"]),
        "NLL": NONE if found["NLL"] is None else _with_ends("{:.3f}".format, found, "NLL"),
    }


def _calibration_figures(scores: pd.DataFrame) -> dict:
    found = {"n": len(scores), **calibration_figures(scores), "ECE_of_chance": chance_error(scores["confidence"])}
    of_folds = [calibration_figures(part)["ECE"] for _, part in scores.groupby(["fold", "seed"])]
    found["ECE_fold_mean"] = float(np.mean(of_folds))
    found["too_sure"] = found["confidence"] - found["WA"]
    if not np.isfinite(found["NLL"]):  # a posterior that was rounded to 0
        found["NLL"] = None
    means = {"too_sure": (scores["confidence"] - scores["right"], "identity")}
    means |= {name: (scores[name], "log_mean") for name in ("Brier", "NLL") if found[name] is not None}
    for name, (each, scale) in means.items():
        found |= _ends({name: ratio_sums(scores["speaker"], each, np.ones(len(scores)))}, scale)
    return found


def _notes(runs: Runs, selection: str):
    yield (
        f"ECE: the mean distance between the largest posterior and the share that is right, in {BINS} bins of equal "
        "width (Guo et al. 2017), on the test utterances. It has no interval, being no mean over utterances, and is "
        "never 0 with few of them: by chance, what exact posteriors would have. Pooled, folds that are too sure and "
        "folds that are not sure enough make up for each other; in their mean they do not. Too sure by: the mean "
        "largest posterior minus WA. NLL: in nats. In brackets: 95 % intervals by speaker. The CSV has Brier scores."
    )
    if selection != runs.selection:
        yield f"Temperatures are fitted for the configured selection ({SELECTIONS[runs.selection].words}) alone."
        return
    fitted = [r.calibration for r in runs.runs if r.temperature(selection) is not None]
    lacking = [r.calibration for r in runs.runs if r.temperature(selection) is None]
    reasons = dict.fromkeys("no calibration.json" if c is None else str(c.get("reason")) for c in lacking)
    if not fitted:
        yield f"No temperature: {'; '.join(reasons)}."
        return
    sizes = sorted({c["n"] for c in fitted if "n" in c})
    utterances = " to ".join(map(str, dict.fromkeys([sizes[0], sizes[-1]]))) if sizes else "its"
    told = dict.fromkeys(note for c in fitted for note in str(c.get("note") or "").split("; "))
    told = [note for note in told if note and not note.startswith("fitted on")]  # the next sentence says on how many
    yield "; ".join([f"Calibrated: each run with the temperature of {utterances} validation utterances", *told]) + "."
    if lacking:
        yield f"{len(lacking)} of {len(runs.runs)} runs have none and stay as trained: {'; '.join(reasons)}."


def abstention_table(runs: Runs, selection: str) -> Table | None:
    """Make the table of how many utterances get an answer at some thresholds, and how many of these are right."""
    rows = []
    for name, of_variant in runs.variants.items():
        for way, scores in list(scores_of(of_variant, selection, runs.classes).items())[-1:]:  # calibrated, if any is
            on_valid = _on_valid(of_variant) if way == CALIBRATED else {}
            for found in abstention(scores):
                answered = scores["confidence"] >= found["threshold"]
                found |= _ends({"WA": ratio_sums(scores["speaker"], scores["right"] & answered, answered)})
                found |= on_valid.get(found["threshold"], {})
                label = {"variant": name, "posteriors": way}
                cells = {
                    "answered %": printed(found["coverage"]),
                    "of these right (WA) %": NONE if found["WA"] is None else _with_ends(printed, found, "WA"),
                }
                text = label | {"threshold": f"{found['threshold']:g}"} | _all_marked(cells, selection)
                text["answered %, valid"] = printed(found.get("valid_coverage"))
                rows.append((text | {"right %, valid": printed(found.get("valid_WA"))}, label | found))
    note = (
        "No emotion where the largest posterior is below the threshold (predict --threshold). Choose one by the "
        "validation utterances (the last two columns), not by the test utterances."
    )
    return _table("abstention", f"Answers above a threshold, {SELECTIONS[selection].words}", rows, note)


def _on_valid(runs: Sequence[Run]) -> dict[float, dict]:
    """Coverage and accuracy on the validation utterances of all runs that have them, by threshold."""
    found = [r.calibration for r in runs if r.calibration]
    every = pd.DataFrame([row | {"of": c["n"]} for c in found for row in c.get("thresholds") or ()])
    if every.empty:
        return {}
    every["right"] = every["n"] * every["WA"].fillna(0).astype(float)
    sums = every.groupby("threshold")[["n", "of", "right"]].sum()
    return {
        t: {"valid_coverage": row["n"] / row["of"], "valid_WA": row["right"] / row["n"] if row["n"] else None}
        for t, row in sums.iterrows()
    }


# ------------------------------------------------------------------ one model, or many, on other corpora


def evaluation_figures(evaluation: Evaluation) -> dict:
    """Return what metrics.json says: figures with the ends of their intervals, calibration each way, groups' gaps."""
    rows, classes = evaluation.predictions, evaluation.classes
    ways = {
        way: {"temperatures": [temperatures.min(), temperatures.max()], **_calibration_figures(evaluation.scores(way))}
        for way, temperatures in evaluation.ways.items()
    }
    gaps = {by: gap_of(parts, classes, by)._asdict() for by, parts in groups_of(rows).items()}
    return {"all": _figures_of(rows, classes), "calibration": ways, "gaps": gaps}


def evaluation_tables(evaluation: Evaluation, found: Mapping) -> list[Table]:
    """Make the tables of a model's figures on a corpus, as :func:`evaluation_figures` found them."""
    rows, label, of_all, classes = evaluation.predictions, {"model": evaluation.model}, found["all"], evaluation.classes
    cells = {FIGURES[name].heading: _cell(of_all, name) for name in RECOGNITION}
    counts = {"utterances": str(len(rows)), "speakers": str(rows["speaker"].replace("", None).nunique() or NONE)}
    note = "WA: correct / all utterances; UA: mean recall; F1: macro. In brackets: 95 % intervals by speaker."
    figures = _table("figures", "Results", [(label | cells | counts, label | _flat(of_all))], note)
    ways = []
    for way, of_way in found["calibration"].items():
        texts = _calibration_cells(of_way)
        texts.pop("ECE %, fold mean")
        temperature = NONE if way == AS_IT_CAME else _range(*of_way["temperatures"])
        ways.append(({"posteriors": way, "temperature": temperature} | texts, {"posteriors": way} | of_way))
    refitted = "each utterance with the temperature of other speakers' utterances of this corpus"
    refitted = refitted if len(ways) > 1 else "not, as that takes several known speakers"
    note = f"Refitted: {refitted}. ECE has no interval; by chance: what exact posteriors would have."
    title = "Confusion: utterances (% of the row)"
    groups = group_table({evaluation.model: rows}, classes, "last")
    tables = [figures, groups, _table("calibration", "Calibration", ways, note)]
    confusion = _confusion(evaluation.model, of_all["confusion"], classes, "confusion", title)
    return with_floor([table for table in (*tables, confusion) if table is not None], rows, classes)


def corpora_table(
    cells: Mapping[tuple[str, str, str], pd.DataFrame], classes: Sequence[str], leaks: Mapping[tuple[str, str], str]
) -> Table:
    """Make the matrix of UA by variant, corpus trained on and corpus tested on, whose predictions `cells` has.

    `leaks` are by the two corpora, in words. The values in full have a row a cell.
    """
    text, values = {}, []
    for (variant, train, test), predictions in cells.items():
        found = _figures_of(predictions, classes)
        is_leaky = (train, test) in leaks
        about = {"variant": variant, "trained_on": train, "tested_on": test, "leaky": is_leaky}
        values.append(about | {"utterances": predictions["ID"].nunique()} | _flat(found))
        name = train if len({v for v, *_ in cells}) == 1 else f"{variant}, {train}"
        row = text.setdefault(name, {"trained on": name})
        row[f"UA % on {test}"] = _cell(found, "UA") + " LEAKY" * is_leaky
    note = (
        f"UA over {len(classes)} classes ({', '.join(classes)}), {100 / len(classes):.1f} % by chance; 95 % intervals "
        "by speaker of the corpus that is tested on. On the diagonal each fold's model is tested on its own held-out "
        "part; elsewhere all these models, each on the whole other corpus: the figure is the mean over them."
    )
    frame = pd.DataFrame(list(text.values())).fillna(ABSENT)
    return Table("corpora", "Across corpora", frame, pd.DataFrame(values), (note,))
