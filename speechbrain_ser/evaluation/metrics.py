"""Figures of one set of predictions, from the table of predictions alone.

A prediction is a row: ID, speaker, emotion, predicted, transcript; hypothesis where there is an ASR head; mse where a
spectrogram is reconstructed: the squared error of its mel spectrogram (0 to 1), averaged over its own frames and bands.
"""

from collections.abc import Sequence

import jiwer
import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from speechbrain_ser.data.text import normalise_transcript


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
    confusion = confusion_matrix(emotion, predicted, labels=list(classes))  # once: the rest is sums of it
    hits, true, said = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    occurs = true > 0
    recalls = hits[occurs] / true[occurs]
    by_class = dict(zip(np.asarray(classes)[occurs].tolist(), recalls.tolist(), strict=True))
    return {
        "WA": float(hits.sum() / len(emotion)),
        "UA": float(recalls.mean()),
        "F1": float((2 * hits[occurs] / (true + said)[occurs]).mean()),
        "recall": {c: by_class.get(c) for c in classes},
        "confusion": confusion.tolist(),
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
    counts = word_errors(transcripts, hypotheses)
    n_words = counts["words"].sum()
    return float(counts["word_errors"].sum() / n_words) if n_words else None


def word_errors(transcripts: Sequence[str], hypotheses: Sequence[str]) -> pd.DataFrame:
    """Word errors of each utterance, from jiwer's alignments, both sides normalised alike.

    Arguments
    ---------
    transcripts : sequence of str
        What was said, as the corpus writes it.
    hypotheses : sequence of str
        What was recognised.

    Returns
    -------
    pandas.DataFrame
        Columns ``words`` (of the reference) and ``word_errors``, a row an utterance.

    Example
    -------
    >>> word_errors(["Excuse me.", "{LAUGH}"], ["EXCUSE", "A"]).to_numpy().tolist()
    [[2, 1], [0, 1]]
    """
    references = [normalise_transcript(t) for t in transcripts]
    hypotheses = [normalise_transcript(h) for h in hypotheses]
    # jiwer takes no reference without words; an utterance without any (laughter) has what was inserted into it
    errors = [0 if r else len(h.split()) for r, h in zip(references, hypotheses, strict=True)]
    spoken = [k for k, r in enumerate(references) if r]
    if spoken:
        aligned = jiwer.process_words([references[k] for k in spoken], [hypotheses[k] for k in spoken]).alignments
        for k, chunks in zip(spoken, aligned, strict=True):
            errors[k] = sum(_length(c) for c in chunks if c.type != "equal")
    return pd.DataFrame({"words": [len(r.split()) for r in references], "word_errors": errors}, dtype=int)


def _length(chunk: jiwer.AlignmentChunk) -> int:
    return max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)


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
        Columns ID, emotion, predicted, transcript; ``hypothesis`` where there is an ASR head, or the ``words`` and
        ``word_errors`` of :func:`word_errors`, where they were counted before; ``mse`` (float) where there is a
        reconstruction task.
    classes : sequence of str
        All classes.

    Returns
    -------
    dict
        ``n`` utterances, those of :func:`emotion_metrics`; ``WER`` where there are hypotheses; ``MSE``, the mean over
        utterances, where there are reconstructions.

    Example
    -------
    >>> rows = pd.DataFrame({"emotion": ["a", "b"], "predicted": ["a", "a"], "mse": [4e-4, 8e-4]})
    >>> found = metrics(rows, ["a", "b"])
    >>> found["WA"], round(found["MSE"], 6), "WER" in found
    (0.5, 0.0006, False)
    """
    out = {
        "n": len(predictions),
        **emotion_metrics(predictions["emotion"], predictions["predicted"], classes),
    }
    if "words" in predictions:
        n_words = predictions["words"].sum()
        out["WER"] = float(predictions["word_errors"].sum() / n_words) if n_words else None
    elif "hypothesis" in predictions:
        out["WER"] = word_error_rate(predictions["transcript"], predictions["hypothesis"])
    if "mse" in predictions:
        out["MSE"] = float(predictions["mse"].mean(skipna=False))  # an utterance is never left out silently
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
