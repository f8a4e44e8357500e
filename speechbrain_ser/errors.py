"""Errors that a user can mend, printed as they are, without a traceback; and the exit statuses."""

import codecs
import contextlib
import difflib
import logging
import re
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from importlib.metadata import version

from tqdm import tqdm

INTERRUPTED = 130  # exit status after Ctrl-C
TRY_LATER = 75  # (sysexits' EX_TEMPFAIL): another process works in the run's folder, or a signal asked us to end
OBEYED = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")  # by terminals
SHOWN = 20  # offenders of one kind that a message prints; the rest is counted


class UserError(ValueError):
    """Something the user gave is wrong; the message says what, what was expected and what was found."""


def printable(text: str, also: str = "") -> str:
    """Return a text for a terminal, with what that would obey (colours, cursor, order of writing) as escapes.

    Lines and tabs stay, unless they are `also` to be told.

    >>> printable("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    text = OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)
    return text.translate({ord(c): ascii(c)[1:-1] for c in also})


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        return printable(super().getMessage())


def log_to_terminal(level: int, force: bool = False) -> None:
    """Let log messages go to stderr as they are, but :func:`printable`; `force`: in place of what there was."""
    logging.setLogRecordFactory(_Record)  # for SpeechBrain's handlers too
    logging.basicConfig(level=level, format="%(message)s", force=force)


def followed(items: Iterable, doing: str, n: int, show: bool = True) -> Iterator:
    """Yield `n` items; what takes longer than a second has a bar with the time left on a terminal, else one line."""
    bar = tqdm(items, doing, n, disable=None if show else True, delay=1)
    line, began = f"{doing}: {n}" if show and bar.disable else "", time.monotonic()
    for item in bar:
        if line and time.monotonic() - began > 1:
            print(line, file=sys.stderr, flush=True)
            line = ""
        yield item


def counted(n: int, one: str, many: str | None = None) -> str:
    """Say how many.

    >>> counted(1, "speaker"), counted(2, "class", "classes")
    ('1 speaker', '2 classes')
    """
    return f"{n} {one if n == 1 else many or one + 's'}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint at the known word that looks most like `word`, empty where none does.

    Example
    -------
    >>> nearest("alhpa", ["alpha", "seed"])
    " (did you mean 'alpha'?)"
    """
    by_lower = {name.lower(): name for name in reversed([*map(str, known)])}  # the first one's spelling
    found = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean {by_lower[found[0]]!r}?)" if found else ""


class Untrusted(UserError):
    """A run's YAML would be executed, and nobody has said that it may be."""


class CorpusError(UserError):
    """A corpus folder, table or recording is not what it should be; the message lists every offender."""


class Offenders:
    """Collect what is wrong `where` (the beginning of the message), so that a user sees all of it at once.

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

    def __init__(self, where: str, error: type[UserError] = CorpusError):
        self.where, self.error = where, error
        self.kinds: dict[str, list[str]] = {}

    def add(self, kind: str, offender: object) -> None:
        """Note one offender, under what is wrong with it and what was expected."""
        self.kinds.setdefault(kind, []).append(str(offender))

    def raise_any(self) -> None:
        """Raise the error where anything was noted: offenders by kind, in the order they were found."""
        if self.kinds:
            parts = ["\n  ".join([f"{kind} ({len(o)}):", *shown(o)]) for kind, o in self.kinds.items()]
            raise self.error("\n".join([self.where, *parts]))


def shown(items: Iterable[object]) -> list[str]:
    """Return the first 20 of some items as text, and how many more there are."""
    items = list(map(str, items))
    return [*items[:SHOWN], f"… and {len(items) - SHOWN} more"] if len(items) > SHOWN else items


def print_any_name() -> None:
    """Let stdout take file names in any encoding: their bytes where they are no text, else escapes of what it lacks."""

    def escaped(error: UnicodeError) -> tuple[str | bytes, int]:
        try:
            return codecs.lookup_error("surrogateescape")(error)
        except UnicodeError:
            return codecs.backslashreplace_errors(error)

    codecs.register_error("any name", escaped)
    with contextlib.suppress(AttributeError):  # whoever replaced it knows better
        sys.stdout.reconfigure(errors="any name")


PAIR = "torch==2.11.0 torchaudio==2.11.0"  # those of constraints.txt


@contextlib.contextmanager
def libraries_that_load() -> Iterator[None]:
    """End the program with status 2 and one line on stderr where soundfile or torchaudio fail while they are imported.

    Nothing is imported to find out: what a program does not need may be broken.
    """
    try:
        yield
    except Exception as error:
        if not (line := _advice(error)):
            raise
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(2) from error


def _advice(error: BaseException | None) -> str | None:
    """What to tell of an error; nothing where no import of such a library has raised it."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            library = str(frame.f_globals.get("__name__")).partition(".")[0]
            if frame.f_code.co_name == "<module>" and library in _ADVICE:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                installed = {name: version(name) for name in (library, "torch")}
                return _ADVICE[library].format(reason=reason, pair=PAIR, **installed)
        error = error.__cause__ or error.__context__
    return None


_ADVICE = {
    "torchaudio": "torchaudio {torchaudio} does not load beside torch {torch} ({reason}); a pair that does: "
    "pip install {pair}",
    "soundfile": "soundfile {soundfile} does not find libsndfile ({reason}); it comes with soundfile's wheels "
    "(pip install --force-reinstall soundfile) or from the system (Debian: apt install libsndfile1; macOS: brew "
    "install libsndfile)",
}
