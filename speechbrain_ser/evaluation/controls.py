"""What the words alone would give: controls that hear nothing, on the folds of whatever system stands beside them."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from speechbrain_ser.data.text import normalise_transcript

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline  # not for who recognises, and only reads of controls

CONTROLS_FILE = "controls.csv"
#: column of controls.csv -> what a report calls it
CONTROLS = {
    "majority": "majority class",
    "lookup": "the emotion of the same text",
    "words": "bag of words, transcripts",
    "words_heard": "bag of words, own hypotheses",
}


def control_predictions(
    train: pd.DataFrame, test: pd.DataFrame, hypotheses: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return what each control says of each test utterance: columns ID and those of :data:`CONTROLS`.

    ``majority`` is the training part's most frequent class; ``lookup`` the most frequent one of the same text there,
    else the majority's; ``words`` a multinomial logistic regression on TF-IDF of the transcripts' words, classes
    weighted alike, and ``words_heard`` the same one on what a system has understood. A control without texts has no
    column.

    Arguments
    ---------
    train, test : pandas.DataFrame
        ``ID``, ``emotion``, ``text`` (one name of all that says the same, "" where unknown) and ``transcript``.
    hypotheses : sequence of str, optional
        A system's transcripts of the test utterances.

    Example
    -------
    >>> rows = {"ID": list("abcd"), "emotion": ["sad", "joy", "joy", "sad"], "text": ["1", "2", "2", "1"]}
    >>> train = pd.DataFrame({**rows, "transcript": ["oh no", "oh yes", "yes yes", "no no"]})
    >>> control_predictions(train, train.assign(text=["2", "1", "", ""]), ["no", "yes", "no", ""]).loc[0].tolist()
    ['a', 'joy', 'joy', 'sad', 'sad']
    """
    found = {"ID": test["ID"].tolist(), "majority": [_most(train["emotion"])] * len(test)}
    if (train["text"] != "").any():
        found["lookup"] = lookup(train, test["text"])
    if (model := _words_model(train)) is not None:
        found["words"] = model.predict(test["transcript"])
        if hypotheses is not None:
            found["words_heard"] = model.predict(hypotheses)
    return pd.DataFrame(found)


def lookup(train: pd.DataFrame, texts: Sequence[str]) -> list[str]:
    """Return the most frequent class of each text in the training part, of all of it where the text is not there."""
    counts = train.groupby(["text", "emotion"]).size().rename("n").reset_index()
    # the first in the alphabet of equally frequent ones
    most = counts.sort_values(["n", "emotion"], ascending=[False, True]).drop_duplicates("text")
    by_text = {text: emotion for text, emotion in zip(most["text"], most["emotion"], strict=True) if text != ""}
    otherwise = _most(train["emotion"])
    return [by_text.get(text, otherwise) for text in texts]


def told_by_texts(train: pd.DataFrame, test: pd.DataFrame) -> dict:
    """Return how far test texts are known from training, and what they tell there.

    ``known``: share of the test utterances whose text is known; ``heard``: of these, the share whose text a training
    utterance says; ``told``: of these, the share whose emotion is the text's most frequent one in training. None where
    nothing is counted.
    """
    known = test[test["text"] != ""]
    heard = known[known["text"].isin(set(train["text"]))]
    right = np.array(lookup(train, heard["text"])) == heard["emotion"].to_numpy()
    return {
        "known": len(known) / len(test) if len(test) else None,
        "heard": len(heard) / len(known) if len(known) else None,
        "told": float(right.mean()) if len(heard) else None,
    }


def _most(emotions: pd.Series) -> str:
    """The first in the alphabet of equally frequent ones."""
    return emotions.value_counts().sort_index(kind="stable").idxmax()


def _words_model(train: pd.DataFrame) -> "Pipeline | None":
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    spoken = train[train["transcript"].map(normalise_transcript) != ""]
    if spoken["emotion"].nunique() < 2:
        return None
    vectors = TfidfVectorizer(preprocessor=normalise_transcript, tokenizer=str.split, token_pattern=None)
    model = make_pipeline(vectors, LogisticRegression(class_weight="balanced", max_iter=1000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(spoken["transcript"], spoken["emotion"])
