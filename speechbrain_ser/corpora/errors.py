"""One clear error for everything that is wrong with a corpus."""

from collections.abc import Iterable

from speechbrain_ser.errors import UserError, nearest

__all__ = ["SHOWN", "CorpusError", "Offenders", "listing", "nearest"]

SHOWN = 20  # offenders of one kind that a message prints; the rest is counted


class CorpusError(UserError):
    """A corpus folder, table or recording is not what it should be; the message lists every offender."""


class Offenders:
    """Collects what is wrong, so that a user sees all of it at once.

    Arguments
    ---------
    where : str
        Which corpus, folder or file is looked at: the beginning of the message.

    Example
    -------
    >>> offenders = Offenders("table users.csv")
    >>> offenders.add("no such wav", "line 2: a.wav")
    >>> offenders.raise_any()
    Traceback (most recent call last):
    speechbrain_ser.corpora.errors.CorpusError: table users.csv
    no such wav (1):
      line 2: a.wav
    """

    def __init__(self, where: str):
        self.where = where
        self.kinds: dict[str, list[str]] = {}

    def add(self, kind: str, offender: object) -> None:
        """Notes one offender.

        Arguments
        ---------
        kind : str
            What is wrong and what was expected.
        offender : object
            Which file, turn or cell, and what was found there.
        """
        self.kinds.setdefault(kind, []).append(str(offender))

    def raise_any(self) -> None:
        """Raises when anything was noted.

        Raises
        ------
        CorpusError
            Listing the offenders by kind, in the order they were found.
        """
        if self.kinds:
            parts = [f"{kind} ({len(found)}):\n{listing(found)}" for kind, found in self.kinds.items()]
            raise CorpusError("\n".join([self.where, *parts]))


def listing(offenders: Iterable[str]) -> str:
    """Offenders, one indented line each; a long list ends with how many more there are.

    Arguments
    ---------
    offenders : iterable of str
        What to list.

    Returns
    -------
    str
        The lines.

    Example
    -------
    >>> print(listing(["a.wav", "b.wav"]))
      a.wav
      b.wav
    """
    offenders = list(offenders)
    lines = [f"  {offender}" for offender in offenders[:SHOWN]]
    if len(offenders) > SHOWN:
        lines.append(f"  … and {len(offenders) - SHOWN} more")
    return "\n".join(lines)
