"""How often nominal 95 % intervals hold the truth when 4 or 10 speakers are tested.

    python benchmarks/interval_coverage.py [--replicates=2000] [--out=benchmarks/interval_coverage.csv]

Test sets are drawn from a known truth: speakers differ (an intra-speaker correlation, or a coefficient of variation of
their word error rate), have SAVEE's equal or EMO-DB's unequal numbers of utterances, and each figure's interval is made
by several methods. A row says how often each held the truth, in percent.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special, stats
from tqdm import tqdm

from speechbrain_ser.evaluation.compare import speaker_difference
from speechbrain_ser.evaluation.intervals import (
    Sums,
    bootstrap_interval,
    estimate,
    jackknife_error,
    leave_one_out,
    speaker_interval,
)
from speechbrain_ser.files import write_csv

EMODB_SIZES = (49, 58, 43, 38, 55, 35, 61, 69, 56, 71)  # utterances of its ten speakers
EMODB_CLASSES = (127, 81, 46, 69, 71, 79, 62)
SPEAKERS = {"4 equal": (120,) * 4, "4 unequal": (35, 71, 43, 61), "10 unequal": EMODB_SIZES}
WORDS_PER_UTTERANCE = 8
ERRORS_COME_IN_BUNCHES = 3.0  # variance over mean of an utterance's word errors

Drawn = tuple[Sums, float]  # replicates and their truth


# ------------------------------------------------------------------ test sets of a known truth


def draw_wa(rng, sizes, wa: float, correlation: float, replicates: int) -> Drawn:
    """Each speaker has an accuracy of its own, beta distributed around `wa`."""
    sizes = np.asarray(sizes)
    of_speaker = _shares(stats.norm.cdf(rng.normal(size=(replicates, len(sizes)))), wa, correlation)
    correct = rng.binomial(sizes, of_speaker)
    return Sums(correct[..., None], np.broadcast_to(sizes[:, None], (*correct.shape, 1))), wa


def draw_ua(rng, sizes, ua: float, correlation: float, replicates: int) -> Drawn:
    """Seven classes as rare as EMO-DB's, some harder; a speaker is good at all of them and at some."""
    shares = np.asarray(EMODB_CLASSES) / sum(EMODB_CLASSES)
    counts = np.random.default_rng(0).multinomial(sizes, shares)  # [speakers, classes], the same in each replicate
    recalls = np.clip(ua + np.linspace(-0.08, 0.08, len(shares)), 0, 1)
    good = rng.normal(size=(replicates, len(sizes), 1)) + rng.normal(size=(replicates, *counts.shape))
    correct = rng.binomial(counts, _shares(stats.norm.cdf(good / np.sqrt(2)), recalls, correlation))
    return Sums(correct, np.broadcast_to(counts, correct.shape)), recalls.mean()


def draw_wer(rng, sizes, wer: float, variation: float, replicates: int) -> Drawn:
    """Each speaker has a word error rate of its own, gamma distributed; errors come in bunches."""
    words = WORDS_PER_UTTERANCE * np.asarray(sizes)
    rates = np.full((replicates, len(sizes)), wer)
    if variation:
        rates = rng.gamma(variation**-2, wer * variation**2, rates.shape)
    errors = rng.negative_binomial(rates * words / (ERRORS_COME_IN_BUNCHES - 1), 1 / ERRORS_COME_IN_BUNCHES)
    return Sums(errors[..., None], np.broadcast_to(words[:, None], (*errors.shape, 1))), wer


def draw_pair(rng, sizes, wa: float, correlation: float, replicates: int, gain: float = 0.0) -> tuple[Sums, Sums]:
    """Two systems on the same utterances: what is easy for one is mostly easy for the other."""
    sizes = np.asarray(sizes)
    shared, own = rng.normal(size=(replicates, len(sizes))), rng.normal(size=(2, replicates, len(sizes)))
    accuracy = [
        _shares(stats.norm.cdf(np.sqrt(0.8) * shared + np.sqrt(0.2) * o), w, correlation)
        for o, w in zip(own, (wa, wa + gain), strict=True)
    ]
    # the harder of the two is right on a share `agree` of what the other is right on
    both = rng.binomial(sizes, np.minimum(*accuracy) * 0.9)
    rest = sizes - both
    correct = [both + rng.binomial(rest, (a - 0.9 * np.minimum(*accuracy)) / (1 - 0.9 * np.minimum(*accuracy)))
               for a in accuracy]
    denominators = np.broadcast_to(sizes[:, None], (*both.shape, 1))
    return tuple(Sums(c[..., None], denominators) for c in correct)


def _shares(uniform, mean, correlation: float):
    """Beta quantiles: shares around `mean` whose draws correlate within a speaker by `correlation`."""
    if not correlation:
        return np.broadcast_to(mean, uniform.shape)
    strength = 1 / correlation - 1
    return special.betaincinv(np.asarray(mean) * strength, (1 - np.asarray(mean)) * strength, uniform)


# ------------------------------------------------------------------ methods


def independent(sums: Sums, scale: str):
    """As if every utterance were a speaker of its own: the textbook normal interval."""
    figure, totals = estimate(sums), sums.denominators.sum(-2)
    ratios = sums.numerators.sum(-2) / totals
    spread = ratios if scale == "log" else ratios * (1 - ratios)
    margin = 1.96 * np.sqrt((spread / totals).sum(-1)) / totals.shape[-1]
    return figure - margin, figure + margin


def residual_t(sums: Sums, scale: str):
    """Cluster-robust without small-sample correction (CR0), t of speakers - 1."""
    del scale
    figure, n = estimate(sums), sums.denominators.shape[-2]
    totals = sums.denominators.sum(-2, keepdims=True)
    ratios = sums.numerators.sum(-2, keepdims=True) / totals
    residuals = ((sums.numerators - ratios * sums.denominators) / totals).mean(-1)
    margin = stats.t.ppf(0.975, n - 1) * np.sqrt((residuals**2).sum(-1))
    return figure - margin, figure + margin


def jackknife_t(sums: Sums, scale: str):
    """Jackknife (CR3), t of speakers - 1, without a scale."""
    del scale
    return speaker_interval(sums, "identity")


METHODS: dict[str, Callable] = {
    "utterances independent": independent,
    "cluster bootstrap": lambda sums, scale: bootstrap_interval(sums, 999),
    "CR0 t": residual_t,
    "jackknife t": jackknife_t,
    "chosen": speaker_interval,  # jackknife t on the logit or log scale
}


# ------------------------------------------------------------------ coverage


@dataclass(frozen=True)
class Setting:
    """One row: which figure, how many speakers, how well, how unlike."""

    figure: str
    speakers: str
    truth: float
    unlike: float


def settings() -> Iterator[Setting]:
    """All rows of the table."""
    for speakers in SPEAKERS:
        for unlike in (0.0, 0.02, 0.05, 0.1, 0.2):
            yield from (Setting(f, speakers, t, unlike) for f in ("WA", "UA") for t in (0.5, 0.7, 0.9))
        yield from (Setting("WER", speakers, t, v) for t in (0.2, 0.5, 1.0) for v in (0.0, 0.2, 0.4))
        yield from (Setting("WA difference", speakers, t, u) for t in (0.5, 0.7, 0.9) for u in (0.0, 0.02, 0.05, 0.1))


def coverage(setting: Setting, replicates: int, methods=METHODS, seed: int = 0) -> dict[str, float]:
    """The share of replicates whose interval holds the truth, by method.

    Arguments
    ---------
    setting : Setting
        What is drawn.
    replicates : int
        How often.
    methods : mapping of str to callable
        (sums, scale) -> (low, high).
    seed : int
        Of the draws.

    Returns
    -------
    dict of str to float
    """
    rng = np.random.default_rng(seed)
    sizes = SPEAKERS[setting.speakers]
    if setting.figure == "WA difference":
        return _coverage_of_difference(rng, sizes, setting, replicates)
    draw = {"WA": draw_wa, "UA": draw_ua, "WER": draw_wer}[setting.figure]
    sums, truth = draw(rng, sizes, setting.truth, setting.unlike, replicates)
    scale = "log" if setting.figure == "WER" else "logit"
    return {name: _held(method(sums, scale), truth) for name, method in methods.items()}


def _coverage_of_difference(rng, sizes, setting: Setting, replicates: int) -> dict[str, float]:
    gain = 0.05
    first, second = draw_pair(rng, sizes, setting.truth, setting.unlike, replicates, gain)
    without = leave_one_out(second) - leave_one_out(first)
    difference = estimate(second) - estimate(first)
    residuals = (second.numerators - first.numerators)[..., 0] - difference[:, None] * first.denominators[..., 0]
    total = first.denominators.sum((-2, -1))
    n = len(sizes)
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), 999)
    drawn = weights @ (second.numerators - first.numerators)[..., 0].T / (weights @ first.denominators[..., 0].T)
    t = stats.t.ppf(0.975, n - 1)
    spread = {
        "CR0 t": t * np.sqrt((residuals**2).sum(-1)) / total,
        "jackknife t": t * jackknife_error(difference, without),
    }
    chosen = speaker_difference(first, second)
    return {
        "cluster bootstrap": _held(np.quantile(drawn, [0.025, 0.975], axis=0), gain),
        **{name: _held((difference - m, difference + m), gain) for name, m in spread.items()},
        "chosen": _held((chosen.low, chosen.high), gain),
    }


def _held(interval, truth: float) -> float:
    low, high = interval
    return float(np.mean((low <= truth) & (truth <= high)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--out", default="benchmarks/interval_coverage.csv")
    arguments = parser.parse_args()
    rows = []
    for k, setting in enumerate(tqdm(list(settings()))):
        found = coverage(setting, arguments.replicates, seed=k)
        rows.append({**vars(setting), **{m: round(100 * c, 1) for m, c in found.items()}})
    table = pd.DataFrame(rows)
    methods = list(METHODS)
    summary = table.groupby(["figure", "speakers"], sort=False)[methods].agg(["min", "mean", "max"]).round(1)
    print(table.to_string(index=False), "\n\nover all settings of a figure, % of intervals that hold the truth:")
    print(summary.T.unstack().to_string())
    print(f"\n{write_csv(table, arguments.out)}")


if __name__ == "__main__":
    main()
