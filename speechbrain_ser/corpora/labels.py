"""From a corpus's emotions to the classes of an experiment: choosing and merging."""

import logging
from collections.abc import Iterable, Mapping

import pandas as pd

from .errors import CorpusError, Offenders, nearest
from .registry import CORPORA, corpus_module

REST = "*"  # the rule for every emotion that has none of its own

logger = logging.getLogger(__name__)


def apply_labels(frame: pd.DataFrame, labels: Mapping[str, str | None] | Iterable[str] | None = None) -> pd.DataFrame:
    """Keeps the utterances of the wanted emotions and gives them their class names.

    Arguments
    ---------
    frame : pandas.DataFrame
        A manifest.
    labels : mapping, list or None
        Emotion -> class name, or -> None, which leaves its utterances out; the key "*" is the rule for all
        emotions that are not listed. A list of emotions keeps their names; no other emotion may occur then.
        None takes the corpus's own default.

    Returns
    -------
    pandas.DataFrame
        The chosen rows with class names in `emotion`, numbered from 0.

    Raises
    ------
    CorpusError
        Emotions that `labels` says nothing about, emotions in `labels` that the corpus does not know, or
        nothing left: each with its count, some IDs and the nearest known name.

    Example
    -------
    >>> frame = pd.DataFrame(
    ...     {"ID": ["a", "b", "c"], "emotion": ["happy", "excited", "fear"], "corpus": "iemocap"}
    ... )
    >>> list(apply_labels(frame, {"happy": "joy", "excited": "joy", "*": None})["emotion"])
    ['joy', 'joy']
    >>> list(apply_labels(frame)["emotion"])
    ['happy', 'happy']
    """
    if labels is None:
        parts = [_apply(part, default_labels(corpus)) for corpus, part in frame.groupby("corpus", sort=False)]
        chosen = pd.concat(parts).sort_index() if parts else frame
    else:
        chosen = _apply(frame, labels)
    if chosen.empty:
        raise CorpusError(f"no utterance has one of the wanted emotions {_names(labels)}; found: {_found(frame)}")
    return chosen.reset_index(drop=True)


def default_labels(corpus: str) -> dict[str, str | None] | None:
    """What a corpus's emotions are called when nothing else is asked for.

    Arguments
    ---------
    corpus : str
        Its name.

    Returns
    -------
    dict or None
        Emotion -> class name; None keeps whatever is found.

    Example
    -------
    >>> default_labels("iemocap")["excited"]
    'happy'
    """
    return corpus_module(corpus).DEFAULT_LABELS


def _apply(frame, labels):
    if labels is None:
        return frame
    rules = _rules(labels)
    _refuse_uncovered(frame, rules)
    _refuse_unknown(frame, rules)
    rest = rules.get(REST)
    classes = [rules.get(emotion, rest) for emotion in frame["emotion"]]
    chosen = frame.assign(emotion=pd.Series(classes, index=frame.index, dtype=object))
    return chosen[chosen["emotion"].notna()].astype({"emotion": frame["emotion"].dtype})


def _rules(labels):
    if isinstance(labels, str):
        raise CorpusError(f"labels: expected a mapping or a list of emotions, found the text {labels!r}")
    pairs = labels.items() if isinstance(labels, Mapping) else ((label, label) for label in labels)
    # YAML reads unquoted 1 as a number; manifests hold text
    return {str(emotion): None if name is None else str(name) for emotion, name in pairs}


def _refuse_uncovered(frame, rules):
    if REST in rules:
        return
    offenders = Offenders("labels: the corpus holds emotions that labels say nothing about (None leaves one out)")
    for emotion, part in frame.groupby("emotion", sort=True):
        if emotion not in rules:
            examples = ", ".join(part["ID"].head(3)) + (", …" if len(part) > 3 else "")
            offenders.add("not covered", f"{emotion!r}: {len(part)} utterances, {examples}{nearest(emotion, rules)}")
    offenders.raise_any()


def _refuse_unknown(frame, rules):
    """A mistyped key beside "*" would leave out a whole class without a word."""
    corpora = [corpus_module(name) for name in frame["corpus"].unique() if name in CORPORA]
    present = set(frame["emotion"])
    known = present.union(*(getattr(module, "EMOTIONS", {}).values() for module in corpora))
    strange = sorted(set(rules) - known - {REST})
    lines = [f"{emotion!r}{nearest(emotion, known)}" for emotion in strange]
    closed = corpora and all(hasattr(module, "EMOTIONS") for module in corpora)
    if lines and closed:
        offenders = Offenders(f"labels: emotions that the corpus does not know (known: {', '.join(sorted(known))})")
        for line in lines:
            offenders.add("unknown", line)
        offenders.raise_any()
    for line in lines:
        logger.warning("labels: no utterance has the emotion %s", line)


def _names(labels):
    return "of the corpus's default" if labels is None else sorted(map(str, _rules(labels)))


def _found(frame):
    return ", ".join(f"{emotion} {count}" for emotion, count in frame["emotion"].value_counts().items()) or "no rows"
