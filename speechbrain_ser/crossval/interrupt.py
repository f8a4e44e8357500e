"""Ctrl-C and polite requests to end, as one exception."""

import contextlib
import signal
from collections.abc import Iterator


class Interrupted(BaseException):
    """Someone wants the program to end; what it has begun is to be left resumable."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise :class:`Interrupted`, once: further ones must not disturb the tidying up."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGHUP] is signal.SIG_IGN:  # nohup
        del before[signal.SIGHUP]

    def interrupt(number, frame):
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted

    for number in before:  # SIGINT also where a shell's & had it ignored
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
