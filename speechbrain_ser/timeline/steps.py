"""The posteriors of overlapping windows as posteriors of equal steps in time."""

import numpy as np


class StepPosteriors:
    """Posteriors a step: the mean over the windows that cover it, each weighted by how much of it it covers.

    Arguments
    ---------
    step : int
        Samples a step.

    Example
    -------
    >>> steps = StepPosteriors(2)
    >>> steps.add(0, 4, [1.0, 0.0])
    >>> steps.add(2, 5, [0.0, 1.0])
    >>> edges, posteriors = steps.finish()
    >>> edges.tolist(), posteriors.tolist()
    ([0, 2, 4, 5], [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    """

    def __init__(self, step: int):
        self.step = step
        self.sums: list[np.ndarray] = []
        self.covered: list[int] = []
        self.stop = 0

    def add(self, start: int, stop: int, posterior: np.ndarray) -> None:
        """Take in a window.

        Arguments
        ---------
        start, stop : int
            Its first sample, and the first one after it.
        posterior : array-like
            [classes].
        """
        posterior = np.asarray(posterior, dtype=np.float64)
        self.stop = max(self.stop, stop)
        for k in range(start // self.step, -(-stop // self.step)):
            if k == len(self.sums):
                self.sums.append(np.zeros_like(posterior))
                self.covered.append(0)
            samples = min(stop, (k + 1) * self.step) - max(start, k * self.step)
            self.sums[k] += samples * posterior
            self.covered[k] += samples

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """What came out.

        Returns
        -------
        numpy.ndarray
            [steps + 1] samples at which steps begin, and at which the last one ends: with the last window.
        numpy.ndarray
            [steps, classes].
        """
        edges = np.append(np.arange(len(self.sums)) * self.step, self.stop)
        return edges, np.stack(self.sums) / np.array(self.covered)[:, None]
