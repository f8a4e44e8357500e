"""Overlapping windows of a waveform that comes in blocks."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from speechbrain_ser.dataio import SAMPLE_RATE


@dataclass(frozen=True)
class Window:
    """A piece of a recording.

    Arguments
    ---------
    start : int
        Its first sample.
    wav : torch.Tensor
        [time], 16 kHz.
    """

    start: int
    wav: torch.Tensor

    @property
    def stop(self) -> int:
        """The first sample after it."""
        return self.start + len(self.wav)


@dataclass(frozen=True)
class WindowPlan:
    """Where windows lie. None is longer than `duration`.

    The last one is shifted, not shortened, so that it ends with the recording: a model that was trained on whole
    utterances hears no scrap of one. A recording of at most `duration` is one window.

    Arguments
    ---------
    duration : int
        Samples of a window.
    step : int
        Samples from one window's start to the next one's, at most `duration`.
    grid : int
        Windows start at multiples of it: the frames of all of them then stand in one row. Starts are rounded down;
        that of the last window up, which makes it shorter by less than `grid`.

    Example
    -------
    >>> plan = WindowPlan(duration=40, step=20, grid=8)
    >>> [(window.start, window.stop) for window in plan.cut([torch.zeros(70), torch.zeros(20)])]
    [(0, 40), (16, 56), (40, 80), (56, 90)]
    """

    duration: int
    step: int
    grid: int = 1

    @property
    def seconds(self) -> tuple[float, float]:
        """Duration and step."""
        return self.duration / SAMPLE_RATE, self.step / SAMPLE_RATE

    def cut(self, blocks: Iterable[torch.Tensor]) -> Iterator[Window]:
        """Windows of a waveform, each as soon as it is complete; no more than a window and a block are held.

        Arguments
        ---------
        blocks : iterable of torch.Tensor
            [time] each, of any lengths.

        Returns
        -------
        iterator of Window
        """
        held, first, n = torch.zeros(0), 0, 0  # the waveform from sample `first`; how many windows were given
        for block in blocks:
            held = torch.cat([held, block])
            while self._start(n) + self.duration <= first + len(held):
                yield self._window(held, first, self._start(n))
                n += 1
            # what the next window needs, and what the last one may need
            drop = max(0, min(self._start(n), first + len(held) - self.duration) - first)
            held, first = held[drop:].clone(), first + drop
        stop = first + len(held)
        if n == 0 or self._start(n - 1) + self.duration < stop:
            start = max(0, -(-(stop - self.duration) // self.grid) * self.grid)
            yield Window(start, held[start - first :])

    def _start(self, n: int) -> int:
        return n * self.step // self.grid * self.grid

    def _window(self, held: torch.Tensor, first: int, start: int) -> Window:
        return Window(start, held[start - first :][: self.duration].clone())
