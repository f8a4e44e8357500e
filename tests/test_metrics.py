"""Figures of one set of predictions against scikit-learn, jiwer and counting by hand."""

import json
import math

import jiwer
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from speechbrain_ser.evaluation.metrics import FIGURES, emotion_metrics, metrics, metrics_by_text

CLASSES = ["angry", "happy", "neutral", "sad"]


def random_predictions(seed, n=60):
    rng = np.random.default_rng(seed)
    return rng.choice(CLASSES, n).tolist(), rng.choice(CLASSES, n).tolist()


def test_by_hand():
    emotion = ["angry"] * 4 + ["sad"] * 2
    predicted = ["angry", "angry", "angry", "sad", "sad", "happy"]
    found = emotion_metrics(emotion, predicted, CLASSES)
    assert found["WA"] == pytest.approx(4 / 6)
    assert found["UA"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    # angry: precision 1, recall 3/4; sad: precision 1/2, recall 1/2
    assert found["F1"] == pytest.approx((6 / 7 + 1 / 2) / 2)
    assert found["recall"] == {"angry": 0.75, "happy": None, "neutral": None, "sad": 0.5}
    assert found["confusion"] == [[3, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1]]


@pytest.mark.parametrize("seed", range(3))
def test_against_scikit_learn(seed):
    emotion, predicted = random_predictions(seed)
    found = emotion_metrics(emotion, predicted, CLASSES)
    assert found["WA"] == sk.accuracy_score(emotion, predicted)
    assert found["UA"] == pytest.approx(sk.balanced_accuracy_score(emotion, predicted))
    assert found["F1"] == pytest.approx(sk.f1_score(emotion, predicted, average="macro"))


def test_nothing_right_is_zero():
    found = emotion_metrics(["angry", "sad"], ["happy", "happy"], CLASSES)
    assert (found["WA"], found["UA"], found["F1"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("said", "heard", "expected"),
    [
        # one substitution, one deletion; one insertion; one deletion; of seven words
        (["a b c d", "e f", "g"], ["a x c", "e f f", ""], 4 / 7),
        (["a", "b c d e"], ["x", "b c d e"], 1 / 5),  # pooled over words
        (["Excuse me! {LAUGH}", "Könnte ich's?"], ["EXCUSE ME", "könnte ich's"], 0),  # case, punctuation, tags
        (["{LAUGH}", "yes yes"], ["HA HA HA", "YES YES"], 1.5),  # insertions count where nothing is said
        (["", "yes"], ["", "YES"], 0),
        (["{LAUGH}", ""], ["A", ""], None),
        ([], [], None),
    ],
)
def test_word_error_rate(said, heard, expected):
    found = FIGURES["WER"].of(pd.DataFrame({"transcript": said, "hypothesis": heard}))
    assert found == (None if expected is None else pytest.approx(expected))
    if all(map(str.islower, said)) and said:
        assert found == pytest.approx(jiwer.wer(said, heard))


def table(seed=0, n=20):
    emotion, predicted = random_predictions(seed, n)
    rows = pd.DataFrame({"ID": [f"u{k}" for k in range(n)], "emotion": emotion, "predicted": predicted})
    rows["transcript"] = [f"sentence {k % 5}" for k in range(n)]
    rows["hypothesis"] = rows["transcript"].where(rows.index % 2 == 1, "nothing")
    return rows.assign(text_heard=np.arange(n) < 5)


def test_a_head_that_there_is_not_has_no_figure():
    found = metrics(table(), CLASSES)
    assert found["WER"] == pytest.approx(0.5) and "MSE" not in found
    assert "WER" not in metrics(table().drop(columns="hypothesis"), CLASSES)


def test_mse_is_the_mean_over_utterances_and_leaves_none_out():
    found = metrics_by_text(table().assign(mse=np.arange(20) / 1000), CLASSES)
    assert found["all"]["MSE"] == pytest.approx(0.0095) and found["text_heard"]["MSE"] == pytest.approx(0.002)
    assert math.isnan(metrics(table().assign(mse=[*[0.001] * 19, math.nan]), CLASSES)["MSE"])


def test_the_text_disjoint_part():
    rows = table()
    found = metrics_by_text(rows.sample(frac=1, random_state=0), CLASSES)
    assert found["share_text_heard"] == 0.25
    assert (found["all"]["n"], found["text_heard"]["n"], found["text_disjoint"]["n"]) == (20, 5, 15)
    assert found["text_heard"]["WA"] == (rows["emotion"] == rows["predicted"])[:5].mean()
    assert found["text_disjoint"]["WA"] == (rows["emotion"] == rows["predicted"])[5:].mean()


@pytest.mark.parametrize(("value", "empty"), [(True, "text_disjoint"), (False, "text_heard")])
def test_an_empty_part_says_none(value, empty):
    found = metrics_by_text(table().assign(text_heard=value), CLASSES)
    assert [part for part, figures in found.items() if figures == "none"] == [empty]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_never_nan_and_plain_python(n):
    """However few utterances there are, the figures can be written as JSON."""
    for seed in range(5):
        rows = table(seed, n).assign(transcript="{LAUGH}")
        found = metrics_by_text(rows.assign(text_heard=np.arange(len(rows)) % 2 == 0), CLASSES)
        assert found["all"]["WER"] is None
        assert json.loads(json.dumps(found, allow_nan=False)) == found
