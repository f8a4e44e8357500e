"""Figures of one set of predictions against scikit-learn, jiwer and counting by hand."""

import json
import math

import jiwer
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from speechbrain_ser.evaluation.metrics import (
    emotion_metrics,
    metrics,
    metrics_by_text,
    word_error_rate,
)

CLASSES = ["angry", "happy", "neutral", "sad"]


def random_predictions(seed, n=60, classes=CLASSES):
    rng = np.random.default_rng(seed)
    return rng.choice(classes, n).tolist(), rng.choice(CLASSES, n).tolist()


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
    assert np.array(found["confusion"]).trace() / 60 == pytest.approx(found["WA"])


def test_a_class_that_does_not_occur_does_not_count():
    emotion, predicted = random_predictions(1, classes=CLASSES[:2])
    found = emotion_metrics(emotion, predicted, CLASSES)
    recalls = [np.mean([p == c for e, p in zip(emotion, predicted, strict=True) if e == c]) for c in CLASSES[:2]]
    assert found["UA"] == pytest.approx(np.mean(recalls))


def test_nothing_right_is_zero_not_nan():
    found = emotion_metrics(["angry", "sad"], ["happy", "happy"], CLASSES)
    assert (found["WA"], found["UA"], found["F1"]) == (0, 0, 0)
    json.dumps(found, allow_nan=False)


# ------------------------------------------------------------------ WER


def test_wer_by_hand_and_against_jiwer():
    said = ["a b c d", "e f", "g"]
    heard = ["a x c", "e f f", ""]
    # one substitution, one deletion; one insertion; one deletion; of seven words
    assert word_error_rate(said, heard) == pytest.approx(4 / 7)
    assert word_error_rate(said, heard) == pytest.approx(jiwer.wer(said, heard))


def test_wer_is_pooled_over_words_not_averaged_over_utterances():
    assert word_error_rate(["a", "b c d e"], ["x", "b c d e"]) == pytest.approx(1 / 5)


def test_wer_does_not_mind_case_punctuation_and_tags():
    assert word_error_rate(["Excuse me! {LAUGH}", "Könnte ich's?"], ["EXCUSE ME", "könnte ich's"]) == 0


def test_wer_of_an_utterance_without_words_counts_insertions():
    assert word_error_rate(["{LAUGH}", "yes yes"], ["HA HA HA", "YES YES"]) == 1.5
    assert word_error_rate(["", "yes"], ["", "YES"]) == 0


def test_wer_without_reference_words_is_none():
    assert word_error_rate(["{LAUGH}", ""], ["A", ""]) is None
    assert word_error_rate([], []) is None


# ------------------------------------------------------------------ tables


def table(seed=0, n=20):
    emotion, predicted = random_predictions(seed, n)
    texts = [f"sentence {k % 5}" for k in range(n)]
    return pd.DataFrame(
        {
            "ID": [f"u{k}" for k in range(n)],
            "emotion": emotion,
            "predicted": predicted,
            "transcript": texts,
            "hypothesis": [t if k % 2 else "nothing" for k, t in enumerate(texts)],
        }
    )


def test_no_wer_without_an_asr_head():
    assert "WER" not in metrics(table().drop(columns="hypothesis"), CLASSES)
    assert metrics(table(), CLASSES)["WER"] == pytest.approx(0.5)


def test_mse_is_the_mean_over_utterances_by_hand():
    """Squared errors of two reconstructions, 2 frames x 2 bands and 1 frame x 2 bands: 0.0005 and 0.001, not pooled."""
    target = [np.array([[0.10, 0.20], [0.30, 0.40]]), np.array([[0.5, 0.5]])]
    heard = [np.array([[0.12, 0.19], [0.30, 0.40 + np.sqrt(0.0015)]]), np.array([[0.5, 0.5 + np.sqrt(0.002)]])]
    mse = [float(((a - b) ** 2).mean()) for a, b in zip(target, heard, strict=True)]
    assert mse == pytest.approx([(0.0004 + 0.0001 + 0.0015) / 4, 0.001])
    rows = pd.DataFrame({"emotion": ["sad", "sad"], "predicted": ["sad", "happy"], "mse": mse})
    found = metrics(rows, CLASSES)
    assert found["MSE"] == pytest.approx((0.0005 + 0.001) / 2) and type(found["MSE"]) is float


def test_no_mse_without_a_reconstruction():
    assert "MSE" not in metrics(table(), CLASSES)
    rows = table().assign(mse=np.arange(20) / 1000, text_heard=np.arange(20) < 5)
    found = metrics_by_text(rows, CLASSES)
    assert found["all"]["MSE"] == pytest.approx(0.0095) and found["text_heard"]["MSE"] == pytest.approx(0.002)


def test_an_mse_that_is_nan_is_not_left_out_of_the_mean():
    assert math.isnan(metrics(table().assign(mse=[*[0.001] * 19, math.nan]), CLASSES)["MSE"])


def test_the_text_disjoint_part():
    rows = table()
    rows["text_heard"] = np.arange(len(rows)) < 5
    found = metrics_by_text(rows.sample(frac=1, random_state=0), CLASSES)
    assert found["share_text_heard"] == 0.25
    assert (found["all"]["n"], found["text_heard"]["n"], found["text_disjoint"]["n"]) == (20, 5, 15)
    assert found["text_heard"]["WA"] == (rows["emotion"] == rows["predicted"])[:5].mean()
    assert found["text_disjoint"]["WA"] == (rows["emotion"] == rows["predicted"])[5:].mean()


@pytest.mark.parametrize(("value", "empty"), [(True, "text_disjoint"), (False, "text_heard")])
def test_an_empty_part_says_none(value, empty):
    found = metrics_by_text(table().assign(text_heard=value), CLASSES)
    assert found[empty] == "none"
    assert all(found[p] != "none" for p in {"text_heard", "text_disjoint"} - {empty})


def walk(value):
    if isinstance(value, dict):
        for v in value.values():
            yield from walk(v)
    elif isinstance(value, list):
        for v in value:
            yield from walk(v)
    else:
        yield value


@pytest.mark.parametrize("n", [1, 2, 5])
def test_never_nan_and_plain_python(n):
    """However few utterances there are, the figures can be written as JSON."""
    for seed in range(5):
        rows = table(seed, n).assign(transcript="{LAUGH}")
        found = metrics_by_text(rows.assign(text_heard=np.arange(len(rows)) % 2 == 0), CLASSES)
        assert found["all"]["WER"] is None
        json.dumps(found, allow_nan=False)
        for value in walk(found):
            assert value is None or type(value) in (int, float, str)
            assert not (isinstance(value, float) and math.isnan(value))
