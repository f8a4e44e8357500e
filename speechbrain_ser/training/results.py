"""From a trained Brain to the run's files: predictions, metrics, calibration, pictures, what the console says."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.train_logger import FileTrainLogger, TensorboardLogger, WandBLogger

from speechbrain_ser.data.protocols import PARTS, Fold, text_heard, why_none_validates
from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.evaluation.calibration import (
    CALIBRATION,
    FILES,
    LOGITS,
    RELIABILITY,
    calibrate,
    logit_table,
    logits_of,
    read_calibration,
    reliability_bins,
    utterance_scores,
    with_temperature,
)
from speechbrain_ser.evaluation.figures import (
    plot_confusion,
    plot_learning_curves,
    plot_pretraining_curves,
    plot_reliability,
    save_figure,
)
from speechbrain_ser.evaluation.metrics import SELECTIONS, metrics, metrics_by_text, speaker_accuracy
from speechbrain_ser.files import (
    cannot_be_written,
    write_csv,
    write_json,
)

if TYPE_CHECKING:
    from speechbrain_ser.training.run import Setup

# on its import SpeechBrain warns that it could not save images with torchvision, which nobody asked for
logging.getLogger("speechbrain.utils.train_logger").addFilter(lambda record: "torchvision" not in record.getMessage())


TRACKERS = ("tensorboard", "wandb")


LOGGED_PARTS = ("train", "valid", "test")


def make_loggers(output_folder: str, tracker: str | None) -> list[Callable[[dict, dict], None]]:
    """Functions that take (meta, {"train": figures, …}) after an epoch.

    Arguments
    ---------
    output_folder : str
        The run's folder.
    tracker : str, optional
        ``tensorboard`` or ``wandb``.

    Returns
    -------
    list of callable

    Raises
    ------
    UserError
        For an unknown tracker, or one that is not installed.
    """
    logs = [_log_to_file(FileTrainLogger(str(Path(output_folder) / "train_log.txt")))]
    if tracker:
        check_tracker(tracker)
        logs.append({"tensorboard": _tensorboard, "wandb": _wandb}[tracker](output_folder))
    return logs


def check_tracker(tracker: str | None) -> None:
    """Raise early where the tracker is unknown or its package is missing."""
    if not tracker:
        return
    if tracker not in TRACKERS:
        raise UserError(f"tracker: '{tracker}' is unknown{nearest(tracker, TRACKERS)}; known: {', '.join(TRACKERS)}")
    try:
        __import__(tracker)
    except ImportError:
        raise UserError(f'tracker: {tracker} is not installed: pip install "speechbrain-ser[track]"') from None


def _log_to_file(file_logger: FileTrainLogger) -> Callable:
    def log(meta: dict, parts: dict) -> None:
        texts = {p: f and {k: f"{v:.4g}" for k, v in f.items()} for p, f in parts.items()}
        try:
            file_logger.log_stats(meta, *(texts[p] for p in LOGGED_PARTS))
        except OSError as error:
            raise cannot_be_written(file_logger.save_file, error) from error

    return log


def _tensorboard(output_folder: str) -> Callable:
    board = TensorboardLogger(str(Path(output_folder) / "tensorboard"))

    def log(meta: dict, parts: dict) -> None:
        # SpeechBrain's logger counts epochs by itself from 0: a resumed run would start again
        done = meta["epoch"] - 1
        board.global_step = {"meta": done, **{p: dict.fromkeys(f or (), done) for p, f in parts.items()}}
        board.log_stats(meta, *(parts[p] for p in LOGGED_PARTS))
        board.writer.flush()  # else minutes later, and never in a killed process

    return log


def _wandb(output_folder: str) -> Callable:
    import wandb

    board = WandBLogger(wandb.init, dir=output_folder, project="speechbrain-ser", resume="allow")
    return lambda meta, parts: board.log_stats(meta, *(parts[p] for p in LOGGED_PARTS))


def calibrate_run(setup: Setup, valid: pd.DataFrame, test: pd.DataFrame, tested: dict) -> None:
    """Fit a temperature on the validation utterances; write it, the logits and a picture into the run's folder.

    Arguments
    ---------
    setup : Setup
        The run.
    valid, test : pandas.DataFrame
        Logits from :func:`speechbrain_ser.evaluation.calibration.logit_table`, at the epoch that was tested; the first
        may be empty.
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
        brain.evaluate(loaders["test"], max_key=SELECTIONS[selection].score)
        predictions = _predictions(brain, heard["test"])
        if selection == plain["selection"]:
            test = logit_table(frame, brain.logits, setup.classes)
        suffix = "" if selection == plain["selection"] else f"_{selection}"
        run_on_main(write_csv, [predictions, setup.folder / f"predictions{suffix}.csv"])
        selections[selection] = {
            "selected_by": SELECTIONS[selection].words,
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
    brain.evaluate(loaders["valid"], max_key=SELECTIONS[setup.config.plain["selection"]].score)
    return logit_table(setup.frame, brain.logits, setup.classes)


def _test_second(setup: Setup, brain, loaders: dict, selection: str, suffix: str, heard: pd.Series) -> dict:
    """The held-out utterances of the second corpus."""
    brain.evaluate(loaders["second"], max_key=SELECTIONS[selection].score)
    predictions = _predictions(brain, heard)
    run_on_main(write_csv, [predictions, setup.folder / f"predictions_second{suffix}.csv"])
    return metrics(predictions, setup.classes)


def _test_speakers(setup: Setup, brain, loaders: dict, selection: str, suffix: str) -> float | str:
    """Speaker accuracy on held-out utterances of the training speakers."""
    if not setup.fold.seen:
        return "none"
    brain.evaluate(loaders["seen"], max_key=SELECTIONS[selection].score)
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


TESTED_PARTS = {"test": "test speakers", "seen": "known speakers, held out"}


def evaluate_and_write_pretraining(setup: Setup, brain, loaders: dict) -> None:
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
        for part in (p for p in TESTED_PARTS if p in loaders):
            brain.evaluate(loaders[part], max_key=SELECTIONS[selection].score)
            name = "predictions" if part == "test" else f"predictions_{part}"
            run_on_main(write_csv, [brain.predictions(), setup.folder / f"{name}{suffix}.csv"])
            found[part] = _figures(brain.predictions(), part == "seen" and brain.has_speaker_task)
        selections[selection] = {"selected_by": SELECTIONS[selection].words, "epoch": brain.tested_epoch, **found}
    results = {"kind": "pretraining", **run_facts(setup), "selections": selections}
    run_on_main(_finish_pretraining, [setup, results])


def _finish_pretraining(setup: Setup, results: dict) -> None:
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


def print_results_pretraining(setup: Setup) -> None:
    """The run's figures and where its files are, on the console."""
    results = json.loads((setup.folder / "metrics.json").read_text(encoding="utf-8"))
    rows = []
    for found in results["selections"].values():
        for part in (p for p in TESTED_PARTS if p in found):
            figures = found[part]
            row = {"selection": found["selected_by"], "epoch": found["epoch"], "utterances of": TESTED_PARTS[part]}
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
