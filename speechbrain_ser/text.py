"""Transcripts as the recognisers see them, and which of them a training part has heard."""

import re
from collections.abc import Iterable

TAG = re.compile(r"\{[^}]*\}|\[[^\]]*\]|<[^>]*>")


def normalise_transcript(text: str) -> str:
    """Upper case, tags dropped, punctuation removed except the apostrophe (SPEC of Cai et al., our choice).

    Arguments
    ---------
    text : str
        A transcript as the corpus has it, of any language.

    Returns
    -------
    str
        Words of letters, digits and apostrophes separated by single spaces.

    Example
    -------
    >>> normalise_transcript("I don’t {LAUGHTER} know -- über-all, OK?")
    "I DON'T KNOW ÜBER ALL OK"
    >>> normalise_transcript("[LAUGHTER]")
    ''
    """
    text = TAG.sub(" ", text).replace("’", "'").replace("`", "'").upper()  # noqa: RUF001
    kept = "".join(c if c.isalnum() or c == "'" else " " for c in text)
    # an apostrophe belongs to a word: quotation marks around words and lone ones go
    words = (w for w in kept.split() if w.strip("'"))
    return " ".join(words)


def heard_texts(train_texts: Iterable[str], test_texts: Iterable[str]) -> list[bool]:
    """Which test utterances say a text that also occurs in the training part.

    Compared after :func:`normalise_transcript`; an utterance without words counts as not heard.

    Arguments
    ---------
    train_texts : iterable of str
        Transcripts of the training utterances.
    test_texts : iterable of str
        Transcripts of the test utterances.

    Returns
    -------
    list of bool
        One value a test utterance.

    Example
    -------
    >>> heard_texts(["Excuse me."], ["EXCUSE ME", "Why?", ""])
    [True, False, False]
    """
    known = {normalise_transcript(t) for t in train_texts} - {""}
    return [normalise_transcript(t) in known for t in test_texts]
