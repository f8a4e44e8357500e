"""Which corpora there are: one module each, found by its name."""

import importlib
from types import ModuleType

from speechbrain_ser.errors import CorpusError, nearest

# Each module has find_utterances(data_folder, **options) -> rows without durations, and DEFAULT_LABELS.
# EMOTIONS (code -> emotion, when they are known beforehand) and OFFICIAL (totals that only warn) may follow.
CORPORA = ("demo", "emodb", "iemocap", "savee", "table")


def corpus_module(name: str) -> ModuleType:
    """The module of a corpus.

    Arguments
    ---------
    name : str
        One of `CORPORA`.

    Returns
    -------
    module
        With `find_utterances` and `DEFAULT_LABELS`.

    Raises
    ------
    CorpusError
        An unknown name; the message gives the nearest known one.

    Example
    -------
    >>> corpus_module("emodb").DEFAULT_LABELS["fear"]
    'fear'
    """
    if name not in CORPORA:
        raise CorpusError(f"unknown corpus {name!r}{nearest(name, CORPORA)}; known: {', '.join(CORPORA)}")
    return importlib.import_module(f"{__package__}.{name}")
