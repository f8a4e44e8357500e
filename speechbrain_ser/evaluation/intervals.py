"""95 % intervals clustered by speaker, that hold with as few as four speakers.

Utterances of one speaker succeed and fail together, so the speakers are the sample. Every figure is a function of sums
over speakers, most a mean of their ratios (:class:`~speechbrain_ser.evaluation.metrics.Sums`), and its interval comes
from leaving out one speaker at a time: the jackknife, known as CR3 in regression, with Student's t of (speakers - 1)
degrees of freedom, on the logit scale for shares, on the log scale for WER and MSE, and on Fisher's for CCC. What it
covers, and what the plain cluster bootstrap does with few speakers: ``benchmarks/interval_coverage.py``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special, stats

from speechbrain_ser.evaluation.metrics import FIGURES, RECOGNITION, Sums, estimate

LEVEL = 0.95


class Interval(NamedTuple):
    """Lower and upper end; floats, or arrays over replicates."""

    low: float
    high: float


def speaker_sums(
    predictions: pd.DataFrame, classes: Sequence[str], figures: Sequence[str] = RECOGNITION
) -> dict[str, Sums]:
    """Return the sums behind those figures that predictions have the columns for, speakers sorted by name.

    Predictions have a column speaker and those of :func:`~speechbrain_ser.evaluation.metrics.metrics`. Folds and seeds
    may be stacked: all rows of a speaker are one cluster. Classes that do not occur are no term of UA and F1.
    """
    measured = (FIGURES[name] for name in figures if FIGURES[name].column in predictions)
    return {f.name: _by_speaker(predictions["speaker"].to_numpy(), f.sums(predictions, classes)) for f in measured}


def ratio_sums(speaker: Sequence[str], numerators: Sequence[float], denominators: Sequence[float]) -> Sums:
    """Return the sums of one ratio of utterances, such as their mean confidence."""
    return _by_speaker(np.asarray(speaker), Sums(np.asarray(numerators)[:, None], np.asarray(denominators)[:, None]))


def _by_speaker(speaker: np.ndarray, sums: Sums) -> Sums:
    over, under = (pd.DataFrame(a.astype(float)).groupby(speaker).sum().to_numpy() for a in sums[:2])
    counts = under.any(1)  # of whom nothing is counted is no part of the sample
    return Sums(over[counts], under[counts], sums.of)


def leave_one_out(sums: Sums) -> np.ndarray:
    """Return the figure without each speaker in turn, [..., speakers].

    A class that only one speaker has keeps its recall when that speaker is left out: its absence is no change of the
    others'.
    """
    totals = [a.sum(-2, keepdims=True) for a in sums[:2]]
    rest = [total - a for total, a in zip(totals, sums[:2], strict=True)]
    is_gone = rest[1] == 0
    numerators, denominators = (np.where(is_gone, total, a) for total, a in zip(totals, rest, strict=True))
    with np.errstate(invalid="ignore"):
        return sums.of(numerators, denominators)


def jackknife_error(figure: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Return the standard error (CR3) of a figure [...] from the same without each speaker [..., speakers]."""
    n = without.shape[-1]
    return np.sqrt((n - 1) / n * ((without - np.expand_dims(figure, -1)) ** 2).sum(-1))


def speaker_interval(sums: Sums, scale: str = "logit", level: float = LEVEL) -> Interval | None:
    """Return the interval that reports print: jackknife by speaker, Student's t, on a scale that keeps in range.

    It is None for a single speaker, who says nothing about others, and for a mean that all speakers have in common.

    Arguments
    ---------
    sums : Sums
        [speakers, terms], or with leading axes of replicates.
    scale : str
        ``logit`` for shares (WA, UA, F1), ``log`` for WER (at least 0, and above 1 where much is inserted),
        ``log_mean`` for MSE (at least 0, and no count of anything), ``fisher`` for CCC (-1 to 1), ``identity`` for
        none of these.

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
        low, high = _SCALES[scale](figure, quantile * error)
    # all speakers alike (all perfect, or no word recognised at all): their spread says nothing, the counts do
    alike = np.isclose(error, 0, atol=1e-12)
    if alike.any() and scale != "identity":
        size = _effective_size(sums, quantile, level)
        exact = (np.nan, np.nan) if scale in ("log_mean", "fisher") else _counted_interval(figure, size, scale, level)
        low, high = (np.where(alike, e, found) for e, found in zip(exact, (low, high), strict=True))
    return None if np.isnan(low).all() else Interval(plain(low), plain(high))


def plain(value: np.ndarray) -> float | np.ndarray:
    """Return the float of an array without axes, others as they are."""
    return float(value) if np.ndim(value) == 0 else value


def _logit_scale(figure, margin):
    margin = margin / (figure * (1 - figure))
    return special.expit(special.logit(figure) - margin), special.expit(special.logit(figure) + margin)


def _log_scale(figure, margin):
    return figure * np.exp(-margin / figure), figure * np.exp(margin / figure)


def _fisher_scale(figure, margin):
    margin = margin / (1 - figure**2)
    return np.tanh(np.arctanh(figure) - margin), np.tanh(np.arctanh(figure) + margin)


_SCALES = {
    "logit": _logit_scale,
    "log": _log_scale,
    "log_mean": _log_scale,
    "fisher": _fisher_scale,
    "identity": lambda figure, margin: (figure - margin, figure + margin),
}


def _effective_size(sums: Sums, quantile: float, level: float) -> np.ndarray:
    """How many counts a figure rests on, lessened for few speakers as by Korn and Graubard (1998)."""
    totals = sums.denominators.sum(-2)
    size = totals.shape[-1] ** 2 / (1 / totals).sum(-1)  # of a mean of ratios: the harmonic mean times their number
    return size * (stats.norm.ppf((1 + level) / 2) / quantile) ** 2


def _counted_interval(figure: np.ndarray, size: np.ndarray, scale: str, level: float):
    """Exact intervals of independent counts: Clopper-Pearson for a share, Garwood's of a Poisson rate for WER."""
    tail, counts = (1 - level) / 2, figure * size
    if scale == "logit":
        low = stats.beta.ppf(tail, counts, size - counts + 1)
        high = stats.beta.ppf(1 - tail, counts + 1, size - counts)
        return np.where(figure <= 0, 0, low), np.where(figure >= 1, 1, high)
    low = stats.chi2.ppf(tail, 2 * counts) / 2 / size
    return np.where(figure <= 0, 0, low), stats.chi2.ppf(1 - tail, 2 * counts + 2) / 2 / size
