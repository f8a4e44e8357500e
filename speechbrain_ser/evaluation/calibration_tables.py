"""A report's tables of calibration: what posteriors are worth, and what keeping silent would give."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from speechbrain_ser.evaluation.cells import NONE, PERCENT, marked, with_interval
from speechbrain_ser.evaluation.intervals import Interval, ratio_sums, speaker_interval
from speechbrain_ser.evaluation.reliability import (
    BINS,
    abstention,
    calibration_figures,
    chance_error,
    utterance_scores,
    with_temperature,
)
from speechbrain_ser.evaluation.runs import Run, Runs
from speechbrain_ser.evaluation.table import Table
from speechbrain_ser.evaluation.tables import SELECTED_BY

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
        Those of :func:`~speechbrain_ser.evaluation.reliability.utterance_scores`, and ``speaker``, ``fold`` and
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


# ------------------------------------------------------------------ how sure, how right


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


# ------------------------------------------------------------------ keeping silent


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
