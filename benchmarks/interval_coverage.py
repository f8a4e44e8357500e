"""How often nominal 95 % intervals hold the truth when 4 or 10 speakers are tested.

    python benchmarks/interval_coverage.py [--replicates=4000] [--out=benchmarks]

Test sets are drawn from a known truth: speakers differ (an intra-speaker correlation, or a coefficient of variation of
their word error rate or reconstruction error), have SAVEE's equal or EMO-DB's unequal numbers of utterances, and each
figure's interval is made by several methods. A row says how often each held the truth, in percent. A second table says
how often two equally good systems are found different.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import special, stats
from tqdm import tqdm

from speechbrain_ser.evaluation.compare import bootstrap_p, mcnemar_test, speaker_difference
from speechbrain_ser.evaluation.intervals import Interval, Sums, estimate, speaker_interval
from speechbrain_ser.evaluation.metrics import FIGURES
from speechbrain_ser.files import write_csv

EMODB_SIZES = (49, 58, 43, 38, 55, 35, 61, 69, 56, 71)  # utterances of its ten speakers
EMODB_CLASSES = (127, 81, 46, 69, 71, 79, 62)
SPEAKERS = {"4 equal": (120,) * 4, "4 unequal": (35, 71, 43, 61), "10 unequal": EMODB_SIZES}
WORDS_PER_UTTERANCE = 8
ERRORS_COME_IN_BUNCHES = 3.0  # variance over mean of an utterance's word errors
UTTERANCES_DIFFER = 0.5  # coefficient of variation of a speaker's reconstruction errors
GAIN = 0.05  # of the second system, where differences are covered

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


def draw_mse(rng, sizes, mse: float, variation: float, replicates: int) -> Drawn:
    """Each speaker has a reconstruction error of its own, and each utterance around it, both gamma distributed."""
    sizes = np.asarray(sizes)
    means = np.full((replicates, len(sizes)), mse)
    if variation:
        means = rng.gamma(variation**-2, mse * variation**2, means.shape)
    summed = rng.gamma(sizes * UTTERANCES_DIFFER**-2, means * UTTERANCES_DIFFER**2)
    return Sums(summed[..., None], np.broadcast_to(sizes[:, None], (*summed.shape, 1))), mse


@dataclass(frozen=True)
class Pair:
    """Two systems on the same utterances: right on both, on one, by replicate and speaker."""

    both: np.ndarray
    only_first: np.ndarray
    only_second: np.ndarray
    sizes: np.ndarray

    @property
    def sums(self) -> tuple[Sums, Sums]:
        """Of the accuracies of the first and the second."""
        totals = np.broadcast_to(self.sizes[:, None], (*self.both.shape, 1))
        return tuple(Sums((self.both + only)[..., None], totals) for only in (self.only_first, self.only_second))


def draw_pair(rng, sizes, wa: float, correlation: float, replicates: int, gain: float) -> Pair:
    """What is easy for one system is mostly easy for the other, speakers and utterances alike."""
    sizes = np.asarray(sizes)
    shared, own = rng.normal(size=(replicates, len(sizes))), rng.normal(size=(2, replicates, len(sizes)))
    uniform = stats.norm.cdf(np.sqrt(0.8) * shared + np.sqrt(0.2) * own)
    first, second = (_shares(u, w, correlation) for u, w in zip(uniform, (wa, wa + gain), strict=True))
    both = 0.3 * first * second + 0.7 * np.minimum(first, second)
    counts = rng.multinomial(sizes, np.stack([both, first - both, second - both, 1 - first - second + both], -1))
    return Pair(*np.moveaxis(counts[..., :3], -1, 0), sizes)


def _shares(uniform, mean, correlation: float):
    """Beta quantiles: shares around `mean` whose draws correlate within a speaker by `correlation`."""
    if not correlation:
        return np.broadcast_to(mean, uniform.shape)
    strength = 1 / correlation - 1
    return special.betaincinv(np.asarray(mean) * strength, (1 - np.asarray(mean)) * strength, uniform)


# ------------------------------------------------------------------ methods


def independent(sums: Sums, scale: str):
    """As if every utterance were a speaker of its own: the textbook normal interval of counts."""
    if scale == "log_mean":  # no count, and sums by speaker do not tell how much utterances differ
        return np.nan, np.nan
    figure, totals = estimate(sums), sums.denominators.sum(-2)
    ratios = sums.numerators.sum(-2) / totals
    spread = ratios if scale == "log" else ratios * (1 - ratios)
    margin = 1.96 * np.sqrt((spread / totals).sum(-1)) / totals.shape[-1]
    return figure - margin, figure + margin


def bootstrap_interval(sums: Sums, n_resamples: int = 999, seed: int = 0) -> Interval:
    """The plain cluster bootstrap: whole speakers drawn with replacement, percentiles. Too short with few speakers."""
    n_speakers = sums.denominators.shape[-2]
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n_speakers, np.full(n_speakers, 1 / n_speakers), n_resamples).astype(float)
    with np.errstate(invalid="ignore"):  # a class may be missing from a resample, as from a leave-one-out
        figures = np.nanmean((weights @ sums.numerators) / (weights @ sums.denominators), axis=-1)
    return Interval(*np.quantile(figures, [0.025, 0.975], axis=-1))


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
    "cluster bootstrap": lambda sums, scale: bootstrap_interval(sums),
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
        # the better of the two is at `truth`; near the ceiling the speakers' differences are very skewed
        for name, truths in {"WA difference": (0.55, 0.75, 0.9), "WA difference at .95": (0.95,)}.items():
            yield from (Setting(name, speakers, t, u) for t in truths for u in (0.0, 0.02, 0.05, 0.1))
    # last, so that the others' draws stay what they were; one truth: the scale has no unit
    yield from (Setting("MSE", speakers, 5e-4, v) for speakers in SPEAKERS for v in (0.0, 0.1, 0.2, 0.4))


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
    if setting.figure.startswith("WA difference"):
        return _coverage_of_difference(rng, sizes, setting, replicates)
    draw = {"WA": draw_wa, "UA": draw_ua, "WER": draw_wer, "MSE": draw_mse}[setting.figure]
    sums, truth = draw(rng, sizes, setting.truth, setting.unlike, replicates)
    return {name: _held(method(sums, FIGURES[setting.figure].scale), truth) for name, method in methods.items()}


def _coverage_of_difference(rng, sizes, setting: Setting, replicates: int) -> dict[str, float]:
    pair = draw_pair(rng, sizes, setting.truth - GAIN, setting.unlike, replicates, GAIN)
    chosen = speaker_difference(*pair.sums)
    difference, total = chosen.difference, pair.sizes.sum()
    gained = pair.only_second - pair.only_first
    margin = {
        "utterances independent": 1.96 * np.sqrt((pair.only_first + pair.only_second).sum(-1)) / total,
        "CR0 t": stats.t.ppf(0.975, len(sizes) - 1)
        * np.sqrt(((gained - difference[:, None] * pair.sizes) ** 2).sum(-1))
        / total,
    }
    return {
        **{name: _held((difference - m, difference + m), GAIN) for name, m in margin.items()},
        "cluster bootstrap": _held(np.quantile(_resampled(pair), [0.025, 0.975], axis=0), GAIN),
        "jackknife t": _held((chosen.low, chosen.high), GAIN),
        "chosen": _held((chosen.low, chosen.high), GAIN),
    }


def _resampled(pair: Pair) -> np.ndarray:
    """Differences [resamples, replicates] when whole speakers are drawn with replacement."""
    n = len(pair.sizes)
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), 999)
    return weights @ (pair.only_second - pair.only_first).T / (weights @ pair.sizes)[:, None]


def false_alarms(speakers: str, unlike: float, replicates: int, wa: float = 0.7, seed: int = 0) -> dict[str, float]:
    """How often each test finds two equally good systems different at the 5 % level.

    Arguments
    ---------
    speakers : str
        A key of SPEAKERS.
    unlike : float
        Intra-speaker correlation: with it the systems suit different speakers.
    replicates : int
        How often.
    wa : float
        Of both.
    seed : int
        Of the draws.

    Returns
    -------
    dict of str to float
    """
    pair = draw_pair(np.random.default_rng(seed), SPEAKERS[speakers], wa, unlike, replicates, 0.0)
    first, second = pair.sums
    drawn = _resampled(pair)
    discordant = zip(pair.only_first.sum(-1), pair.only_second.sum(-1), strict=True)
    one_by_one = [[Sums(*(a[k] for a in sums[:2])) for sums in (first, second)] for k in range(replicates)]
    p_values = {
        "McNemar": [mcnemar_test([True] * b + [False] * c, [False] * b + [True] * c).p for b, c in discordant],
        "cluster bootstrap": 2 * np.minimum((drawn <= 0).mean(0), (drawn >= 0).mean(0)),
        "wild cluster bootstrap (chosen)": [bootstrap_p(*sums, n_resamples=999) for sums in one_by_one],
        "jackknife t (chosen)": speaker_difference(first, second).p,
    }
    return {name: float(np.mean(np.asarray(p) < 0.05)) for name, p in p_values.items()}


def _held(interval, truth: float) -> float:
    low, high = interval
    if np.isnan(low).all():  # a method that has none
        return np.nan
    return float(np.mean((low <= truth) & (truth <= high)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=4000)
    parser.add_argument("--out", default="benchmarks", help="folder of the tables (default: %(default)s)")
    arguments = parser.parse_args()
    coverages, alarms = [], []
    for k, setting in enumerate(tqdm(list(settings()), desc="coverage")):
        found = coverage(setting, arguments.replicates, seed=k)
        coverages.append({**vars(setting), **{m: round(100 * found[m], 1) for m in METHODS}})
    cells = [(s, u) for s in SPEAKERS for u in (0.0, 0.02, 0.05, 0.1)]
    for k, (speakers, unlike) in enumerate(tqdm(cells, desc="false alarms")):
        found = false_alarms(speakers, unlike, arguments.replicates, seed=k)
        alarms.append({"speakers": speakers, "unlike": unlike, **{m: round(100 * v, 1) for m, v in found.items()}})
    coverages, alarms = pd.DataFrame(coverages), pd.DataFrame(alarms)
    methods = list(METHODS)
    summary = coverages.melt(["figure", "speakers"], methods, var_name="method").groupby(
        ["figure", "speakers", "method"], sort=False
    )
    summary = summary["value"].agg(["min", "mean", "max"]).round(1).unstack("method").swaplevel(axis=1)
    print(coverages.to_string(index=False))
    print("\n% of nominal 95 % intervals that hold the truth, over all settings of a figure (min, mean, max):")
    for method in methods:
        print(f"\n{method}\n{summary[method].to_string()}")
    print(f"\n% of equally good pairs found different at the 5 % level:\n{alarms.to_string(index=False)}\n")
    print(write_csv(coverages, Path(arguments.out) / "interval_coverage.csv"))
    print(write_csv(alarms, Path(arguments.out) / "false_alarms.csv"))


if __name__ == "__main__":
    main()
