"""SpecAugment's time and channel masks: spans of a fixed length, drawn per utterance."""

import numpy as np


def span_mask(counts: np.ndarray, size: int, prob: float, length: int, min_spans: int = 0) -> np.ndarray:
    """Draw masked spans as wav2vec2's fine-tuning does, inside each utterance's own frames.

    The number of spans is `prob * count / length`, rounded up or down at random, at least `min_spans` and
    never more than fit side by side: an utterance shorter than a span stays unmasked. Spans may overlap, so
    `prob` is an upper bound of the masked share. Draws come from NumPy's global generator, whose state
    checkpoints hold.

    Arguments
    ---------
    counts : numpy.ndarray
        Own frames of each utterance [batch].
    size : int
        Frames of the padded batch.
    prob : float
        Share of frames to mask, 0 to 1. At 0 nothing is drawn.
    length : int
        Frames of a span.
    min_spans : int
        Least number of spans of an utterance in which that many fit.

    Returns
    -------
    numpy.ndarray
        bool [batch, size], True where masked.

    Example
    -------
    >>> mask = span_mask(np.array([40, 9]), size=40, prob=0.5, length=10)
    >>> mask[0].any(), mask[1].any()
    (np.True_, np.False_)
    """
    counts = np.asarray(counts)
    if prob <= 0:
        return np.zeros((len(counts), size), dtype=bool)
    spans = (prob * counts / length + np.random.rand(len(counts))).astype(int)  # noqa: NPY002 (global state)
    spans = np.minimum(np.maximum(spans, min_spans), counts // length)  # [batch]

    # distinct starts: the smallest of one random key a frame, frames in which no span can start coming last
    keys = np.random.rand(len(counts), size)  # noqa: NPY002
    keys[np.arange(size) > (counts - length)[:, None]] = 2.0
    rank = keys.argsort(axis=1).argsort(axis=1)
    starts = rank < spans[:, None]  # [batch, size]

    # masked = a span started at most length - 1 frames ago
    begun = np.cumsum(starts, axis=1)
    begun[:, length:] -= begun[:, :-length].copy()
    return begun > 0
