"""Errors that a user can mend: printed as they are, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave is wrong; the message says what, what was expected and what was found."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint naming the known word that looks most like `word`.

    Arguments
    ---------
    word : str
        What the user wrote.
    known : iterable of str
        What would have been understood.

    Returns
    -------
    str
        `` (did you mean 'x'?)`` or the empty string when nothing is near.

    Example
    -------
    >>> nearest("alhpa", ["alpha", "seed"])
    " (did you mean 'alpha'?)"
    >>> nearest("zzz", ["alpha", "seed"])
    ''
    """
    by_lower: dict[str, str] = {}
    for name in map(str, known):
        by_lower.setdefault(name.lower(), name)
    found = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean {by_lower[found[0]]!r}?)" if found else ""
