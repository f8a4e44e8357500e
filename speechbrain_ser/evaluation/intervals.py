"""95 % intervals clustered by speaker, that hold with as few as four speakers.

Utterances of one speaker succeed and fail together, so the speakers are the sample. Every figure here is a mean of
ratios of sums over speakers (WA: correct / utterances; UA: the mean over classes of correct / utterances of the class;
WER: word errors / words; MSE: the utterances' errors / utterances), and its interval comes from leaving out one speaker
at a time: the jackknife, known as CR3 in regression, with Student's t of (speakers - 1) degrees of freedom, on the
logit scale for shares and on the log scale for WER and MSE. The plain cluster bootstrap is kept beside it to show what
it covers with few speakers (``benchmarks/interval_coverage.py``): far less than it says.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special, stats

LEVEL = 0.95
SCALES = {"WA": "logit", "UA": "logit", "F1": "logit", "speaker": "logit", "WER": "log", "MSE": "log_mean"}


class Sums(NamedTuple):
    """What a figure is made of, by speaker.

    Both arrays are [..., speakers, terms]: a figure is the mean over terms of summed numerators / summed denominators.
    Leading axes hold replicates (simulations).
    """

    numerators: np.ndarray
    denominators: np.ndarray


class Interval(NamedTuple):
    """Lower and upper end; floats, or arrays over replicates."""

    low: float
    high: float


# ------------------------------------------------------------------ from predictions to sums


def speaker_sums(predictions: pd.DataFrame, classes: Sequence[str]) -> dict[str, Sums]:
    """The sums behind WA, UA, macro-F1 and, where there are word counts, WER; where there are reconstructions, MSE.

    Arguments
    ---------
    predictions : pandas.DataFrame
        Columns speaker, emotion, predicted; ``words`` and ``word_errors`` where there is an ASR head, ``mse`` where
        there is a reconstruction task. Several folds and seeds may be stacked: all rows of a speaker are one cluster.
    classes : sequence of str
        All classes; those that do not occur are no term of UA and F1, as in
        :func:`~speechbrain_ser.evaluation.metrics.emotion_metrics`.

    Returns
    -------
    dict of str to Sums
        Speakers sorted by name.

    Example
    -------
    >>> rows = pd.DataFrame({"speaker": ["1", "1", "2"], "emotion": ["a", "a", "b"], "predicted": ["a", "b", "b"]})
    >>> {name: float(estimate(s)) for name, s in speaker_sums(rows, ["a", "b", "c"]).items()}
    {'WA': 0.6666666666666666, 'UA': 0.75, 'F1': 0.6666666666666666}
    """
    present = [c for c in classes if c in set(predictions["emotion"])]
    true = pd.DataFrame({c: predictions["emotion"] == c for c in present}).to_numpy()
    said = pd.DataFrame({c: predictions["predicted"] == c for c in present}).to_numpy()
    right = (predictions["emotion"] == predictions["predicted"]).to_numpy()[:, None]
    speaker = predictions["speaker"].to_numpy()
    sums = {
        "WA": _sums(speaker, right, np.ones_like(right)),
        "UA": _sums(speaker, true & said, true),
        # F1 = 2 TP / (2 TP + FP + FN), and the denominator counts the true ones and the predicted ones
        "F1": _sums(speaker, 2 * (true & said), true.astype(int) + said),
    }
    if "words" in predictions:
        counts = (predictions[c].to_numpy()[:, None] for c in ("word_errors", "words"))
        sums["WER"] = _sums(speaker, *counts)
    if "mse" in predictions:
        sums["MSE"] = ratio_sums(speaker, predictions["mse"], np.ones(len(speaker)))
    return sums


def ratio_sums(speaker: Sequence[str], numerators: Sequence[float], denominators: Sequence[float]) -> Sums:
    """The sums of one ratio, such as the speaker accuracy.

    Example
    -------
    >>> ratio_sums(["x", "y", "x"], [1, 0, 1], [1, 1, 1]).numerators.ravel()
    array([2., 0.])
    """
    return _sums(np.asarray(speaker), np.asarray(numerators)[:, None], np.asarray(denominators)[:, None])


def _sums(speaker: np.ndarray, numerators: np.ndarray, denominators: np.ndarray) -> Sums:
    return Sums(*(pd.DataFrame(a.astype(float)).groupby(speaker).sum().to_numpy() for a in (numerators, denominators)))


# ------------------------------------------------------------------ estimate and its spread


def estimate(sums: Sums) -> np.ndarray:
    """The figure itself: the mean over terms of the pooled ratios; NaN where nothing was counted."""
    with np.errstate(invalid="ignore"):
        return (sums.numerators.sum(-2) / sums.denominators.sum(-2)).mean(-1)


def leave_one_out(sums: Sums) -> np.ndarray:
    """The figure without each speaker in turn.

    A class that only one speaker has keeps its recall when that speaker is left out: its absence is no change of the
    others'.

    Arguments
    ---------
    sums : Sums
        [..., speakers, terms].

    Returns
    -------
    numpy.ndarray
        [..., speakers].
    """
    totals = Sums(*(a.sum(-2, keepdims=True) for a in sums))
    rest = Sums(*(total - a for total, a in zip(totals, sums, strict=True)))
    is_gone = rest.denominators == 0
    numerators = np.where(is_gone, totals.numerators, rest.numerators)
    denominators = np.where(is_gone, totals.denominators, rest.denominators)
    with np.errstate(invalid="ignore"):
        return (numerators / denominators).mean(-1)


def jackknife_error(figure: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Standard error from leaving out one speaker at a time (CR3), around the figure itself.

    Arguments
    ---------
    figure : numpy.ndarray
        [...].
    without : numpy.ndarray
        [..., speakers], from :func:`leave_one_out`.

    Returns
    -------
    numpy.ndarray
        [...].
    """
    n = without.shape[-1]
    return np.sqrt((n - 1) / n * ((without - np.expand_dims(figure, -1)) ** 2).sum(-1))


# ------------------------------------------------------------------ intervals


def speaker_interval(sums: Sums, scale: str = "logit", level: float = LEVEL) -> Interval | None:
    """The interval that reports print: jackknife by speaker, Student's t, on a scale that keeps within the range.

    Arguments
    ---------
    sums : Sums
        [speakers, terms], or with leading axes of replicates.
    scale : str
        ``logit`` for shares (WA, UA, F1), ``log`` for WER (at least 0, and above 1 where much is inserted),
        ``log_mean`` for MSE (at least 0, and no count of anything), ``identity`` for none of these.
    level : float
        Nominal coverage, in (0, 1).

    Returns
    -------
    Interval or None
        None for a single speaker, who says nothing about others, and for a mean that all speakers have in common.

    Example
    -------
    >>> sums = Sums(np.array([[40.0], [30.0], [45.0], [38.0]]), np.full((4, 1), 50.0))
    >>> low, high = speaker_interval(sums)
    >>> f"{estimate(sums):.3f} [{low:.3f}, {high:.3f}]"
    '0.765 [0.519, 0.908]'
    """
    n_speakers = sums.denominators.shape[-2]
    if n_speakers < 2:
        return None
    figure = estimate(sums)
    error = jackknife_error(figure, leave_one_out(sums))
    quantile = stats.t.ppf((1 + level) / 2, n_speakers - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = SCALED[scale](figure, quantile * error)
    # all speakers alike (all perfect, or no word recognised at all): their spread says nothing, the counts do
    alike = np.isclose(error, 0, atol=1e-12)
    if alike.any() and scale == "log_mean":  # nothing is counted
        low, high = (np.where(alike, np.nan, found) for found in (low, high))
    elif alike.any() and scale != "identity":
        exact = _counted_interval(figure, effective_size(sums, quantile, level), scale, level)
        low, high = (np.where(alike, e, found) for e, found in zip(exact, (low, high), strict=True))
    return None if np.isnan(low).all() else Interval(*map(_plain, (low, high)))


def bootstrap_interval(sums: Sums, n_resamples: int = 2000, seed: int = 0, level: float = LEVEL) -> Interval | None:
    """The plain cluster bootstrap: whole speakers drawn with replacement, percentiles. Too short with few speakers.

    Arguments
    ---------
    sums : Sums
        [..., speakers, terms].
    n_resamples : int
        How many.
    seed : int
        Of the draws.
    level : float
        Nominal coverage.

    Returns
    -------
    Interval or None
        None for a single speaker.
    """
    n_speakers = sums.denominators.shape[-2]
    if n_speakers < 2:
        return None
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n_speakers, np.full(n_speakers, 1 / n_speakers), n_resamples).astype(float)
    with np.errstate(invalid="ignore"):  # a class may be missing from a resample, as from a leave-one-out
        figures = np.nanmean((weights @ sums.numerators) / (weights @ sums.denominators), axis=-1)
    tails = [(1 - level) / 2, (1 + level) / 2]
    return Interval(*map(_plain, np.quantile(figures, tails, axis=-1)))


def _logit_scale(figure, margin):
    margin = margin / (figure * (1 - figure))
    return special.expit(special.logit(figure) - margin), special.expit(special.logit(figure) + margin)


def _log_scale(figure, margin):
    return figure * np.exp(-margin / figure), figure * np.exp(margin / figure)


SCALED = {
    "logit": _logit_scale,
    "log": _log_scale,
    "log_mean": _log_scale,
    "identity": lambda figure, margin: (figure - margin, figure + margin),
}


def effective_size(sums: Sums, quantile: float, level: float = LEVEL) -> np.ndarray:
    """How many counts a figure rests on, lessened for few speakers as by Korn and Graubard (1998)."""
    totals = sums.denominators.sum(-2)
    size = totals.shape[-1] ** 2 / (1 / totals).sum(-1)  # of a mean of ratios: the harmonic mean times their number
    return size * (stats.norm.ppf((1 + level) / 2) / quantile) ** 2


def _counted_interval(figure, size, scale: str, level: float):
    """Exact intervals of independent counts: Clopper-Pearson for a share, Garwood's of a Poisson rate for WER."""
    tail, counts = (1 - level) / 2, figure * size
    if scale == "logit":
        low = stats.beta.ppf(tail, counts, size - counts + 1)
        high = stats.beta.ppf(1 - tail, counts + 1, size - counts)
        return np.where(figure <= 0, 0, low), np.where(figure >= 1, 1, high)
    low = stats.chi2.ppf(tail, 2 * counts) / 2 / size
    return np.where(figure <= 0, 0, low), stats.chi2.ppf(1 - tail, 2 * counts + 2) / 2 / size


def _plain(value):
    return float(value) if np.ndim(value) == 0 else value
