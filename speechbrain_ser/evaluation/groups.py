"""Figures by group: who, or which sentences, a system serves worst and best, and how far these are apart.

The worst and the best of several groups differ even where all are alike, because they were looked for. The gap's
interval takes that into account: it is corrected for as many differences as there are pairs of groups (Bonferroni).
"""

from collections.abc import Mapping, Sequence
from math import comb
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from speechbrain_ser.evaluation.intervals import LEVEL, estimate, jackknife_error, leave_one_out, speaker_sums

GROUPED = ("speaker", "gender", "session", "text")  # columns of predictions, where they have them
LEAST = 10  # utterances of a group: fewer say nothing of it


class Gap(NamedTuple):
    """UA of the best group minus that of the worst, and the ends of its interval, None where there is none."""

    worst: str
    best: str
    gap: float
    low: float | None
    high: float | None


def groups_of(predictions: pd.DataFrame) -> dict[str, dict[str, pd.DataFrame]]:
    """Return the predictions of each group, by what they are grouped by, where there are two groups at the least.

    Utterances of which a speaker, gender, … is not known (``""``) and groups of fewer than 10 utterances are in none.
    """
    found = {}
    if "predicted" not in predictions:  # dimensions alone have no UA
        return found
    for column in (c for c in GROUPED if c in predictions):
        known = predictions[predictions[column].fillna("") != ""]
        parts = {str(name): rows for name, rows in known.groupby(column) if rows["ID"].nunique() >= LEAST}
        if len(parts) > 1:
            found[column] = parts
    return found


def gap_of(parts: Mapping[str, pd.DataFrame], classes: Sequence[str], by: str) -> Gap:
    """Return the gap in UA between the worst and the best of some groups.

    Its interval holds for other speakers; between single speakers, who are no sample of themselves, for other
    utterances of these two. It is None where a group has one speaker alone, or all of a group fare alike.

    Example
    -------
    >>> rows = pd.DataFrame({"ID": range(40), "speaker": list("abcd") * 10, "emotion": "x"})
    >>> rows["predicted"] = ["x"] * 17 + ["y", "y", "x", "y", "y", "x"] + ["x"] * 17
    >>> women, men = (rows[rows["speaker"].isin(list(who))] for who in ("ac", "bd"))
    >>> [v if isinstance(v, str) else round(v, 2) for v in gap_of({"F": women, "M": men}, ["x", "y"], "gender")]
    ['F', 'M', 0.0, -1, 1]
    """
    unit = "ID" if by == "speaker" else "speaker"
    found = {name: _left_out(rows.assign(speaker=rows[unit]), classes) for name, rows in parts.items()}
    worst, *_, best = sorted(found, key=lambda name: found[name][0])
    gap = found[best][0] - found[worst][0]
    margin = _margin(found[worst], found[best], len(parts))
    return Gap(worst, best, gap, *((None, None) if margin is None else (max(gap - margin, -1), min(gap + margin, 1))))


def _left_out(rows: pd.DataFrame, classes: Sequence[str]) -> tuple[float, pd.Series]:
    """UA, and UA without each speaker, by name."""
    sums = speaker_sums(rows, classes, ["UA"])["UA"]
    return float(estimate(sums)), pd.Series(leave_one_out(sums), sorted(rows["speaker"].unique()))


def _margin(first: tuple[float, pd.Series], second: tuple[float, pd.Series], n_groups: int) -> float | None:
    """Half the width of the difference's interval: of groups of different speakers, or of the same (texts)."""
    (ua, without), (other, without_other) = first, second
    sizes = np.array([len(without), len(without_other)])
    if sizes.min() < 2:
        return None
    if without.index.intersection(without_other.index).empty:
        errors = [jackknife_error(ua, without.to_numpy()), jackknife_error(other, without_other.to_numpy())]
        variances = np.square(errors)
        variance = variances.sum()
        freedom = variance**2 / (variances**2 / (sizes - 1)).sum() if variance else 0  # Welch and Satterthwaite
    else:
        everybody = without.index.union(without_other.index)
        differences = without_other.reindex(everybody, fill_value=other) - without.reindex(everybody, fill_value=ua)
        variance, freedom = jackknife_error(other - ua, differences.to_numpy()) ** 2, sizes.min() - 1
    if np.isclose(variance, 0, atol=1e-12):
        return None
    tail = (1 - LEVEL) / 2 / comb(n_groups, 2)
    return float(stats.t.isf(tail, freedom) * np.sqrt(variance))
