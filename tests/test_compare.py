"""Paired comparison: against scipy and counting by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from speechbrain_ser.evaluation.compare import (
    bootstrap_p,
    compare_predictions,
    holm,
    mcnemar_test,
    paired,
    speaker_difference,
)
from speechbrain_ser.evaluation.intervals import Sums
from speechbrain_ser.evaluation.metrics import metrics, word_errors
from speechbrain_ser.evaluation.tables import comparison_table

from .run_folders import CLASSES, FOLDS, predictions


def table(accuracy, seeds=(1,), asr=True, mse=None):
    frames = [predictions(f, accuracy, s, asr=asr, mse=mse).assign(seed=s) for f in FOLDS for s in seeds]
    frame = pd.concat(frames, ignore_index=True)
    return frame.join(word_errors(frame["transcript"], frame["hypothesis"])) if asr else frame


def shares(values, size=50):
    return Sums(size * np.asarray(values, float)[:, None], np.full((len(values), 1), float(size)))


@pytest.mark.parametrize(
    ("only_first", "only_second", "expected"),
    [(3, 9, stats.binomtest(3, 12).pvalue), (30, 15, stats.chi2.sf((30 - 15 - 1) ** 2 / 45, 1))],  # few: exact
)
def test_mcnemar(only_first, only_second, expected):
    first, second = [1] * 10 + [1] * only_first + [0] * only_second, [1] * 10 + [0] * only_first + [1] * only_second
    found = mcnemar_test(first, second)
    assert found == (only_first, only_second, pytest.approx(expected), only_first < 10)


def test_equal_variants():
    assert mcnemar_test([True, False], [True, False]).p == 1
    assert speaker_difference(shares([0.5, 0.7]), shares([0.5, 0.7]))[::3] == (0, 1)
    assert bootstrap_p(shares([0.5, 0.7]), shares([0.5, 0.7])) == 1


def test_speakers_of_one_size_give_the_paired_t_test():
    first, second = [0.5, 0.6, 0.55, 0.7, 0.65], [0.56, 0.62, 0.54, 0.8, 0.66]
    found = speaker_difference(shares(first), shares(second))
    expected = stats.ttest_rel(second, first)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_bootstrap_is_near_the_t_test_with_many_speakers():
    rng = np.random.default_rng(0)
    first = rng.uniform(0.4, 0.8, 40)
    second = first + rng.normal(0.02, 0.06, 40)
    assert bootstrap_p(shares(first), shares(second)) == pytest.approx(stats.ttest_rel(second, first).pvalue, abs=0.02)


def test_speakers_who_change_alike_have_no_spread_to_judge_by():
    first = Sums(np.array([[10.0], [14.0]]), np.full((2, 1), 20.0))
    found = speaker_difference(first, Sums(first.numerators + 1, first.denominators))
    assert found == (pytest.approx(0.05), None, None, None)


def test_one_speaker_has_no_p():
    assert speaker_difference(shares([0.5]), shares([0.6]))[1:] == (None, None, None)
    assert bootstrap_p(shares([0.5]), shares([0.6])) is None


def test_holm_by_hand():
    assert holm([0.04, 0.001, 0.03, 0.2]) == pytest.approx([0.09, 0.004, 0.09, 0.2])  # 0.04 is not below 3 x 0.03
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([None, 0.01]) == [None, 0.01] and holm([]) == [] and holm([None]) == [None]


def test_pairs_are_found_by_id_and_seed():
    first, second = table(0.8, (1, 2)), table(0.6, (2, 3)).sample(frac=1, random_state=0)
    a, b = paired(first, second)
    assert set(a["seed"]) == {2} and len(a) == 96
    assert (a[["ID", "seed", "emotion"]] == b[["ID", "seed", "emotion"]]).all(axis=None)


def compared(first, second):
    return {row["figure"]: row for row in compare_predictions(first, second, CLASSES)}


def test_differences_are_those_of_the_figures():
    first, second = table(0.6, mse=8e-4), table(0.8, mse=5e-4)
    found, a, b = compared(first, second), metrics(first, CLASSES), metrics(second, CLASSES)
    assert list(found) == ["WA", "UA", "F1", "WER", "MSE"]
    for figure, row in found.items():
        assert row["difference"] == pytest.approx(b[figure] - a[figure]) and (row["n"], row["speakers"]) == (96, 4)
        assert row["low"] < row["difference"] < row["high"]
    only = found["WA"]
    assert only["only_second_right"] - only["only_first_right"] == round(96 * (b["WA"] - a["WA"]))


def test_what_both_have_is_compared():
    assert "WER" not in compared(table(0.6, asr=False), table(0.8))
    assert "MSE" not in compared(table(0.6), table(0.8, mse=5e-4))
    first, second = table(0.6, mse=8e-4), table(0.8, mse=5e-4)
    mean = [f.groupby("speaker")["mse"].mean() for f in (first, second)]  # speakers of one size
    assert compared(first, second)["MSE"]["p"] == pytest.approx(stats.ttest_rel(*mean).pvalue)
    printed = comparison_table({"a": first, "b": second}, CLASSES, "last")
    row = printed.text.set_index("figure").loc["MSE"]
    assert row["difference"].startswith(f"{1e4 * (mean[1] - mean[0]).mean():+.1f} [-")
    assert any("MSE: in 1e-4" in n for n in printed.notes)


def test_table_of_all_pairs_is_corrected_for_their_number():
    variants = {name: table(a) for name, a in {"a": 0.5, "b": 0.6, "c": 0.8}.items()}
    found = comparison_table(variants, CLASSES, "last")
    wa = found.values[found.values["figure"] == "WA"]
    assert list(zip(wa["first"], wa["second"], strict=True)) == [("a", "b"), ("a", "c"), ("b", "c")]
    for column in ("p", "p_bootstrap", "p_mcnemar"):
        assert wa[f"{column}_holm"].tolist() == pytest.approx(holm(wa[column]))
        assert (wa[f"{column}_holm"] > wa[column]).any()
    assert any("3 comparisons" in n for n in found.notes)
    assert any("McNemar" in n and "IGNORES" in n and "speaker" in n for n in found.notes)
    only_first = comparison_table(variants, CLASSES, "last", reference="b")
    assert set(only_first.values["first"]) == {"b"} and any("2 comparisons" in n for n in only_first.notes)
