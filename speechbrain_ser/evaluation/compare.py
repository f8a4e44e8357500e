"""Paired comparison of two variants on the same utterances.

Three views of a difference, from the same pairs (utterance, seed):

- an interval and a p-value of Student's t from leaving out one speaker at a time: the ones to quote (simulated: the
  interval holds, but for 91 % instead of 95 where a system is right 95 times of 100 and few speakers differ much);
- a paired bootstrap over speakers: each speaker's share of the difference is redrawn with a random sign and size (wild
  cluster bootstrap, Webb's six weights), because drawing whole speakers with replacement finds too much when they are
  few;
- McNemar's test of the discordant utterances, exact where they are few: it takes utterances for independent, which
  those of one speaker are not, so its p-value is too small where speakers differ.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from speechbrain_ser.evaluation.intervals import (
    LEVEL,
    Sums,
    estimate,
    jackknife_error,
    leave_one_out,
    plain,
    speaker_sums,
)

FEW_DISCORDANT = 25  # below, the chi-square distribution of McNemar's statistic is a poor approximation
WEBB = np.sqrt([0.5, 1.0, 1.5])


class Difference(NamedTuple):
    """Second minus first, its interval and its p-value; None for a single speaker. Arrays over replicates."""

    difference: float
    low: float | None
    high: float | None
    p: float | None


class McNemar(NamedTuple):
    """Utterances that only one of the two has right, and the p-value that ignores speakers."""

    only_first: int
    only_second: int
    p: float
    is_exact: bool


def speaker_difference(first: Sums, second: Sums, level: float = LEVEL) -> Difference:
    """Return the difference of a figure, jackknifed by speaker.

    Both have the same speakers in the same order.

    Example
    -------
    >>> first = Sums(np.array([[10.0], [12.0], [9.0], [11.0]]), np.full((4, 1), 20.0))
    >>> second = Sums(first.numerators + [[2.0], [3.0], [2.0], [1.0]], first.denominators)
    >>> [round(float(v), 3) for v in speaker_difference(first, second)]
    [0.1, 0.035, 0.165, 0.016]
    """
    difference = estimate(second) - estimate(first)
    n_speakers = first.denominators.shape[-2]
    if n_speakers < 2:
        return Difference(plain(difference), None, None, None)
    error = jackknife_error(difference, leave_one_out(second) - leave_one_out(first))
    is_none = np.isclose(difference, 0, atol=1e-12)
    if (np.isclose(error, 0, atol=1e-12) & ~is_none).any():  # alike in all speakers: no spread to judge it by
        return Difference(plain(difference), None, None, None)
    margin = stats.t.ppf((1 + level) / 2, n_speakers - 1) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stats.t.sf(np.abs(difference) / error, n_speakers - 1)
    p = np.where(is_none, 1.0, p)
    return Difference(*map(plain, (difference, difference - margin, difference + margin, p)))


def bootstrap_p(first: Sums, second: Sums, n_resamples: int = 9999, seed: int = 0) -> float | None:
    """Return the two-sided p-value of the wild cluster bootstrap-t of the jackknife pseudo-values; None of one speaker.

    Both are [speakers, terms], the same speakers in the same order.
    """
    n_speakers = first.denominators.shape[-2]
    if n_speakers < 2:
        return None
    difference = estimate(second) - estimate(first)
    without = leave_one_out(second) - leave_one_out(first)
    pseudo_values = n_speakers * difference - (n_speakers - 1) * without
    rng = np.random.default_rng(seed)
    weights = rng.choice(np.concatenate([-WEBB, WEBB]), (n_resamples, n_speakers))
    # the sign's rounding must not decide whether a redrawn value ties with the found one
    reached = np.abs(_t(weights * pseudo_values)) >= np.abs(_t(pseudo_values)) * (1 - 1e-9)
    return float((1 + reached.sum()) / (1 + n_resamples))


def _t(values: np.ndarray) -> np.ndarray:
    spread = values.std(-1, ddof=1) / np.sqrt(values.shape[-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(values.mean(-1) / spread, nan=0.0, posinf=np.inf, neginf=-np.inf)


def mcnemar_test(is_right_first: Sequence[bool], is_right_second: Sequence[bool]) -> McNemar:
    """Return McNemar's test of the same utterances: binomial below 25 discordant ones, else chi-square, corrected."""
    a, b = np.asarray(is_right_first, bool), np.asarray(is_right_second, bool)
    only_first, only_second = int((a & ~b).sum()), int((~a & b).sum())
    n_discordant = only_first + only_second
    if n_discordant < FEW_DISCORDANT:
        p = 2 * stats.binom.cdf(min(only_first, only_second), n_discordant, 0.5)
    else:
        p = stats.chi2.sf(max(abs(only_first - only_second) - 1, 0) ** 2 / n_discordant, 1)
    return McNemar(only_first, only_second, min(float(p), 1.0), n_discordant < FEW_DISCORDANT)


def holm(p_values: Iterable[float | None]) -> list[float | None]:
    """Return p-values corrected for their number (Holm 1979); None stays None and is not counted.

    Example
    -------
    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    corrected = list(p_values)
    known = sorted((k for k, p in enumerate(corrected) if p is not None), key=corrected.__getitem__)
    largest = 0.0
    for rank, k in enumerate(known):
        largest = max(largest, min((len(known) - rank) * corrected[k], 1.0))
        corrected[k] = largest
    return corrected


def paired(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows that both have, by (ID, seed), in the same order."""
    first, second = (f.set_index(["ID", "seed"]).sort_index() for f in (first, second))
    common = first.index.intersection(second.index)
    return first.loc[common].reset_index(), second.loc[common].reset_index()


def compare_predictions(first: pd.DataFrame, second: pd.DataFrame, classes: Sequence[str]) -> list[dict]:
    """Return every view of the difference of two variants' predictions, a row a figure that both have.

    Predictions are as for :func:`~speechbrain_ser.evaluation.intervals.speaker_sums`, with columns ID and seed. A row
    has ``n`` pairs, ``speakers``, a :class:`Difference`, ``p_bootstrap`` and, of WA alone, McNemar's test.
    """
    first, second = paired(first, second)
    sums = [speaker_sums(f, classes) for f in (first, second)]
    rows = []
    for figure in sums[0]:
        pair = [of[figure] for of in sums if figure in of and of[figure].denominators.sum() > 0]
        if len(pair) < 2:
            continue
        row = {"figure": figure, "n": len(first), "speakers": first["speaker"].nunique()}
        row |= speaker_difference(*pair)._asdict() | {"p_bootstrap": bootstrap_p(*pair)}
        columns, mcnemar = ("only_first_right", "only_second_right", "p_mcnemar", "mcnemar_is_exact"), [None] * 4
        if figure == "WA":
            mcnemar = mcnemar_test(*(f["emotion"] == f["predicted"] for f in (first, second)))
        rows.append(row | dict(zip(columns, mcnemar, strict=True)))
    return rows
