"""The CTC logits of overlapping windows as those of one row of frames."""

import torch


class LogitJoiner:
    """Takes each frame from the window in which it is most central; what is joined goes out at once.

    Windows overlap, and what stands at a window's edge was heard without what is beside it. So half of an overlap is
    taken from the window before, half from the one after. Near its middle the joint is laid where both windows hear
    the blank: there no token is cut in two, and none is heard on both sides of the joint, or on neither, because the
    windows place it a frame apart.

    Arguments
    ---------
    blank : int
        The CTC blank.

    Attributes
    ----------
    windows : int
        How many were taken in.

    Example
    -------
    >>> joiner = LogitJoiner(blank=0)
    >>> first, second = torch.zeros(6, 2), torch.zeros(6, 2)
    >>> first[:, 0], second[:, 0] = 1.0, 2.0  # all blank
    >>> row = torch.cat([joiner.add(0, first), joiner.add(4, second), joiner.finish()])
    >>> row[:, 0].tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    """

    def __init__(self, blank: int = 0):
        self.blank = blank
        self.windows = 0
        self.start, self.logits = 0, None  # the last window
        self.done = 0  # frames that have gone out

    def add(self, start: int, logits: torch.Tensor) -> torch.Tensor:
        """Take in a window.

        Arguments
        ---------
        start : int
            Its first frame, counted from the recording's.
        logits : torch.Tensor
            [frames, tokens].

        Returns
        -------
        torch.Tensor
            [frames, tokens], the row's next ones: those of the window before.
        """
        out = logits[:0] if self.logits is None else self._until(self._joint(start, logits))
        self.windows += 1
        self.start, self.logits, self.done = start, logits, self.done + len(out)
        return out

    def finish(self) -> torch.Tensor:
        """The row's last frames [frames, tokens]."""
        return self._until(self.start + len(self.logits))

    def _until(self, joint: int) -> torch.Tensor:
        out = self.logits[self.done - self.start : joint - self.start]
        missing = joint - self.done - len(out)  # windows that do not overlap lack a frame: it is as the one before
        return torch.cat([out, self.logits[-1:].expand(missing, -1)])

    def _joint(self, start: int, logits: torch.Tensor) -> int:
        """The frame from which on the new window counts."""
        overlap = self.start + len(self.logits) - start
        if overlap <= 0:
            return start
        both = (self._is_blank(self.logits[-overlap:]) & self._is_blank(logits[:overlap])).tolist()
        middle = overlap // 2
        for away in range(overlap // 4):
            for k in (middle - away, middle + away):
                if both[k - 1] and both[k]:
                    return start + k
        return start + middle

    def _is_blank(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(-1) == self.blank
