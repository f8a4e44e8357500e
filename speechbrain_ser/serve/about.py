"""What the page says of its model: where it comes from, how well it does there, and what it cannot do."""

import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

import pandas as pd
import yaml

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
    said = f"accuracy (WA) {_percent(figures['all']['WA'])}{_interval(predictions, classes)}"
    if transcribes and figures["all"].get("WER") is not None:
        said += f", WER {_percent(figures['all']['WER'])}"
    n = figures["all"]["n"]
    speakers = "" if predictions is None else f" of {_count(predictions['speaker'].nunique(), 'speaker')}"
    heard = "never heard in training" if metrics["speaker_disjoint"] else f"in training as well ({metrics['leak']})"
    corpora = " and ".join(c for c in (metrics["corpus"], metrics.get("second_corpus")) if c)
    return (
        f"**The model** is `{metrics['system']}`, trained on {corpora}; it {_skills(classes, transcribes)}. "
        f"Tested on {n} utterances{speakers} {heard} (protocol `{metrics['protocol']}`, fold {metrics['fold']}, "
        f"{figures['selected_by']}): {said}.\n\n**Its limits.** {LIMITS}"
    )


def about_model(model: str | os.PathLike, classes: Sequence[str], transcribes: bool) -> str:
    """The same, of a run's folder, or of a package's, by its model card.

    Arguments
    ---------
    model : str or os.PathLike
        The folder; that of a package may lack its card, and a name on a hub is no folder: little is said then.
    classes, transcribes
        See :func:`about`.

    Returns
    -------
    str
        Two paragraphs of Markdown.
    """
    folder = Path(model)
    if not (folder / "metrics.json").is_file():
        return _about_package(folder, classes, transcribes)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    file = folder / "predictions.csv"
    predictions = pd.read_csv(file, dtype=str, keep_default_na=False) if file.is_file() else None
    return about(metrics, predictions, classes, transcribes)


def _about_package(folder: Path, classes: Sequence[str], transcribes: bool) -> str:
    said = f"**The model** is a package that {_skills(classes, transcribes)}"
    try:
        _, front, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        (result,) = yaml.safe_load(front)["model-index"][0]["results"]
        figures = ", ".join(f"{_plain(m['name'])} {_percent(m['value'])}" for m in result["metrics"][:9])
        said += f". Tested on {_plain(result['dataset']['name'])}: {figures}; intervals and more are in its README.md"
    except (OSError, ValueError, KeyError, TypeError, IndexError, yaml.YAMLError):
        said += ". Its model card says how well"
    return f"{escape(said, quote=False)}.\n\n**Its limits.** {LIMITS}"


def _plain(text: object) -> str:
    """Short text, and nothing else that a stranger's YAML can be."""
    if not isinstance(text, str) or len(text) > 200:
        raise TypeError("expected short text")
    return text


def _skills(classes: Sequence[str], transcribes: bool) -> str:
    also = " and transcribes" if transcribes else ""
    return f"tells {len(classes)} emotions apart ({', '.join(classes)}){also}"


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
