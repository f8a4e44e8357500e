"""From a pre-trained Brain to its run's files: errors of reconstruction, speakers told by their timbre, pictures."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pandas as pd
from speechbrain.utils.distributed import run_on_main

from speechbrain_ser.evaluation.figures import save_figure
from speechbrain_ser.evaluation.metrics import speaker_accuracy
from speechbrain_ser.evaluation.pretraining_figures import plot_pretraining_curves
from speechbrain_ser.files import write_csv, write_json
from speechbrain_ser.results import SELECTION_NAMES, SELECTIONS, run_facts, selections_of

if TYPE_CHECKING:
    from speechbrain_ser.preparation import Setup

PARTS = {"test": "test speakers", "seen": "known speakers, held out"}


def evaluate_and_write(setup: Setup, brain, loaders: dict) -> None:
    """Test every selection this training gives, and write predictions, metrics and pictures.

    Arguments
    ---------
    setup : Setup
        The run.
    brain : SERBrain
        Trained; its predictions have columns ID, speaker, mse, mse_of_mean and maybe speaker_predicted.
    loaders : dict of str to DataLoader
        ``test``, and ``seen`` where the fold has such a part.
    """
    selections = {}
    for selection in selections_of(setup.config.plain, setup.fold):
        suffix = "" if selection == setup.config.plain["selection"] else f"_{selection}"
        found = {}
        for part in (p for p in PARTS if p in loaders):
            brain.evaluate(loaders[part], max_key=SELECTIONS[selection])
            name = "predictions" if part == "test" else f"predictions_{part}"
            run_on_main(write_csv, [brain.predictions(), setup.folder / f"{name}{suffix}.csv"])
            found[part] = _figures(brain.predictions(), part == "seen" and brain.has_speaker_task)
        selections[selection] = {"selected_by": SELECTION_NAMES[selection], "epoch": brain.tested_epoch, **found}
    results = {"kind": "pretraining", **run_facts(setup), "selections": selections}
    run_on_main(_finish, [setup, results])


def _finish(setup: Setup, results: dict) -> None:
    leaky = "" if results["speaker_disjoint"] else ", LEAKY"
    title = f"{results['corpus']}, {results['protocol']} fold {results['fold']}{leaky}"
    curves = plot_pretraining_curves(pd.read_csv(setup.folder / "epochs.csv"), title)
    save_figure(curves, setup.folder / "learning_curves.png")
    write_json(results, setup.folder / "metrics.json")  # last: its presence says that the run is finished


def _figures(predictions: pd.DataFrame, tells_speakers: bool) -> dict:
    """Mean errors; the speaker's accuracy where the speakers are known."""
    figures = {"n": len(predictions), "MSE": float(predictions["mse"].mean())}
    figures["MSE_of_mean_spectrum"] = float(predictions["mse_of_mean"].mean())
    return figures | ({"speaker_accuracy": speaker_accuracy(predictions)} if tells_speakers else {})


def print_results(setup: Setup) -> None:
    """The run's figures and where its files are, on the console."""
    results = json.loads((setup.folder / "metrics.json").read_text(encoding="utf-8"))
    rows = []
    for found in results["selections"].values():
        for part in (p for p in PARTS if p in found):
            figures = found[part]
            row = {"selection": found["selected_by"], "epoch": found["epoch"], "utterances of": PARTS[part]}
            row |= {"n": figures["n"], "MSE": f"{figures['MSE']:.2e}"}
            row["of the mean spectrum"] = f"{figures['MSE_of_mean_spectrum']:.2e}"
            if "speaker_accuracy" in figures:
                row["speaker"] = f"{figures['speaker_accuracy']:.1%}"
            rows.append(row)
    where = f"{results['corpus']}, protocol {results['protocol']}, fold {results['fold']}, seed {results['seed']}"
    print(f"\n{results['system']} (pre-training): {where}")
    print(f"speaker-disjoint: {'yes' if results['speaker_disjoint'] else 'NO, LEAKY: ' + results['leak']}")
    print(pd.DataFrame(rows).fillna("").to_string(index=False))
    print(f"\nresults: {setup.folder}{os.sep}")
    for name in ("metrics.json", "predictions.csv", "epochs.csv", "learning_curves.png", "reconstructions/"):
        print(f"  {name}")
