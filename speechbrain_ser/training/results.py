"""From a Brain to the run's files: an epoch's figures; predictions, metrics, calibration and pictures in the end."""

import uuid
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import speechbrain as sb
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.train_logger import FileTrainLogger, TensorboardLogger, WandBLogger

from speechbrain_ser.data.protocols import PARTS, why_none_validates
from speechbrain_ser.evaluation.calibration import (
    CALIBRATION,
    LOGITS,
    RELIABILITY,
    calibrate,
    logit_table,
    logits_of,
    reliability_bins,
    utterance_scores,
    with_temperature,
)
from speechbrain_ser.evaluation.controls import CONTROLS_FILE, control_predictions
from speechbrain_ser.evaluation.figures import (
    plot_confusion,
    plot_learning_curves,
    plot_pretraining_curves,
    plot_reliability,
    save_figure,
)
from speechbrain_ser.evaluation.metrics import SELECTIONS
from speechbrain_ser.files import cannot_be_written, read_csv, read_json, write_csv, write_json, write_text
from speechbrain_ser.training.run import Run

WANDB_ID, LONGEST = "wandb_id.txt", 128  # characters of a name there
TRACKED = ("train", "valid", "test")  # parts, in the order of SpeechBrain's loggers

# ------------------------------------------------------------------ after an epoch


def make_loggers(folder: Path, tracker: str | None) -> list[Callable[[dict, dict], None]]:
    """Return functions that take (meta, {"train": figures, …}) after an epoch: train_log.txt's and the tracker's."""
    trackers = {"tensorboard": _tensorboard, "wandb": _wandb}
    return [_log_to_file(folder), *([trackers[tracker](folder)] if tracker else [])]


def _log_to_file(folder: Path) -> Callable:
    logger = FileTrainLogger(str(folder / "train_log.txt"))

    def log(meta: dict, parts: dict) -> None:
        texts = {p: f and {k: f"{v:.4g}" for k, v in f.items()} for p, f in parts.items()}
        try:
            logger.log_stats(meta, *(texts[p] for p in TRACKED))
        except OSError as error:
            raise cannot_be_written(logger.save_file, error) from error

    return log


def _tensorboard(folder: Path) -> Callable:
    board = TensorboardLogger(str(folder / "tensorboard"))

    def log(meta: dict, parts: dict) -> None:
        # SpeechBrain's logger counts epochs by itself from 0: a resumed run would start again
        done = meta["epoch"] - 1
        board.global_step = {"meta": done, **{p: dict.fromkeys(f or (), done) for p, f in parts.items()}}
        board.log_stats(meta, *(parts[p] for p in TRACKED))
        board.writer.flush()  # else minutes later, and never in a killed process

    return log


def _wandb(folder: Path) -> Callable:
    import wandb

    path, configuration = folder / WANDB_ID, folder / "configuration.json"
    if not path.is_file():  # else a training that goes on
        write_text(uuid.uuid4().hex, path)
    *group, fold, seed = folder.absolute().parts[-5:]
    about = {"name": f"{group[-1]} {fold} {seed}"[-LONGEST:], "group": "/".join(group)[:LONGEST]}
    about["config"] = read_json(configuration) if configuration.is_file() else {}
    where = {"dir": folder, "project": "speechbrain-ser", "id": path.read_text(encoding="utf-8"), "resume": "allow"}
    board = WandBLogger(wandb.init, **where, **about)
    return lambda meta, parts: board.log_stats(meta, *(parts[p] for p in TRACKED))


# ------------------------------------------------------------------ after training


def evaluate_and_write(brain: sb.Brain) -> None:
    """Test every selection this training gives, calibrate the configured one, and write predictions and metrics.

    The Brain (a ``SERBrain``) says which parts are tested (``tested_parts``) and what is said of them (``table``,
    ``report``).
    """
    run: Run = brain.run
    chosen, selections = run.config.plain["selection"], {}
    for selection in run.selections:
        suffix, tables = "" if selection == chosen else f"_{selection}", {}
        for part in (p for p in brain.tested_parts if p in brain.loaders):
            brain.evaluate(brain.loaders[part], max_key=SELECTIONS[selection].score)
            tables[part] = brain.table(part)
            name = "predictions" if part == "test" else f"predictions_{part}"
            run_on_main(write_csv, [tables[part], run.folder / f"{name}{suffix}.csv"])
            if part == "test" and selection == chosen:
                test_logits, predictions = brain.logits, tables[part]
        found = {"selected_by": SELECTIONS[selection].words, "epoch": brain.tested_epoch}
        selections[selection] = found | brain.report(tables)
    valid_logits = {}
    if run.recognises and run.fold.valid:
        brain.evaluate(brain.loaders["valid"], max_key=SELECTIONS[chosen].score)
        valid_logits = brain.logits
    if run.recognises and run.config.plain["controls"]:
        run_on_main(_write_controls, [run, predictions])
    results = {**_facts(run), **brain.facts(), "selections": selections}
    run_on_main(_finish, [run, results, valid_logits, test_logits])


def _write_controls(run: Run, predictions: pd.DataFrame) -> None:
    test = run.part("test").loc[predictions["ID"]]
    found = control_predictions(run.labelled("train"), test, predictions.get("hypothesis"))
    write_csv(found, run.folder / CONTROLS_FILE)


def _facts(run: Run) -> dict:
    """What metrics.json says besides figures: no times, no absolute paths."""
    plain, leak = run.config.plain, run.leak
    return {
        **({"kind": "pretraining"} if run.is_pretraining else {}),
        "system": run.config.system,
        "corpus": run.config.corpus,
        "second_corpus": " and ".join(run.config.seconds) or None,
        "protocol": plain["protocol"],
        "fold": run.fold.name,
        "folds": run.folds,
        "seed": plain["seed"],
        "variant": run.config.variant(),
        "changed": run.config.changed(),
        "speaker_disjoint": leak is None,
        "leak": leak,
        **({"never_trained": run.never_trained} if run.never_trained else {}),
        "texts": run.texts,
        "classes": run.classes,
        "utterances": {p: len(getattr(run.fold, p)) for p in PARTS},
        "data": run.composition(),
        **{key: plain[key] for key in ("n_epochs", "selection")},
    }


def _finish(run: Run, results: dict, valid_logits: dict, test_logits: dict) -> None:
    if len(epochs := read_csv(run.folder / "epochs.csv")) > 1:  # one is no curve
        curves = (plot_pretraining_curves if run.is_pretraining else plot_learning_curves)(epochs, _where(run))
        save_figure(curves, run.folder / "learning_curves.png")
    if run.recognises:
        tested = results["selections"][results["selection"]]
        figures = tested["all"]
        title = f"{_where(run)}\n{tested['selected_by']}: WA {figures['WA']:.1%}, UA {figures['UA']:.1%}"
        save_figure(plot_confusion(figures["confusion"], run.classes, title), run.folder / "confusion.png")
        _calibrate(run, valid_logits, test_logits, tested)
    write_json(results, run.folder / "metrics.json")  # last: its presence says that the run is finished


def _where(run: Run) -> str:
    plain, leaky = run.config.plain, "" if run.leak is None else ", LEAKY"
    return f"{run.config.corpus}, {plain['protocol']} fold {run.fold.name}{leaky}"


def _calibrate(run: Run, valid_logits: dict, test_logits: dict, tested: dict) -> None:
    """Fit a temperature on the validation utterances; write it, the logits and a picture into the run's folder."""
    plain = run.config.plain
    parts = {"valid": valid_logits, "test": test_logits}
    tables = {part: logit_table(run.frame, logits, run.classes) for part, logits in parts.items()}
    found = {"temperature": None, "epoch": tested["epoch"], "selection": plain["selection"]}
    found |= calibrate(tables["valid"], tables["test"], run.classes)
    if not run.fold.valid:
        found["reason"] = why_none_validates(plain["protocol"])
    found["note"] = "; ".join(filter(None, [found["note"], *_what_to_know(run)]))
    labelled = pd.concat([t.assign(part=part) for part, t in tables.items() if len(t)], ignore_index=True)
    write_csv(labelled[["part", *tables["test"].columns]], run.folder / LOGITS)
    logits, true = logits_of(tables["test"], run.classes)
    temperature = found["temperature"]
    ways = {"as trained": 1.0} | ({} if temperature is None else {f"temperature {temperature:.3g}": temperature})
    scores = {way: utterance_scores(with_temperature(logits, t), true) for way, t in ways.items()}
    bins = {way: reliability_bins(each["confidence"], each["right"]) for way, each in scores.items()}
    title = f"{_where(run)}\n{tested['selected_by']}: {len(true)} test utterances"
    save_figure(plot_reliability(bins, title), run.folder / RELIABILITY)
    write_json(found, run.folder / CALIBRATION)


def _what_to_know(run: Run) -> list[str]:
    """Why the validation utterances may be easier than a stranger's."""
    notes = []
    if run.fold.valid and run.config.plain["selection"] == "valid":
        notes.append("the epoch was chosen on the same utterances")
    speakers = [set(run.part(part)["speaker"]) - {""} for part in ("valid", "train")]
    if set.intersection(*speakers):
        notes.append("its speakers are trained on: what is said of strangers may still be too sure")
    return notes
