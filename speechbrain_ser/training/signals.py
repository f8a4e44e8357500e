"""Who asks a process to end: Ctrl-C, a scheduler, the program that started it. Training heeds it after a step."""

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from speechbrain_ser.errors import INTERRUPTED, TRY_LATER

PARENT = "SPEECHBRAIN_SER_PARENT"  # the environment's word for who started us and whom we shall not survive
BY_TORCHRUN = "TORCHELASTIC_RUN_ID"  # in the environment of what torchrun has started
SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)  # some systems lack some
)


@contextlib.contextmanager
def handled(numbers: Iterable[int], handler: Callable) -> Iterator[None]:
    """Give some signals to a handler; who had them before has them again afterwards."""
    before = {number: signal.getsignal(number) for number in numbers}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


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
    """

    def __init__(self):
        self.number: int | None = None
        self._is_deferred = False
        self._process = None

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Hear the signals; those that our parent has us ignore (nohup) stay so, but Ctrl-C is always heard."""
        self.number, self._process = None, os.getpid()
        may = threading.current_thread() is threading.main_thread()  # no other one may
        numbers = [n for n in SIGNALS if may and (signal.getsignal(n) is not signal.SIG_IGN or n == signal.SIGINT)]
        try:
            with handled(numbers, self._hear):
                yield
        finally:
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
        """Raise :class:`Stopped`, where someone wishes so."""
        if self.number is not None:
            raise Stopped(self.number)

    def _hear(self, number: int, frame) -> None:
        if os.getpid() != self._process:  # a loading process, which ends with us
            return
        self.number = number
        for each in SIGNALS:
            if signal.getsignal(each) == self._hear:
                signal.signal(each, signal.SIG_IGN if BY_TORCHRUN in os.environ else signal.SIG_DFL)
        if not self._is_deferred:
            self.heed()


stop_wish = StopWish()


@contextlib.contextmanager
def ending_on_signals(at_once: bool = False) -> Iterator[None]:
    """End with status 75 (Ctrl-C: 130) on signals that nobody else hears, tidying up what is open.

    `at_once`, for the seconds that imports take: nothing is begun yet, and an exception that is raised while an object
    is deleted would be printed and forgotten.
    """

    def end(number: int, frame) -> None:
        if at_once:
            os.write(2, f"\nended by {signal.Signals(number).name}: the same command goes on from here\n".encode())
            os._exit(INTERRUPTED if number == signal.SIGINT else TRY_LATER)
        sys.exit(TRY_LATER)

    usual = (signal.SIG_DFL, signal.default_int_handler) if at_once else (signal.SIG_DFL,)
    # no other thread may; torchrun ends its processes at once
    may = threading.current_thread() is threading.main_thread() and BY_TORCHRUN not in os.environ
    with handled([number for number in SIGNALS if may and signal.getsignal(number) in usual], end):
        yield


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import a program's modules: on signals it ends at once, and the garbage collector waits.

    Modules stay to the end: looking at a million objects of theirs again and again would take a third of the start,
    and once more at the exit. A process that has them already (a notebook) is left as it is.
    """
    is_first = "torch" not in sys.modules
    if is_first:
        gc.disable()
    try:
        with ending_on_signals(at_once=True):
            yield
    finally:
        if is_first:
            gc.freeze()
            gc.enable()


def leave_signals_to_parent(worker: int = 0) -> None:
    """In a loading process: what asks a whole group to end is the training's to heed, and that still needs its data."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_with_parent(poll: float = 0.5) -> None:
    """Where another program started this process to work for it, end when it has ended; torchrun is such a program."""
    forked_for, of_torchrun = multiprocessing.parent_process(), "LOCAL_RANK" in os.environ
    if forked_for is None and PARENT not in os.environ and not of_torchrun:
        return
    parent = int(os.environ.pop(PARENT, 0))  # not for our own children
    parent = os.getppid() if of_torchrun else parent

    def watch():
        if forked_for is not None:
            forked_for.join()
        else:
            while os.getppid() == parent:
                time.sleep(poll)
        os.kill(os.getpid(), signal.SIGKILL if ignored else signal.SIGTERM)

    ignored = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # our parent's decision
    threading.Thread(target=watch, daemon=True).start()
