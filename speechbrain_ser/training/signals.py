"""A wish that the program end: Ctrl-C, or a scheduler's signal. Training heeds it after an optimiser step."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

INTERRUPTED = 130  # exit status after Ctrl-C
BY_TORCHRUN = "TORCHELASTIC_RUN_ID"  # in the environment of what torchrun has started
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")  # some systems lack some


class Stopped(BaseException):
    """The program ends because someone wishes so; what it has begun can be resumed."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopWish:
    """Hears the signals that ask a program to end.

    The first one raises :class:`Stopped` where nothing can be lost, and is kept in mind while :meth:`deferred`; the
    second one ends the process at once, which every file that we write survives. Only torchrun passes on what its whole
    group has had already, and kills what does not end in time: under it the second one is ignored.

    Example
    -------
    >>> wish = StopWish()
    >>> with wish.heard():
    ...     with wish.deferred():
    ...         signal.raise_signal(signal.SIGUSR1)
    ...         print("not yet", wish.is_there)
    Traceback (most recent call last):
    speechbrain_ser.training.signals.Stopped: SIGUSR1
    """

    def __init__(self):
        self.number: int | None = None
        self._is_deferred = False
        self._process = None

    @property
    def is_there(self) -> bool:
        """Whether someone wishes so."""
        return self.number is not None

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Hear the signals; those that our parent has us ignore (nohup) stay so, but Ctrl-C is always heard."""
        self.number, self._process, before = None, os.getpid(), {}
        if threading.current_thread() is threading.main_thread():  # no other one may
            numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
            before = {number: signal.getsignal(number) for number in numbers}
            ignored = [n for n, handler in before.items() if handler is signal.SIG_IGN and n != signal.SIGINT]
            before = {number: handler for number, handler in before.items() if number not in ignored}
        for number in before:
            signal.signal(number, self._hear)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.number = None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Work that asks :meth:`heed` where it can end; whoever has not asked by its end is told then."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        self.heed()

    def heed(self) -> None:
        """End, where someone wishes so.

        Raises
        ------
        Stopped
        """
        if self.number is not None:
            raise Stopped(self.number)

    def _hear(self, number: int, frame) -> None:
        if os.getpid() != self._process:  # a loading process, which ends with us
            return
        self.number = number
        from_now_on = signal.SIG_IGN if BY_TORCHRUN in os.environ else signal.SIG_DFL
        for name in SIGNALS:
            if (each := getattr(signal, name, None)) and signal.getsignal(each) == self._hear:
                signal.signal(each, from_now_on)
        if not self._is_deferred:
            self.heed()


stop_wish = StopWish()


def leave_signals_to_parent(worker: int = 0) -> None:
    """In a loading process: what asks a whole group to end is the training's to heed, and that still needs its data."""
    for name in SIGNALS:
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)
