"""Figures of one set of predictions, from the table of predictions alone.

A prediction is a row: ID, speaker, emotion, predicted, transcript and, where there is an ASR head, hypothesis.
"""

from collections.abc import Sequence

import jiwer
import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score

from speechbrain_ser.text import normalise_transcript


def emotion_metrics(emotion: Sequence[str], predicted: Sequence[str], classes: Sequence[str]) -> dict:
    """WA, UA, macro-F1, recall of each class and the confusion matrix.

    Arguments
    ---------
    emotion : sequence of str
        The true class of each utterance.
    predicted : sequence of str
        The predicted class.
    classes : sequence of str
        All classes, in the order of the matrix.

    Returns
    -------
    dict
        ``WA`` correct / total; ``UA`` mean recall over the classes that occur; ``F1`` macro over the same classes;
        ``recall`` by class (None where a class does not occur); ``confusion`` rows = true, columns = predicted.

    Example
    -------
    >>> m = emotion_metrics(["a", "a", "a", "b"], ["a", "a", "b", "b"], ["a", "b", "c"])
    >>> m["WA"], round(m["UA"], 4), m["recall"]["c"], m["confusion"][0]
    (0.75, 0.8333, None, [2, 1, 0])
    """
    present = [c for c in classes if c in set(emotion)]
    recalls = recall_score(emotion, predicted, labels=present, average=None, zero_division=0)
    by_class = dict(zip(present, map(float, recalls), strict=True))
    return {
        "WA": float(accuracy_score(emotion, predicted)),
        "UA": float(np.mean(recalls)),
        "F1": float(f1_score(emotion, predicted, labels=present, average="macro", zero_division=0)),
        "recall": {c: by_class.get(c) for c in classes},
        "confusion": confusion_matrix(emotion, predicted, labels=list(classes)).tolist(),
    }


def word_error_rate(transcripts: Sequence[str], hypotheses: Sequence[str]) -> float | None:
    """WER pooled over utterances, both sides normalised alike; None without a reference word.

    Arguments
    ---------
    transcripts : sequence of str
        What was said, as the corpus writes it.
    hypotheses : sequence of str
        What was recognised.

    Returns
    -------
    float or None
        Substitutions, deletions and insertions over reference words.

    Example
    -------
    >>> word_error_rate(["Excuse me.", "{LAUGH}"], ["EXCUSE", "A"])
    1.0
    >>> word_error_rate(["{LAUGH}"], ["A"]) is None
    True
    """
    references = [normalise_transcript(t) for t in transcripts]
    hypotheses = [normalise_transcript(h) for h in hypotheses]
    n_words = sum(len(r.split()) for r in references)
    if not n_words:
        return None
    # an utterance without words (laughter) contributes what was inserted into it
    inserted = sum(len(h.split()) for r, h in zip(references, hypotheses, strict=True) if not r)
    pairs = [(r, h) for r, h in zip(references, hypotheses, strict=True) if r]
    out = jiwer.process_words(*map(list, zip(*pairs, strict=True)))
    return float((out.substitutions + out.deletions + out.insertions + inserted) / n_words)


def speaker_accuracy(predictions: pd.DataFrame) -> float:
    """Share of utterances whose speaker is recognised; only meaningful on speakers who are trained on (``seen``).

    Arguments
    ---------
    predictions : pandas.DataFrame
        Columns speaker and speaker_predicted.

    Returns
    -------
    float

    Example
    -------
    >>> speaker_accuracy(pd.DataFrame({"speaker": ["03", "08"], "speaker_predicted": ["03", "09"]}))
    0.5
    """
    return float((predictions["speaker"] == predictions["speaker_predicted"]).mean())


def metrics(predictions: pd.DataFrame, classes: Sequence[str]) -> dict:
    """Every figure of a table of predictions.

    Arguments
    ---------
    predictions : pandas.DataFrame
        Columns ID, emotion, predicted, transcript; ``hypothesis`` where there is an ASR head.
    classes : sequence of str
        All classes.

    Returns
    -------
    dict
        ``n`` utterances, those of :func:`emotion_metrics`, and ``WER`` where there are hypotheses.
    """
    out = {
        "n": len(predictions),
        **emotion_metrics(predictions["emotion"], predictions["predicted"], classes),
    }
    if "hypothesis" in predictions:
        out["WER"] = word_error_rate(predictions["transcript"], predictions["hypothesis"])
    return out


def metrics_by_text(predictions: pd.DataFrame, classes: Sequence[str]) -> dict:
    """The figures on all utterances, on those whose text was heard in training, and on the text-disjoint rest.

    Arguments
    ---------
    predictions : pandas.DataFrame
        As for :func:`metrics`, with a column ``text_heard``: does the text occur in the training part?
    classes : sequence of str
        All classes.

    Returns
    -------
    dict
        ``all``; ``text_heard`` and ``text_disjoint`` (the string ``"none"`` where that part is empty, never NaN);
        ``share_text_heard``.
    """
    is_heard = predictions["text_heard"].astype(bool)
    parts = {"text_heard": predictions[is_heard], "text_disjoint": predictions[~is_heard]}
    return {
        "all": metrics(predictions, classes),
        "share_text_heard": float(is_heard.mean()),
        **{name: metrics(part, classes) if len(part) else "none" for name, part in parts.items()},
    }
