"""The outline of a waveform of any length, in little memory."""

import numpy as np
import torch


class Envelope:
    """Lowest and highest sample of equal stretches of a waveform, for a picture of it.

    Stretches begin short, and become twice as long whenever there are too many of them.

    Arguments
    ---------
    stretch : int
        Samples of a stretch at first.
    most : int
        Stretches that are kept at most, an even number.

    Example
    -------
    >>> envelope = Envelope(stretch=2, most=4)
    >>> for block in (torch.arange(5.0), torch.arange(5.0, 11.0)):
    ...     envelope.add(block)
    >>> envelope.finish().tolist(), envelope.stretch
    ([[0.0, 3.0], [4.0, 7.0], [8.0, 10.0]], 4)
    """

    def __init__(self, stretch: int = 160, most: int = 32_768):
        self.stretch, self.most = stretch, most
        self.ends = np.zeros((0, 2), dtype=np.float32)  # [stretches, lowest and highest]
        self.rest = np.zeros(0, dtype=np.float32)  # samples of a stretch that is not complete

    def add(self, block: torch.Tensor) -> None:
        """Take in samples [time]."""
        samples = np.concatenate([self.rest, block.numpy()])
        while len(samples) >= self.stretch:
            n = min(len(samples) // self.stretch, self.most - len(self.ends))
            self.ends = np.concatenate([self.ends, _ends(samples[: n * self.stretch].reshape(n, -1))])
            samples = samples[n * self.stretch :]
            if len(self.ends) == self.most:
                self.ends, self.stretch = _ends(self.ends.reshape(self.most // 2, -1)), 2 * self.stretch
        self.rest = samples.copy()

    def finish(self) -> np.ndarray:
        """[stretches, lowest and highest]; the last stretch may be shorter than the others."""
        if len(self.rest):
            self.ends = np.concatenate([self.ends, _ends(self.rest[None])])
            self.rest = self.rest[:0]
        return self.ends


def _ends(stretches: np.ndarray) -> np.ndarray:
    return np.stack([stretches.min(1), stretches.max(1)], 1)
