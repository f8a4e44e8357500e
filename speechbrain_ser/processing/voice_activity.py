"""Where somebody speaks: by Silero's network, whose weights come in its wheel, or by energy where it is missing."""

from collections import deque
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec

import numpy as np
import torch

from speechbrain_ser.data.audio import SAMPLE_RATE

FRAME = 512  # samples that are judged at a time: 32 ms
CONTEXT = 64  # samples of the frame before that Silero's network hears, too
FLOOR, RANGE = -70.0, 35.0  # dB: no louder than that, or so far below the loudest frame, is silence by energy
BY_ENERGY = (
    "speech is looked for by energy, which cannot tell noise, hum or music from speech: "
    'pip install "speechbrain-ser[vad]"'
)


@cache
def _silero():
    """Its network, a graph that takes many frames at a time; None where it is not installed."""
    if not all(map(find_spec, ("silero_vad", "onnxruntime"))):
        return None
    threads = torch.get_num_threads()
    try:
        from silero_vad import load_silero_vad  # which sets the whole process to one thread

        return load_silero_vad(sequence=True).session
    finally:
        torch.set_num_threads(threads)


def method() -> str:
    """Return what judges here: ``silero-vad``, or ``energy``, of which :data:`BY_ENERGY` is to be said."""
    return "energy" if _silero() is None else "silero-vad"


class VoiceActivity:
    """Judges a recording's frames of :data:`FRAME` samples as its waveform passes by; 16 kHz, mono, from -1 to 1.

    Example
    -------
    >>> activity = VoiceActivity()
    >>> silence, again = activity.hear([torch.zeros(10_000), torch.zeros(6_000)])
    >>> len(activity.frames), float(activity.shares([0, 16_000])[0])
    (32, 0.0)
    """

    def __init__(self):
        self.session, self._found = _silero(), []
        self._state, self._context = np.zeros((2, 1, 1, 128), np.float32), np.zeros(CONTEXT, np.float32)

    def hear(self, blocks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Pass on blocks [time] of a recording, and listen to them."""
        rest = np.zeros(0, np.float32)
        for block in blocks:
            samples = np.concatenate([rest, block.numpy()])
            whole = len(samples) // FRAME * FRAME
            self._judge(samples[:whole])
            rest = samples[whole:].copy()
            yield block
        self._judge(np.pad(rest, (0, -len(rest) % FRAME)))

    def _judge(self, samples: np.ndarray) -> None:
        frames = samples.reshape(-1, FRAME)
        if not len(frames):
            return
        if self.session is None:
            self._found.append(10 * np.log10(np.square(frames).mean(1) + 1e-12))
            return
        before = np.concatenate([self._context[None], frames[:-1, -CONTEXT:]])
        inputs = {"input": np.concatenate([before, frames], 1), "h": self._state[0], "c": self._state[1]}
        probabilities, *self._state = self.session.run(["speech_probs", "hn", "cn"], inputs)
        self._found.append(probabilities.reshape(-1))
        self._context = frames[-1, -CONTEXT:].copy()

    @property
    def frames(self) -> np.ndarray:
        """Whether each frame that was heard is speech [frames], once all are heard."""
        found = np.concatenate([*self._found, np.zeros(0)])
        return found >= 0.5 if self.session else found > max(FLOOR, found.max(initial=FLOOR) - RANGE)

    def shares(self, edges: Iterable[int]) -> np.ndarray:
        """Return the share of speech between neighbouring `edges` [n], ascending samples: [n - 1], from 0 to 1."""
        sums = np.concatenate([[0], np.cumsum(self.frames) * float(FRAME)])
        edges = np.asarray(edges)
        return np.diff(np.interp(edges, np.arange(len(sums)) * FRAME, sums)) / np.diff(edges)

    def stretches(self, length: int, pause: float = 0.5, least: float = 0.25, margin: float = 0.1) -> list[tuple]:
        """Return begin and end, in seconds, of each stretch of speech of a recording of so many samples.

        Those less than a `pause` apart are one, those shorter than `least` none; each gets a `margin` on both sides.
        """
        changes = np.flatnonzero(np.diff(np.pad(self.frames.astype(int), 1))).reshape(-1, 2) * FRAME / SAMPLE_RATE
        found: list[tuple] = []
        for start, end in changes.tolist():
            joins = found and start - found[-1][1] < pause
            found = [*found[:-1], (found[-1][0], end)] if joins else [*found, (start, end)]
        seconds = length / SAMPLE_RATE
        kept = [(start - margin, end + margin) for start, end in found if end - start >= least]
        return [(round(max(0.0, start), 4), round(min(end, seconds), 4)) for start, end in kept]


def speech_share(wav: torch.Tensor) -> float:
    """Return the share of a waveform [time], 16 kHz, in which somebody speaks, from 0 to 1."""
    activity = VoiceActivity()
    deque(activity.hear([wav]), maxlen=0)
    return float(activity.shares([0, len(wav)])[0])
