"""Libraries that pip installs and that yet do not load: one line that says what to install, not a traceback."""

import contextlib
import sys
import traceback
from collections.abc import Iterator
from importlib.metadata import version

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
