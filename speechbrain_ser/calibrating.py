"""From a tested run's logits to its temperature, its figures and its reliability diagram."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from speechbrain_ser.calibration import CALIBRATION, LOGITS, RELIABILITY, calibrate, logits_of
from speechbrain_ser.evaluation.figures import save_figure
from speechbrain_ser.evaluation.reliability import reliability_bins, utterance_scores, with_temperature
from speechbrain_ser.evaluation.reliability_figures import plot_reliability
from speechbrain_ser.files import write_csv, write_json
from speechbrain_ser.protocols import why_none_validates

if TYPE_CHECKING:
    from speechbrain_ser.preparation import Setup


def calibrate_run(setup: Setup, valid: pd.DataFrame, test: pd.DataFrame, tested: dict) -> None:
    """Fit a temperature on the validation utterances; write it, the logits and a picture into the run's folder.

    Arguments
    ---------
    setup : Setup
        The run.
    valid, test : pandas.DataFrame
        Logits from :func:`~speechbrain_ser.calibration.logit_table`, at the epoch that was tested; the first may be
        empty.
    tested : dict
        What ``metrics.json`` says of the configured selection.
    """
    found = {"temperature": None, "epoch": tested["epoch"], "selection": setup.config.plain["selection"]}
    found |= calibrate(valid, test, setup.classes)
    if not setup.fold.valid:
        found["reason"] = why_none_validates(setup.config.plain["protocol"])
    found["note"] = "; ".join(filter(None, [found["note"], *_what_to_know(setup)]))
    tables = [table.assign(part=part) for part, table in {"valid": valid, "test": test}.items() if len(table)]
    write_csv(pd.concat(tables, ignore_index=True)[["part", *test.columns]], setup.folder / LOGITS)
    save_figure(_plot(setup, test, found["temperature"], tested["selected_by"]), setup.folder / RELIABILITY)
    write_json(found, setup.folder / CALIBRATION)


def _what_to_know(setup: Setup) -> list[str]:
    """Why the validation utterances may be easier than a stranger's."""
    frame, fold = setup.frame, setup.fold
    if not fold.valid:
        return []
    notes = []
    if setup.config.plain["selection"] == "valid":
        notes.append("the epoch was chosen on the same utterances")
    speakers = [set(frame["speaker"][frame["ID"].isin(part)]) - {""} for part in (fold.valid, fold.train)]
    if set.intersection(*speakers):
        notes.append("its speakers are trained on: what is said of strangers may still be too sure")
    return notes


def _plot(setup: Setup, test: pd.DataFrame, temperature: float | None, selected_by: str):
    """What the test utterances' posteriors are worth, as trained and with the temperature."""
    logits, true = logits_of(test, setup.classes)
    ways = {"as trained": 1.0} | ({} if temperature is None else {f"temperature {temperature:.3g}": temperature})
    scores = {way: utterance_scores(with_temperature(logits, t), true) for way, t in ways.items()}
    bins = {way: reliability_bins(each["confidence"], each["right"]) for way, each in scores.items()}
    plain, leaky = setup.config.plain, "" if setup.leak is None else ", LEAKY"
    where = f"{plain['corpus']}, {plain['protocol']} fold {setup.fold.name}{leaky}"
    return plot_reliability(bins, f"{where}\n{selected_by}: {len(test)} test utterances")


def in_words(calibration: dict | None) -> str:
    """What the console says of a run's calibration.

    Arguments
    ---------
    calibration : dict or None
        The content of its ``calibration.json``, None where there is none.

    Returns
    -------
    str

    Example
    -------
    >>> in_words({"temperature": None, "reason": "protocol half_session has no validation part"})
    'posteriors: not calibrated (protocol half_session has no validation part)'
    """
    if calibration is None:
        return "posteriors: not calibrated (the same command with --test_only tests once more and does it)"
    if calibration["temperature"] is None:
        return f"posteriors: not calibrated ({calibration['reason']})"
    said = f"posteriors: temperature {calibration['temperature']:.3g} from {calibration['n']} validation utterances"
    said += f" ({calibration['note']})" if calibration["note"] else ""
    figures = calibration["figures"].get("test", {})  # none of logits that are not finite
    ece = [f"{way} {found['ECE']:.1%}" for way, found in figures.items()]
    return "; ECE on the test utterances: ".join([said, *filter(None, [", ".join(ece)])])
