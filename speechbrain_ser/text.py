"""Transcripts as the recognisers see them, and which of them a training part has heard."""

import re
import unicodedata
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
    # composed, so that an umlaut is one character however the file writes it
    text = unicodedata.normalize("NFC", text)
    kept = "".join(c if c == "'" or _in_word(c) else " " for c in text)
    # an apostrophe belongs to a word ('cause, goin'): lone ones go, and those around a word
    words = (w[1:-1] if w[:1] == w[-1:] == "'" else w for w in kept.split())
    return " ".join(w for w in words if w.strip("'"))


def _in_word(character: str) -> bool:
    """Letters, digits, and the marks that many scripts write vowels with."""
    return character.isalnum() or unicodedata.category(character).startswith("M")


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
