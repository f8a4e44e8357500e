"""Intervals by speaker: against formulas, scipy, scikit-learn and jiwer, and by simulation."""

import jiwer
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as sk

from benchmarks.interval_coverage import METHODS, SPEAKERS, Setting, bootstrap_interval, coverage, false_alarms
from speechbrain_ser.data.labels import DIMENSIONS
from speechbrain_ser.evaluation.intervals import (
    Sums,
    estimate,
    jackknife_error,
    leave_one_out,
    ratio_sums,
    speaker_interval,
    speaker_sums,
)
from speechbrain_ser.evaluation.metrics import RECOGNITION, metrics, word_errors

from .run_folders import CLASSES, predictions


def counted(frame):
    return frame.join(word_errors(frame["transcript"], frame["hypothesis"]))


@pytest.fixture(scope="module")
def table():
    """Five speakers of 15 to 40 utterances."""
    sizes = (15, 20, 25, 30, 40)
    frame = counted(pd.concat([predictions(f"s{n}", 0.6, n=n, mse=5e-4) for n in sizes], ignore_index=True))
    ratings = np.random.default_rng(0).normal(3, 1, (len(frame), len(DIMENSIONS)))
    said = pd.DataFrame(ratings + 0.5, columns=[f"{name}_predicted" for name in DIMENSIONS])
    ratings[::7] = np.nan  # nobody rated
    return frame.join(pd.DataFrame(ratings, columns=DIMENSIONS)).join(said)


def test_by_hand():
    """Two speakers, 8 of 10 and 3 of 5 right: without one the other's share stays, 3/5 and 8/10."""
    sums = Sums(np.array([[8.0], [3.0]]), np.array([[10.0], [5.0]]))
    wa = 11 / 15
    assert estimate(sums) == pytest.approx(wa)
    assert leave_one_out(sums) == pytest.approx([0.6, 0.8])
    error = np.sqrt((1 / 2) * ((0.6 - wa) ** 2 + (0.8 - wa) ** 2))
    assert jackknife_error(wa, leave_one_out(sums)) == pytest.approx(error)
    margin = stats.t.ppf(0.975, 1) * error
    assert speaker_interval(sums, "identity") == pytest.approx((wa - margin, wa + margin))
    logit = np.log(wa / (1 - wa))
    ends = [1 / (1 + np.exp(-(logit + sign * margin / (wa * (1 - wa))))) for sign in (-1, 1)]
    assert speaker_interval(sums, "logit") == pytest.approx(ends)


def test_speakers_of_one_size_give_scipys_intervals_of_their_shares():
    shares = np.array([0.5, 0.7, 0.65, 0.8, 0.55, 0.6])
    sums = Sums(40 * shares[:, None], np.full((6, 1), 40.0))
    expected = stats.t.interval(0.95, 5, shares.mean(), stats.sem(shares))
    assert speaker_interval(sums, "identity") == pytest.approx(expected)
    theirs = stats.bootstrap((shares,), np.mean, method="percentile", n_resamples=20000, rng=0).confidence_interval
    assert bootstrap_interval(sums, n_resamples=20000) == pytest.approx(tuple(theirs), abs=0.005)


def test_sums_give_the_figures_of_scikit_learn_and_jiwer(table):
    found = {name: estimate(s) for name, s in speaker_sums(table, CLASSES).items()}
    expected = metrics(table.drop(columns=["words", "word_errors"]), CLASSES)
    assert found == pytest.approx({name: expected[name] for name in RECOGNITION})
    assert found["UA"] == pytest.approx(sk.balanced_accuracy_score(table["emotion"], table["predicted"]))
    assert found["WER"] == pytest.approx(jiwer.wer(table["transcript"].str.upper().tolist(), list(table["hypothesis"])))


@pytest.mark.parametrize("name", RECOGNITION)
def test_leave_one_out_is_the_figure_of_the_others(table, name):
    expected = [metrics(table[table["speaker"] != s], CLASSES)[name] for s in sorted(set(table["speaker"]))]
    assert leave_one_out(speaker_sums(table, CLASSES)[name]) == pytest.approx(expected)


def test_rows_of_several_seeds_are_one_cluster(table):
    """Repeating every prediction adds nothing."""
    once, thrice = (speaker_sums(t, CLASSES)["WA"] for t in (table, pd.concat([table] * 3)))
    assert speaker_interval(once) == pytest.approx(speaker_interval(thrice))


def test_a_class_of_one_speaker_only_keeps_its_recall():
    rows = pd.DataFrame({"speaker": list("112233"), "emotion": list("abaaaa"), "predicted": list("abaaaa")})
    rows.loc[5, "predicted"] = "b"
    sums = speaker_sums(rows, ["a", "b"])["UA"]
    # without speaker 1 class b is gone: its recall stays 1, that of a is 3/4
    assert leave_one_out(sums)[0] == pytest.approx((3 / 4 + 1) / 2)


@pytest.mark.parametrize("right", [0, 20])
def test_all_right_or_all_wrong_is_no_certainty(right):
    low, high = speaker_interval(Sums(np.full((4, 1), float(right)), np.full((4, 1), 20.0)))
    assert (low, high)[right > 0] == right / 20 and 0.05 < high - low < 0.15
    # Clopper-Pearson of 80 utterances, made wider for four speakers
    exact = stats.binomtest(4 * right, 80).proportion_ci(method="exact")
    assert high - low > exact.high - exact.low


def test_nothing_recognised_is_a_wer_of_100_percent_with_an_interval():
    low, high = speaker_interval(Sums(np.full((4, 1), 50.0), np.full((4, 1), 50.0)), "log")
    assert 0.7 < low < 1 < high < 1.3


def test_of_whom_nothing_is_counted_is_no_speaker():
    right, counted, speaker = (np.repeat(x, 20) for x in ([9, 14, 17, 0, 0], [10, 20, 20, 0, 0], range(5)))
    found = speaker_interval(ratio_sums(speaker, right, counted))
    assert found == speaker_interval(ratio_sums(speaker[:60], right[:60], counted[:60]))
    assert speaker_interval(ratio_sums(speaker[40:], right[40:], counted[40:])) is None  # of one alone


def test_mse_by_hand_on_the_log_scale():
    """Two speakers: 2 utterances of .0004, .0006 and 3 of .001; without one the other's mean stays."""
    rows = pd.DataFrame({"speaker": list("aabbb"), "emotion": "sad", "predicted": "sad"})
    sums = speaker_sums(rows.assign(mse=[4e-4, 6e-4, 1e-3, 1e-3, 1e-3]), CLASSES)["MSE"]
    mse = 0.004 / 5
    assert estimate(sums) == pytest.approx(mse) and leave_one_out(sums) == pytest.approx([1e-3, 5e-4])
    margin = stats.t.ppf(0.975, 1) * np.sqrt((1 / 2) * ((1e-3 - mse) ** 2 + (5e-4 - mse) ** 2))
    ends = (mse * np.exp(-margin / mse), mse * np.exp(margin / mse))
    assert speaker_interval(sums, "log_mean") == speaker_interval(sums, "log") == pytest.approx(ends)


@pytest.mark.parametrize(
    ("speakers", "values", "scale"),
    [("xx", [1, 0], "logit"), ("aabb", [0.0] * 4, "log_mean"), ("aabb", [5e-4] * 4, "log_mean")],
)
def test_one_speaker_and_an_mse_that_all_share_have_no_interval(speakers, values, scale):
    """An MSE counts nothing: no exact interval of counts, as WER has there, can stand for speakers' spread."""
    assert speaker_interval(ratio_sums(list(speakers), values, [1] * len(values)), scale) is None


@pytest.mark.parametrize("shares", [(0.02, 0, 0, 0.3), (1, 1, 1, 0.6), (1, 1, 0.99, 1)])
def test_never_outside_what_is_possible(shares):
    low, high = speaker_interval(Sums(100 * np.array(shares)[:, None], np.full((4, 1), 100.0)))
    assert 0 <= low <= np.mean(shares) <= high <= 1


SHORT = [
    Setting("WA", "4 unequal", 0.9, 0.1),
    Setting("WA", "10 unequal", 0.7, 0.05),
    Setting("UA", "10 unequal", 0.7, 0.1),
    Setting("WER", "4 unequal", 0.5, 0.2),
    Setting("MSE", "4 unequal", 5e-4, 0.4),
    Setting("WA difference", "4 unequal", 0.75, 0.05),
]


@pytest.mark.parametrize("setting", SHORT, ids=lambda s: f"{s.figure}-{s.speakers}")
def test_coverage(setting):
    """Nominal 95 %: ours is near it, the plain cluster bootstrap is not (all settings: benchmarks/)."""
    methods = {m: METHODS[m] for m in ("cluster bootstrap", "chosen")}
    found = coverage(setting, 1000, methods)
    assert 0.92 < found["chosen"] < 0.99
    assert found["cluster bootstrap"] < 0.92 < found["chosen"]
    assert found["cluster bootstrap"] < (0.85 if len(SPEAKERS[setting.speakers]) == 4 else 0.92)


def test_mcnemar_finds_too_much_where_speakers_differ():
    found = false_alarms("4 equal", 0.05, 300)
    assert found["McNemar"] > 0.2 and found["cluster bootstrap"] > 0.1
    assert found["jackknife t (chosen)"] < 0.09 and found["wild cluster bootstrap (chosen)"] < 0.09
