"""From a trained Brain to the run's files: predictions, metrics, pictures, and what the console says."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pandas as pd
from speechbrain.utils.distributed import run_on_main

from speechbrain_ser.calibrating import calibrate_run, in_words
from speechbrain_ser.calibration import FILES, logit_table, read_calibration
from speechbrain_ser.evaluation.figures import plot_confusion, plot_learning_curves, save_figure
from speechbrain_ser.evaluation.metrics import metrics, metrics_by_text, speaker_accuracy
from speechbrain_ser.files import write_csv, write_json
from speechbrain_ser.protocols import PARTS, Fold, text_heard

if TYPE_CHECKING:
    from speechbrain_ser.preparation import Setup

SELECTIONS = {"last": None, "valid": "valid_score", "test": "test_score"}  # name -> checkpoint key
SELECTION_NAMES = {"last": "last epoch", "valid": "best on validation", "test": "best on TEST (oracle)"}


def selections_of(plain: dict, fold: Fold) -> list[str]:
    """The selections one training gives."""
    every = plain["test_every_epoch"]
    available = {"last": True, "valid": bool(fold.valid) and every, "test": every}
    return [s for s in SELECTIONS if available[s] or s == plain["selection"]]


def evaluate_and_write(setup: Setup, brain, loaders: dict) -> None:
    """Test every selection this training gives, calibrate the configured one, and write predictions and metrics.

    Arguments
    ---------
    setup : Setup
        The run.
    brain : SERBrain
        Trained.
    loaders : dict of str to DataLoader
        ``test``, ``valid`` where the fold has such a part, and ``seen`` for the speaker task.
    """
    plain, frame, fold = setup.config.plain, setup.frame, setup.fold
    heard = {part: text_heard(frame, fold, part) for part in ("test", "second")}
    selections = {}
    for selection in selections_of(plain, fold):
        brain.evaluate(loaders["test"], max_key=SELECTIONS[selection])
        predictions = _predictions(brain, heard["test"])
        if selection == plain["selection"]:
            test = logit_table(frame, brain.logits, setup.classes)
        suffix = "" if selection == plain["selection"] else f"_{selection}"
        run_on_main(write_csv, [predictions, setup.folder / f"predictions{suffix}.csv"])
        selections[selection] = {
            "selected_by": SELECTION_NAMES[selection],
            "epoch": brain.tested_epoch,
            **metrics_by_text(predictions, setup.classes),
        }
        if fold.second:
            selections[selection]["second"] = _test_second(setup, brain, loaders, selection, suffix, heard["second"])
        if brain.has_speaker_task:
            selections[selection]["seen_speaker_accuracy"] = _test_speakers(setup, brain, loaders, selection, suffix)
    results = {**run_facts(setup), **brain.facts(), "selections": selections}
    run_on_main(_finish, [setup, results, _valid_logits(setup, brain, loaders), test])


def _finish(setup: Setup, results: dict, valid: pd.DataFrame, test: pd.DataFrame) -> None:
    _pictures(setup, results)
    calibrate_run(setup, valid, test, results["selections"][results["selection"]])
    write_json(results, setup.folder / "metrics.json")  # last: its presence says that the run is finished


def run_facts(setup: Setup) -> dict:
    """What a run's metrics.json says besides its figures: no times, no absolute paths."""
    plain, leak = setup.config.plain, setup.leak
    return {
        "system": setup.config.system,
        "corpus": plain["corpus"],
        "second_corpus": plain["second_corpus"],
        "protocol": plain["protocol"],
        "fold": setup.fold.name,
        "folds": setup.folds,
        "seed": plain["seed"],
        "variant": setup.config.variant(),
        "changed": setup.config.changed(),
        "speaker_disjoint": leak is None,
        "leak": leak,
        "classes": setup.classes,
        "utterances": {p: len(getattr(setup.fold, p)) for p in PARTS},
        "n_epochs": plain["n_epochs"],
        "selection": plain["selection"],
    }


def _predictions(brain, heard: pd.Series) -> pd.DataFrame:
    """Of the part that was just tested, saying which of its texts were also said in training."""
    # a speaker of a test part is recognised only where a leaky protocol trains on him: see `seen`
    predictions = brain.predictions().drop(columns="speaker_predicted", errors="ignore")
    predictions["text_heard"] = predictions["ID"].map(heard)
    return predictions


def _valid_logits(setup: Setup, brain, loaders: dict) -> pd.DataFrame:
    """Logits of the validation utterances, at the epoch that the configured selection chose."""
    if not setup.fold.valid:
        return logit_table(setup.frame, {}, setup.classes)
    brain.evaluate(loaders["valid"], max_key=SELECTIONS[setup.config.plain["selection"]])
    return logit_table(setup.frame, brain.logits, setup.classes)


def _test_second(setup: Setup, brain, loaders: dict, selection: str, suffix: str, heard: pd.Series) -> dict:
    """The held-out utterances of the second corpus."""
    brain.evaluate(loaders["second"], max_key=SELECTIONS[selection])
    predictions = _predictions(brain, heard)
    run_on_main(write_csv, [predictions, setup.folder / f"predictions_second{suffix}.csv"])
    return metrics(predictions, setup.classes)


def _test_speakers(setup: Setup, brain, loaders: dict, selection: str, suffix: str) -> float | str:
    """Speaker accuracy on held-out utterances of the training speakers."""
    if not setup.fold.seen:
        return "none"
    brain.evaluate(loaders["seen"], max_key=SELECTIONS[selection])
    predictions = brain.predictions()[["ID", "speaker", "speaker_predicted"]]
    run_on_main(write_csv, [predictions, setup.folder / f"predictions_seen{suffix}.csv"])
    return speaker_accuracy(predictions)


def _pictures(setup: Setup, results: dict) -> None:
    chosen = results["selections"][results["selection"]]
    where = f"{results['corpus']}, {results['protocol']} fold {results['fold']}"
    leaky = "" if results["speaker_disjoint"] else ", LEAKY"
    title = f"{where}{leaky}\n{chosen['selected_by']}: WA {chosen['all']['WA']:.1%}, UA {chosen['all']['UA']:.1%}"
    save_figure(plot_confusion(chosen["all"]["confusion"], setup.classes, title), setup.folder / "confusion.png")
    epochs = pd.read_csv(setup.folder / "epochs.csv")
    save_figure(plot_learning_curves(epochs, where + leaky), setup.folder / "learning_curves.png")


def print_results(setup: Setup) -> None:
    """The run's figures and where its files are, on the console."""
    results = json.loads((setup.folder / "metrics.json").read_text(encoding="utf-8"))
    rows = []
    for found in results["selections"].values():
        for part in ("all", "text_heard", "text_disjoint"):
            figures = found[part]
            if figures == "none":
                continue
            row = {
                "selection": found["selected_by"],
                "epoch": found["epoch"],
                "test utterances": part.replace("_", " "),
            }
            row |= {"n": figures["n"], **{m: f"{figures[m]:.1%}" for m in ("WA", "UA", "F1")}}
            wer = figures.get("WER")
            row["WER"] = "" if wer is None else f"{wer:.1%}"
            if "MSE" in figures:
                row["MSE"] = f"{figures['MSE']:.1e}"
            if part == "all" and (accuracy := found.get("seen_speaker_accuracy", "none")) != "none":
                row["speaker (seen)"] = f"{accuracy:.1%}"
            rows.append(row)
        if second := found.get("second"):
            row = {"selection": found["selected_by"], "epoch": found["epoch"], "n": second["n"]}
            row |= {"test utterances": results["second_corpus"], **{m: f"{second[m]:.1%}" for m in ("WA", "UA", "F1")}}
            rows.append(row)
    where = f"{results['corpus']}, protocol {results['protocol']}, fold {results['fold']}, seed {results['seed']}"
    share = results["selections"][results["selection"]]["share_text_heard"]
    print(f"\n{results['system']}: {where}")
    print(f"speaker-disjoint: {'yes' if results['speaker_disjoint'] else 'NO, LEAKY: ' + results['leak']}")
    print(f"{share:.0%} of the test utterances say a text heard in training: WER there is telling known texts apart")
    print(pd.DataFrame(rows).fillna("").to_string(index=False))
    print(in_words(read_calibration(setup.folder)))
    print(f"\nresults: {setup.folder}{os.sep}")
    for name in ("metrics.json", "predictions.csv", "epochs.csv", "confusion.png", "learning_curves.png"):
        print(f"  {name}")
    for name in (n for n in FILES if (setup.folder / n).is_file()):
        print(f"  {name}")
