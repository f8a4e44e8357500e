"""Whether posteriors mean what they say: of the utterances recognised with 80 %, are 80 % right?

Everything here takes log posteriors: a posterior of 1e-9 is kept apart from 0, which a temperature needs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import log_softmax

BINS = 15  # of equal width, as Guo et al. 2017 have them
THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the largest posterior, fixed beforehand: none is chosen on a test part


class Bins(NamedTuple):
    """A reliability diagram: what each bin of the largest posterior holds, the lowest first.

    Attributes
    ----------
    counts : numpy.ndarray
        [bins], utterances.
    confidence : numpy.ndarray
        [bins], the mean of their largest posteriors; NaN in an empty bin.
    accuracy : numpy.ndarray
        [bins], the share of them that is right; NaN in an empty bin.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error, ECE (Guo et al. 2017, eq. 3): mean distance, weighted by the counts."""
        gaps = np.abs(self.confidence - self.accuracy)
        return float(np.nansum(self.counts * gaps) / self.counts.sum())


def reliability_bins(confidence: Sequence[float], right: Sequence[bool], bins: int = BINS) -> Bins:
    """Utterances by their largest posterior, in bins of equal width that include their upper ends.

    Arguments
    ---------
    confidence : sequence of float
        The largest posterior of each utterance, above 0 and at most 1.
    right : sequence of bool
        Whether its class is the true one.
    bins : int
        How many.

    Returns
    -------
    Bins

    Example
    -------
    >>> found = reliability_bins([0.9, 0.8, 0.4], [True, False, True], bins=2)
    >>> found.counts.tolist(), found.confidence.round(2).tolist(), found.accuracy.tolist()
    ([1, 2], [0.4, 0.85], [1.0, 0.5])
    >>> round(found.error, 4)  # 1/3 of |0.4 - 1| and 2/3 of |0.85 - 0.5|
    0.4333
    """
    confidence, right = np.asarray(confidence, float), np.asarray(right, float)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, of, bins) / counts for of in (confidence, right)]
    return Bins(counts, *means)


def chance_error(confidence: Sequence[float], draws: int = 200, seed: int = 0) -> float:
    """The ECE to expect of these utterances if their posteriors meant exactly what they say: few utterances have one.

    Arguments
    ---------
    confidence : sequence of float
        The largest posterior of each utterance.
    draws : int
        How often right and wrong are drawn.
    seed : int
        Of the draws.

    Returns
    -------
    float
        The mean of the draws' ECE.

    Example
    -------
    >>> round(chance_error([0.5] * 100), 2), round(chance_error([0.5] * 10_000), 3), chance_error([1.0, 1.0])
    (0.04, 0.004, 0.0)
    """
    confidence, rng = np.asarray(confidence, float), np.random.default_rng(seed)
    drawn = (rng.random(len(confidence)) < confidence for _ in range(draws))
    return float(np.mean([reliability_bins(confidence, right).error for right in drawn]))


def with_temperature(log_posteriors: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Log posteriors of the logits divided by a temperature: softmax(logits / T) is softmax(log posteriors / T).

    Arguments
    ---------
    log_posteriors : numpy.ndarray
        [utterances, classes]; logits will do.
    temperature : float
        Above 0; above 1 it flattens, below 1 it sharpens. The likeliest class stays the same.

    Returns
    -------
    numpy.ndarray
        [utterances, classes].

    Example
    -------
    >>> np.exp(with_temperature(np.log([[0.8, 0.2]]), 2.0)).round(3)
    array([[0.667, 0.333]])
    """
    return log_softmax(np.asarray(log_posteriors, float) / temperature, axis=-1)


def utterance_scores(log_posteriors: np.ndarray, true: Sequence[int]) -> pd.DataFrame:
    """What calibration is measured by, of each utterance.

    Arguments
    ---------
    log_posteriors : numpy.ndarray
        [utterances, classes].
    true : sequence of int
        Index of each utterance's class.

    Returns
    -------
    pandas.DataFrame
        ``confidence``, the largest posterior; ``right``; ``Brier``, the squared error over all classes (0 to 2);
        ``NLL``, the negative log posterior of the true class in nats (infinite for a posterior of 0).

    Example
    -------
    >>> utterance_scores(np.log([[0.8, 0.2], [0.6, 0.4]]), [0, 1]).round(3).to_numpy().tolist()
    [[0.8, True, 0.08, 0.223], [0.6, False, 0.72, 0.916]]
    """
    log_posteriors, true = np.asarray(log_posteriors, float), np.asarray(true, int)
    posteriors, rows = np.exp(log_posteriors), np.arange(len(true))
    one_hot = np.eye(posteriors.shape[1])[true]
    return pd.DataFrame(
        {
            "confidence": posteriors.max(1),
            "right": posteriors.argmax(1) == true,
            "Brier": ((posteriors - one_hot) ** 2).sum(1),
            "NLL": -log_posteriors[rows, true],
        }
    )


def calibration_figures(scores: pd.DataFrame) -> dict[str, float]:
    """The means of utterances' scores, and their ECE.

    Arguments
    ---------
    scores : pandas.DataFrame
        From :func:`utterance_scores`.

    Returns
    -------
    dict of str to float
        ``WA``, ``confidence`` (mean of the largest posteriors), ``ECE``, ``Brier``, ``NLL``.

    Example
    -------
    >>> found = calibration_figures(utterance_scores(np.log([[0.8, 0.2], [0.6, 0.4]]), [0, 1]))
    >>> {name: round(value, 3) for name, value in found.items()}
    {'WA': 0.5, 'confidence': 0.7, 'ECE': 0.4, 'Brier': 0.4, 'NLL': 0.57}
    """
    error = reliability_bins(scores["confidence"], scores["right"]).error
    found = {"WA": scores["right"].mean(), "confidence": scores["confidence"].mean(), "ECE": error}
    return {k: float(v) for k, v in {**found, "Brier": scores["Brier"].mean(), "NLL": scores["NLL"].mean()}.items()}


def abstention(scores: pd.DataFrame, thresholds: Sequence[float] = THRESHOLDS) -> list[dict]:
    """What keeping silent below a threshold costs and gives.

    Arguments
    ---------
    scores : pandas.DataFrame
        From :func:`utterance_scores`.
    thresholds : sequence of float
        Of the largest posterior.

    Returns
    -------
    list of dict
        ``threshold``, ``coverage`` (share of utterances that get an answer), ``n`` answers, and ``WA`` among them (None
        where nothing is answered).

    Example
    -------
    >>> scores = pd.DataFrame({"confidence": [0.9, 0.8, 0.4], "right": [True, False, True]})
    >>> abstention(scores, [0.8, 0.95])
    [{'threshold': 0.8, 'n': 2, 'coverage': 0.6666666666666666, 'WA': 0.5},
     {'threshold': 0.95, 'n': 0, 'coverage': 0.0, 'WA': None}]
    """
    rows = []
    for threshold in thresholds:
        answered = scores["right"][scores["confidence"] >= threshold]
        row = {"threshold": threshold, "n": len(answered), "coverage": len(answered) / len(scores)}
        rows.append(row | {"WA": float(answered.mean()) if len(answered) else None})
    return rows


def coverage_curve(scores: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy among the surest utterances, for every share of them; equally sure ones come together.

    Arguments
    ---------
    scores : pandas.DataFrame
        From :func:`utterance_scores`.

    Returns
    -------
    tuple of numpy.ndarray
        Coverage, rising to 1, and accuracy.

    Example
    -------
    >>> scores = pd.DataFrame({"confidence": [0.4, 0.9, 0.9, 0.6], "right": [False, True, False, True]})
    >>> [values.round(3).tolist() for values in coverage_curve(scores)]
    [[0.5, 0.75, 1.0], [0.5, 0.667, 0.5]]
    """
    by_confidence = scores.groupby("confidence")["right"].agg(["sum", "count"])[::-1].cumsum()
    return (by_confidence["count"] / len(scores)).to_numpy(), (by_confidence["sum"] / by_confidence["count"]).to_numpy()
