"""Fabricated run folders: what train.py leaves behind, without training."""

from pathlib import Path

import numpy as np
import pandas as pd

from speechbrain_ser.evaluation.metrics import SELECTIONS, metrics_by_text
from speechbrain_ser.files import write_csv, write_json

CLASSES = ["angry", "happy", "neutral", "sad"]
FOLDS = ["01F", "01M", "02F", "02M"]
SENTENCES = ["the boat left before sunrise", "bring me a glass of water", "it is late", "nobody was at home tonight"]


def predictions(
    fold: str, accuracy: float = 0.7, seed: int = 0, n: int = 24, asr: bool = True, mse: float | None = None
) -> pd.DataFrame:
    """A fold's predictions: the speaker is the fold; utterances and texts depend on it alone; errors around `mse`."""
    facts = np.random.default_rng(sum(map(ord, fold)))
    rng = np.random.default_rng([seed, int(accuracy * 1000), *map(ord, fold)])
    emotion = facts.choice(CLASSES, n)
    emotion[: len(CLASSES)] = CLASSES
    predicted = np.where(rng.random(n) < accuracy, emotion, rng.choice(CLASSES, n))
    text = facts.choice(SENTENCES, n)
    frame = pd.DataFrame({"ID": [f"{fold}_{k:03}" for k in range(n)], "speaker": fold, "emotion": emotion})
    frame = frame.assign(predicted=predicted, **{f"posterior_{c}": (predicted == c).astype(float) for c in CLASSES})
    frame["transcript"] = text
    if asr:
        frame["hypothesis"] = [" ".join(w for w in t.upper().split() if rng.random() < accuracy) for t in text]
    if mse is not None:
        frame["mse"] = rng.gamma(4, mse / 4, n)
    return frame.assign(text_heard=text != SENTENCES[3])


def epochs(accuracy: float, n_epochs: int = 3, asr: bool = True, mse: float | None = None) -> pd.DataFrame:
    """Figures that rise to `accuracy`, and an error that falls to `mse`."""
    frame = pd.DataFrame({"epoch": range(1, n_epochs + 1), "lr": 0.001, "train_loss": 1.0})
    for part in ("valid", "test"):
        frame[f"{part}_WA"] = np.linspace(0.25, accuracy, n_epochs)
        if asr:
            frame[f"{part}_WER"] = np.linspace(1.0, 1 - accuracy, n_epochs)
        if mse is not None:
            frame[f"{part}_MSE"] = np.linspace(10 * mse, mse, n_epochs)
        frame[f"{part}_confusion"] = "[[1, 0], [0, 1]]"
    return frame


def write_run(
    root: Path,
    fold: str,
    changed: dict | None = None,
    seed: int = 1,
    by_selection: dict[str, pd.DataFrame] | None = None,
    accuracy: float = 0.7,
    asr: bool = True,
    mse: float | None = None,
    seen: pd.DataFrame | None = None,
    **metrics,
) -> Path:
    """One finished run, as train.py writes it; keywords replace entries of metrics.json."""
    changed = changed or {}
    if by_selection is None:
        better = {"last": accuracy, "valid": accuracy, "test": min(accuracy + 0.1, 1)}
        by_selection = {s: predictions(fold, a, seed, asr=asr, mse=mse) for s, a in better.items()}
    first = next(iter(by_selection.values()))
    found = {
        "system": "cai_mtl",
        "corpus": "demo",
        "protocol": "speaker",
        "fold": fold,
        "folds": FOLDS,
        "seed": seed,
        "variant": ",".join(f"{k}={v}" for k, v in sorted(changed.items())) or "default",
        "changed": changed,
        "speaker_disjoint": True,
        "leak": None,
        "classes": CLASSES,
        "utterances": {"train": 72, "valid": 24, "seen": 0 if seen is None else len(seen), "test": len(first)},
        "n_epochs": 3,
        "selection": "last",
    } | metrics
    found["selections"] = {
        s: {"selected_by": SELECTIONS[s].words, "epoch": 3, **metrics_by_text(p, found["classes"])}
        for s, p in by_selection.items()
    }
    place = (found["system"], f"{found['corpus']}-{found['protocol']}", found["variant"], fold, str(seed))
    folder = root.joinpath(*place)
    folder.mkdir(parents=True)
    for selection, frame in by_selection.items():
        suffix = "" if selection == found["selection"] else f"_{selection}"
        write_csv(frame, folder / f"predictions{suffix}.csv")
    if seen is not None:
        write_csv(seen, folder / "predictions_seen.csv")
    write_csv(epochs(accuracy, asr=asr, mse=mse), folder / "epochs.csv")
    write_json({"fold": fold}, folder / "configuration.json")
    write_json(found, folder / "metrics.json")
    return folder


def write_results(root: Path, variants=(({}, 0.8), ({"alpha": "0"}, 0.6)), seeds=(1,), folds=FOLDS, **metrics) -> Path:
    """All folds of some variants, each given by its changed lines and its accuracy; alpha=0 has no ASR head."""
    for changed, accuracy in variants:
        for seed in seeds:
            for fold in folds:
                write_run(root, fold, changed, seed, accuracy=accuracy, asr=changed.get("alpha") != "0", **metrics)
    return root


def write_pretraining(root: Path, fold: str, finished: bool = True) -> Path:
    """A run of a first stage that recognises nothing, begun or finished."""
    folder = root.joinpath("hsu_pretrain", "demo-speaker", "default", fold, "1")
    folder.mkdir(parents=True)
    write_json({"fold": fold, "kind": "pretraining"}, folder / "configuration.json")
    (folder / "hyperparams.yaml").write_text("kind: pretraining\n")
    if finished:
        write_csv(pd.DataFrame({"epoch": [1, 2], "train_loss": [0.2, 0.1]}), folder / "epochs.csv")
        write_json({"system": "hsu_pretrain", "kind": "pretraining", "fold": fold, "seed": 1}, folder / "metrics.json")
    return folder
