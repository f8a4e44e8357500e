"""What the page says of its model: where it comes from, how well it does there, and what it cannot do."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from speechbrain_ser.evaluation.intervals import speaker_interval, speaker_sums

LIMITS = (
    "It tells what speech sounds like to those who labelled its corpus, not what somebody feels. Other languages, "
    "microphones, ages and situations than that corpus's make it err more often, also where it sounds sure. Do not "
    "judge people by it."
)


def about(metrics: dict, predictions: pd.DataFrame | None, classes: Sequence[str], transcribes: bool) -> str:
    """What a model is, as Markdown.

    Arguments
    ---------
    metrics : dict
        The run's ``metrics.json``.
    predictions : pandas.DataFrame or None
        Its ``predictions.csv``: the interval comes from it.
    classes : sequence of str
        What it tells apart.
    transcribes : bool
        Whether it transcribes as well.

    Returns
    -------
    str
        Two paragraphs.
    """
    figures = metrics["selections"][metrics["selection"]]
    said = f"WA {_percent(figures['all']['WA'])}{_interval(predictions, classes)}"
    if transcribes and figures["all"].get("WER") is not None:
        said += f", WER {_percent(figures['all']['WER'])}"
    n = figures["all"]["n"]
    speakers = "" if predictions is None else f" of {_count(predictions['speaker'].nunique(), 'speaker')}"
    heard = "never heard in training" if metrics["speaker_disjoint"] else f"in training as well ({metrics['leak']})"
    return (
        f"**The model** is `{metrics['system']}`, trained on {metrics['corpus']} to tell {len(classes)} emotions apart "
        f"({', '.join(classes)}){' and to transcribe' if transcribes else ''}. Tested on {n} utterances{speakers} "
        f"{heard} (protocol `{metrics['protocol']}`, fold {metrics['fold']}, {figures['selected_by']}): {said}.\n\n"
        f"**Its limits.** {LIMITS}"
    )


def about_run(folder: Path, classes: Sequence[str], transcribes: bool) -> str:
    """The same, from a run's folder."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    file = folder / "predictions.csv"
    predictions = pd.read_csv(file, dtype=str, keep_default_na=False) if file.is_file() else None
    return about(metrics, predictions, classes, transcribes)


def about_package(name: str, classes: Sequence[str], transcribes: bool) -> str:
    """The same of a package, whose card is not read: it may say, and be, anything."""
    return (
        f"**The model** is the package `{Path(name).name}`, which tells {len(classes)} emotions apart "
        f"({', '.join(classes)}){' and transcribes' if transcribes else ''}. What it was trained on and how well it "
        f"does there, its model card says (`README.md` in the package).\n\n**Its limits.** {LIMITS}"
    )


def about_model(model: str, classes: Sequence[str], transcribes: bool) -> str:
    """The same of whatever `--model` names."""
    if (Path(model) / "metrics.json").is_file():
        return about_run(Path(model), classes, transcribes)
    return about_package(model, classes, transcribes)


def _interval(predictions: pd.DataFrame | None, classes: Sequence[str]) -> str:
    if predictions is None:
        return ""
    ends = speaker_interval(speaker_sums(predictions[["speaker", "emotion", "predicted"]], classes)["WA"])
    if ends is None:
        return " (one speaker: no interval)"
    return f" (95 % interval over speakers: {_percent(ends.low)} to {_percent(ends.high)})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}{'' if n == 1 else 's'}"
