"""Errors that a user can mend: printed as they are, without a traceback."""

import contextlib
import difflib
import sys
import traceback
from collections.abc import Iterable, Iterator
from importlib.metadata import version


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
    speechbrain_ser.errors.CorpusError: table users.csv
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


PAIR = "torch==2.11.0 torchaudio==2.11.0"  # those of constraints.txt


@contextlib.contextmanager
def libraries_that_load() -> Iterator[None]:
    """Ends the program, exit status 2, where soundfile or torchaudio fail while they are imported.

    Nothing is imported to find out: what a program does not need may be broken.

    Raises
    ------
    SystemExit
        With status 2, after one line on stderr.

    Example
    -------
    >>> with libraries_that_load():
    ...     import soundfile
    """
    try:
        yield
    except Exception as error:
        line = _line(error)
        if not line:
            raise
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(2) from error


def _line(error: BaseException | None) -> str:
    """What to tell of an error: empty where no import of such a library has raised it."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            library = str(frame.f_globals.get("__name__")).partition(".")[0]
            if frame.f_code.co_name == "<module>" and library in _ADVICE:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                return _ADVICE[library](reason)
        error = error.__cause__ or error.__context__
    return ""


def _torchaudio(reason: str) -> str:
    return (
        f"torchaudio {version('torchaudio')} does not load beside torch {version('torch')} ({reason}); "
        f"a pair that does: pip install {PAIR}"
    )


def _soundfile(reason: str) -> str:
    return (
        f"soundfile {version('soundfile')} does not find libsndfile ({reason}); it comes with soundfile's wheels "
        "(pip install --force-reinstall soundfile) or from the system (Debian: apt install libsndfile1; macOS: brew "
        "install libsndfile)"
    )


_ADVICE = {"torchaudio": _torchaudio, "soundfile": _soundfile}
