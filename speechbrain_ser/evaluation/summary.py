"""What the files in a run's folder say of it, for the console."""

import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from speechbrain_ser.evaluation.calibration import FILES, read_calibration
from speechbrain_ser.files import read_json

PRETRAINING_PARTS = {"test": "test speakers", "seen": "known speakers, held out"}


def summary(folder: Path) -> str:
    """Return the figures of a finished run and where its files are, in words."""
    results = read_json(folder / "metrics.json")
    is_pretraining = results.get("kind") == "pretraining"
    where = f"{results['corpus']}, protocol {results['protocol']}, fold {results['fold']}, seed {results['seed']}"
    lines = ["", f"{results['system']}{' (pre-training)' if is_pretraining else ''}: {where}"]
    lines += [f"speaker-disjoint: {'yes' if results['speaker_disjoint'] else 'NO, LEAKY: ' + results['leak']}"]
    rows = _pretraining_rows(results) if is_pretraining else _recognition_rows(results)
    table = pd.DataFrame(rows).fillna("").to_string(index=False)
    if is_pretraining:
        lines += [table]
    else:
        share = results["selections"][results["selection"]]["share_text_heard"]
        heard = f"{share:.0%} of the test utterances say a text heard in training"
        lines += [f"{heard}: WER there is telling known texts apart", table, in_words(read_calibration(folder))]
    names = ("metrics.json", "predictions.csv", "epochs.csv", "confusion.png", "learning_curves.png", "reconstructions")
    found = [f"  {name}" for name in (*names, *FILES) if (folder / name).exists()]
    return "\n".join([*lines, "", f"results: {folder}{os.sep}", *found])


def _recognition_rows(results: dict) -> Iterator[dict]:
    for found in results["selections"].values():
        chosen = {"selection": found["selected_by"], "epoch": found["epoch"]}
        parts = {part.replace("_", " "): found[part] for part in ("all", "text_heard", "text_disjoint")}
        if "second" in found:
            parts[results["second_corpus"]] = found["second"]
        for part, figures in parts.items():
            if figures == "none":
                continue
            row = {**chosen, "test utterances": part, "n": figures["n"]}
            row |= {name: f"{figures[name]:.1%}" for name in ("WA", "UA", "F1")}
            row["WER"] = "" if figures.get("WER") is None else f"{figures['WER']:.1%}"
            row |= {"MSE": f"{figures['MSE']:.1e}"} if "MSE" in figures else {}
            for name, value in found.items() if part == "all" else ():
                if name.endswith("_accuracy") and value != "none":
                    label = name.removesuffix("_accuracy").replace("seen_speaker", "speaker (seen)")
                    row[label] = f"{value:.1%}"
            yield row


def _pretraining_rows(results: dict) -> Iterator[dict]:
    for found in results["selections"].values():
        for part in (p for p in PRETRAINING_PARTS if p in found):
            figures = found[part]
            row = {"selection": found["selected_by"], "epoch": found["epoch"]}
            row |= {"utterances of": PRETRAINING_PARTS[part], "n": figures["n"], "MSE": f"{figures['MSE']:.2e}"}
            row["of the mean spectrum"] = f"{figures['MSE_of_mean_spectrum']:.2e}"
            if "speaker_accuracy" in figures:
                row["speaker"] = f"{figures['speaker_accuracy']:.1%}"
            yield row


def in_words(calibration: dict | None) -> str:
    """Return what a run's ``calibration.json`` says; None is for one that is missing."""
    if calibration is None:
        return "posteriors: not calibrated (the same command with --test_only tests once more and does it)"
    if calibration["temperature"] is None:
        return f"posteriors: not calibrated ({calibration['reason']})"
    said = f"posteriors: temperature {calibration['temperature']:.3g} from {calibration['n']} validation utterances"
    said += f" ({calibration['note']})" if calibration["note"] else ""
    figures = calibration["figures"].get("test", {})  # none of logits that are not finite
    ece = [f"{way} {found['ECE']:.1%}" for way, found in figures.items()]
    return "; ECE on the test utterances: ".join([said, *filter(None, [", ".join(ece)])])
