"""The one registry of figures: what each is called, printed in and made of; and of selections, with their words.

A prediction is a row: ID, speaker, emotion, predicted, transcript; hypothesis where there is an ASR head; mse where a
spectrogram is reconstructed: the squared error of its mel spectrogram (0 to 1), averaged over its own frames and bands;
of a dimension (valence, …) its rating, NaN where there is none, and the predicted one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from speechbrain_ser.data.labels import DIMENSIONS
from speechbrain_ser.data.text import normalise_transcript

NONE = "none"  # nothing to measure there


class Selection(NamedTuple):
    """Which epoch is tested: the score that finds its checkpoint; its words in tables, and in a sentence."""

    score: str | None
    words: str
    in_full: str


SELECTIONS = {
    "last": Selection(None, "last epoch", "the last epoch"),
    "valid": Selection("valid_score", "best on validation", "the best epoch on the validation part"),
    "test": Selection(
        "test_score",
        "best on TEST (oracle)",
        "test-selected (oracle): the best epoch on the test part itself, so the figures below are too high",
    ),
}


def mean_ratio(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Return the mean over terms [..., terms] of their ratios."""
    return (numerators / denominators).mean(-1)


class Sums(NamedTuple):
    """What a figure is made of: of summed numerators and summed denominators, the mean over terms of their ratios.

    Both are [..., utterances or speakers, terms]; leading axes hold replicates (simulations). `of` is another figure
    of the sums: CCC is no ratio of them.
    """

    numerators: np.ndarray
    denominators: np.ndarray
    of: Callable[[np.ndarray, np.ndarray], np.ndarray] = mean_ratio


def estimate(sums: Sums) -> np.ndarray:
    """Return the figure itself, [...]; NaN where nothing was counted."""
    with np.errstate(invalid="ignore"):
        return sums.of(sums.numerators.sum(-2), sums.denominators.sum(-2))


def _agreement(column: str, with_column: str) -> Callable:
    def sums(rows: pd.DataFrame, classes: Sequence[str]) -> Sums:
        agree = (rows[column] == rows[with_column]).to_numpy()[:, None]
        return Sums(agree, np.ones_like(agree))

    return sums


def _one_hot(labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    return np.asarray(labels, object)[:, None] == np.asarray(classes, object)  # [utterances, classes]


def _by_class(rows: pd.DataFrame, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Whether each utterance is of, and is said to be of, each class that occurs."""
    true, said = (_one_hot(rows[column], classes) for column in ("emotion", "predicted"))
    occurs = true.any(0)
    return true[:, occurs], said[:, occurs]


def _recalls(rows: pd.DataFrame, classes: Sequence[str]) -> Sums:
    true, said = _by_class(rows, classes)
    return Sums(true & said, true)


def _f1(rows: pd.DataFrame, classes: Sequence[str]) -> Sums:
    """F1 = 2 TP / (2 TP + FP + FN), whose denominator counts the true ones and the predicted ones."""
    true, said = _by_class(rows, classes)
    return Sums(2 * (true & said), true.astype(int) + said)


def _word_errors(rows: pd.DataFrame, classes: Sequence[str]) -> Sums:
    if "words" not in rows:
        rows = word_errors(rows["transcript"], rows["hypothesis"])
    return Sums(*(rows[column].to_numpy()[:, None] for column in ("word_errors", "words")))


def _squared_errors(rows: pd.DataFrame, classes: Sequence[str]) -> Sums:
    errors = rows["mse"].to_numpy(float)[:, None]  # NaN stays: an utterance is never left out silently
    return Sums(errors, np.ones_like(errors))


def _moments(dimension: str) -> Callable:
    """The sums of x, y, xy and x² + y² of predictions x and ratings y, and how many there are; NaN is no rating."""

    def sums(rows: pd.DataFrame, classes: Sequence[str]) -> Sums:
        y, x = (rows[column].to_numpy(float) for column in (dimension, f"{dimension}_predicted"))
        rated = ~np.isnan(y)[:, None]
        return Sums(np.where(rated, np.stack([x, y, x * y, x**2 + y**2], -1), 0.0), rated, _concordance)

    return sums


def _concordance(moments: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Lin's concordance correlation coefficient (1989), 2 s_xy / (s_x^2 + s_y^2 + (m_x - m_y)^2), of sums."""
    x, y, xy, squares = np.moveaxis(moments, -1, 0)
    return 2 * (n[..., 0] * xy - x * y) / (n[..., 0] * squares - 2 * x * y)


def printed(value: float | None, per_one: float = 100) -> str:
    """Return a share in percent with one decimal; 'none' where there is nothing to measure."""
    return NONE if value is None or pd.isna(value) else f"{per_one * value:.1f}"


def signed(change: float, per_one: float = 100) -> str:
    """Return a difference of two shares in points, signed; never -0.0."""
    text = f"{per_one * change:+.1f}"
    return "0.0" if float(text) == 0 else text


def with_interval(write: Callable[[float], str], value: float | None, ends: Sequence[float | None] | None) -> str:
    """Return a figure and its interval, such as 78.2 [71.0, 83.9]."""
    return write(value) + ("" if ends is None or ends[0] is None else f" [{write(ends[0])}, {write(ends[1])}]")


@dataclass(frozen=True)
class Figure:
    """A figure of a table of predictions, printed with one decimal: an MSE of 5.34e-4 as 5.3 below "MSE e-4"."""

    name: str  # in metrics.json and in tables
    words: str  # beside a plot's axis
    column: str  # of the predictions, where a system has the head for it
    sums: Callable[[pd.DataFrame, Sequence[str]], Sums]  # of predictions, given all classes
    unit: str = "%"
    per_one: float = 100  # how many of the unit make 1
    scale: str = "logit"  # of its interval, see intervals.speaker_interval

    @property
    def heading(self) -> str:
        return f"{self.name} {self.unit}"

    def text(self, value: float | None) -> str:
        """Return a value in its unit."""
        return printed(value, self.per_one)

    def change(self, value: float) -> str:
        """Return a difference of two values in its unit, signed."""
        return signed(value, self.per_one)

    def of(self, predictions: pd.DataFrame, classes: Sequence[str] = ()) -> float | None:
        """Return the figure, pooled over utterances; None where nothing is counted, such as no reference word."""
        sums = self.sums(predictions, classes)
        if not sums.denominators.sum(0).all():
            return None
        found = float(estimate(sums))
        is_undefined = np.isnan(found) and np.isfinite(sums.numerators).all()  # CCC where nothing varies
        return None if is_undefined else found


FIGURES = {
    figure.name: figure
    for figure in (
        Figure("WA", "emotion accuracy (WA)", "predicted", _agreement("emotion", "predicted")),
        Figure("UA", "mean recall (UA)", "predicted", _recalls),
        Figure("F1", "macro F1", "predicted", _f1),
        Figure("WER", "word error rate", "hypothesis", _word_errors, scale="log"),
        Figure("MSE", "spectrogram error (MSE)", "mse", _squared_errors, "e-4", 1e4, scale="log_mean"),
        # only meaningful on speakers who are trained on (`seen`)
        Figure("speaker", "speaker accuracy", "speaker_predicted", _agreement("speaker", "speaker_predicted")),
        *(Figure(f"CCC_{d}", f"CCC of {d}", f"{d}_predicted", _moments(d), "e-2", scale="fisher") for d in DIMENSIONS),
    )
}
CCC = tuple(f"CCC_{dimension}" for dimension in DIMENSIONS)
RECOGNITION = ("WA", "UA", "F1", "WER", "MSE", *CCC)  # what is measured of every system that has the head, and reported


def emotion_metrics(emotion: Sequence[str], predicted: Sequence[str], classes: Sequence[str]) -> dict:
    """Return figures of the true and the predicted class of each utterance, given all classes.

    They are ``WA`` correct / total; ``UA`` mean recall over the classes that occur; ``F1`` macro over the same classes;
    ``recall`` by class (None where one does not occur); ``confusion`` rows = true, columns = predicted.

    Example
    -------
    >>> m = emotion_metrics(["a", "a", "a", "b"], ["a", "a", "b", "b"], ["a", "b", "c"])
    >>> m["WA"], round(m["UA"], 4), m["recall"]["c"], m["confusion"][0]
    (0.75, 0.8333, None, [2, 1, 0])
    """
    rows = pd.DataFrame({"emotion": list(emotion), "predicted": list(predicted)})
    confusion = (_one_hot(emotion, classes).T.astype(int) @ _one_hot(predicted, classes)).tolist()
    of_class = zip(classes, confusion, strict=True)
    return {
        **{name: FIGURES[name].of(rows, classes) for name in ("WA", "UA", "F1")},
        "recall": {c: counts[k] / sum(counts) if any(counts) else None for k, (c, counts) in enumerate(of_class)},
        "confusion": confusion,
    }


def word_errors(transcripts: Sequence[str], hypotheses: Sequence[str]) -> pd.DataFrame:
    """Return the word errors of each utterance, from jiwer's alignments, both sides normalised alike.

    Columns: ``words`` (of the reference) and ``word_errors``.

    Example
    -------
    >>> word_errors(["Excuse me.", "{LAUGH}", ""], ["EXCUSE", "A", "A"]).to_numpy().tolist()
    [[2, 1], [0, 1], [0, 0]]
    """
    import jiwer  # not for who recognises, and reads the registry alone

    references = [normalise_transcript(t) for t in transcripts]
    hypotheses = [normalise_transcript(h) for h in hypotheses]
    # jiwer takes no reference without words; an utterance without any (laughter) has what was inserted into it, one
    # without a transcript no errors that anybody could count
    pairs = zip(transcripts, references, hypotheses, strict=True)
    errors = [0 if r or not t.strip() else len(h.split()) for t, r, h in pairs]
    spoken = [k for k, r in enumerate(references) if r]
    if spoken:
        aligned = jiwer.process_words([references[k] for k in spoken], [hypotheses[k] for k in spoken]).alignments
        for k, chunks in zip(spoken, aligned, strict=True):
            wrong = [c for c in chunks if c.type != "equal"]
            errors[k] = sum(max(c.ref_end_idx - c.ref_start_idx, c.hyp_end_idx - c.hyp_start_idx) for c in wrong)
    return pd.DataFrame({"words": [len(r.split()) for r in references], "word_errors": errors}, dtype=int)


def label_accuracy(predictions: pd.DataFrame, label: str) -> float | None:
    """Return the share that is told right of the utterances that have a label, None where none has.

    The speaker's says something of known ones alone (``seen``).
    """
    known = predictions[predictions[label] != ""]
    return float((known[label] == known[f"{label}_predicted"]).mean()) if len(known) else None


def metrics(predictions: pd.DataFrame, classes: Sequence[str]) -> dict:
    """Return every figure of a table of predictions: ``n`` utterances and, by the heads that its columns tell of, more.

    Columns emotion and ``predicted`` give those of :func:`emotion_metrics`; transcript and ``hypothesis``, or ``words``
    and ``word_errors`` that were counted before, ``WER`` (None without a reference word); ``mse`` its mean over
    utterances; a dimension and its ``…_predicted`` their concordance (None where nothing is rated).
    """
    found = {"n": len(predictions)}
    if "predicted" in predictions:  # else dimensions alone are told
        found |= emotion_metrics(predictions["emotion"], predictions["predicted"], classes)
    of_heads = [FIGURES[name] for name in RECOGNITION if name not in found]
    return found | {f.name: f.of(predictions, classes) for f in of_heads if f.column in predictions}


def share_heard(predictions: pd.DataFrame) -> float | None:
    """Return the share of the utterances whose text is known that training has heard, None where none is known."""
    known = predictions["text_heard"].dropna()
    return float(known.astype(bool).mean()) if len(known) else None


def metrics_by_text(predictions: pd.DataFrame, classes: Sequence[str]) -> dict:
    """Return the figures on all utterances, on those whose text was heard in training, and on the text-disjoint rest.

    Predictions have a column ``text_heard``: does the text occur in the training part? None where a text is unknown.
    An empty part is ``"none"``.
    """
    heard = predictions["text_heard"]
    parts = {"text_heard": predictions[heard.eq(True)], "text_disjoint": predictions[heard.eq(False)]}
    return {
        "all": metrics(predictions, classes),
        "share_text_heard": share_heard(predictions),
        **{name: metrics(part, classes) if len(part) else NONE for name, part in parts.items()},
    }
