"""Recordings as they may come, random crops, random resampling along time, SpecAugment's spans."""

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from speechbrain.dataio.batch import PaddedData
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from speechbrain_ser.errors import UserError
from speechbrain_ser.processing import perturbations as p
from speechbrain_ser.processing.lengths import absolute_lengths, frame_mask

SHORTEST = p.SAMPLE_RATE // 2  # that a change leaves of an utterance, or fills up with silence
LONGEST = 30 * p.SAMPLE_RATE  # samples that no change makes an utterance longer than: Whisper has no more positions


def random_crop(
    signals: dict[str, torch.Tensor], counts: torch.LongTensor, shortest: int, longest: int
) -> tuple[dict[str, torch.Tensor], torch.LongTensor]:
    """Return a piece of each utterance, of a random length at a random place (SpeechSplit: 64 to 128 frames).

    An utterance that is not longer than the length drawn for it is taken whole. Two numbers an utterance are drawn
    from torch's global CPU generator, whatever its length and device, so that checkpointed training repeats them.

    `signals` are [batch, frames, …] each, frame by frame of the same utterances, whose own frames are `counts` [batch];
    a piece has `shortest` to `longest` frames. Returned are pieces, past whose ends stand whatever frames, and their
    frames [batch].

    Example
    -------
    >>> mel = torch.arange(10.0).repeat(2, 1)[:, :, None]  # two utterances of up to ten frames
    >>> cropped, counts = random_crop({"mel": mel}, torch.tensor([10, 3]), 4, 4)
    >>> cropped["mel"].shape, counts
    (torch.Size([2, 4, 1]), tensor([4, 3]))
    """
    own = counts.cpu()
    draws = torch.rand(2, len(own), dtype=torch.float64)
    pieces = torch.minimum(own, shortest + (draws[0] * (longest - shortest + 1)).long())  # [batch]
    starts = (draws[1] * (own - pieces + 1)).long()
    places = starts[:, None] + torch.arange(int(pieces.max()))  # [batch, frames of the longest piece]
    cropped = {}
    for name, signal in signals.items():
        index = places.clamp(max=signal.shape[1] - 1).to(signal.device)
        index = index.reshape(*index.shape, *[1] * (signal.dim() - 2))
        cropped[name] = signal.take_along_dim(index, dim=1)
    return cropped, pieces.to(counts.device)


class Draws(NamedTuple):
    """What is random in a resampling; the same draws resample several signals in step."""

    stretches: torch.Tensor  # how many times longer each segment becomes [batch, segments]
    segment_frames: torch.LongTensor  # [batch, segments]


class RandomResampling(nn.Module):
    """Cut utterances into segments of random length and stretch each by a random factor, in training only.

    Output frame i of a segment reads its position i / stretch, interpolated linearly between the frames on either
    side, as long as both belong to the segment. The pieces are joined, and the result is cut or padded with zeros to
    the utterance's own frames. (SpeechSplit's program cuts at the padded batch's frames instead, so that what an
    utterance becomes depends on its batch.)

    Draws come from torch's global CPU generator on every device, so that checkpointed training repeats them. Segments
    are `min_segment` to `max_segment` frames; a stretch is uniform, the upper bound never reached.

    Example
    -------
    >>> resampling = RandomResampling()
    >>> draws = resampling.draw(batch=2, frames=100)
    >>> mel, f0 = (resampling(torch.rand(2, 100, bands), draws=draws) for bands in (80, 1))  # in step
    """

    def __init__(
        self, min_segment: int = 19, max_segment: int = 31, min_stretch: float = 0.5, max_stretch: float = 1.5
    ):
        super().__init__()
        if not 2 <= min_segment <= max_segment:
            raise ValueError(f"expected 2 <= min_segment <= max_segment, found {min_segment} and {max_segment}")
        if not 0 < min_stretch <= max_stretch < float("inf"):
            raise ValueError(f"expected 0 < min_stretch <= max_stretch, found {min_stretch} and {max_stretch}")
        self.min_segment, self.max_segment = min_segment, max_segment
        self.min_stretch, self.max_stretch = min_stretch, max_stretch

    def draw(self, batch: int, frames: int) -> Draws:
        """Draw enough segments to cover utterances of so many frames, however short they turn out, on the CPU."""
        size = (batch, -(-frames // self.min_segment) + 1)
        stretches = torch.rand(size) * (self.max_stretch - self.min_stretch) + self.min_stretch
        return Draws(stretches, torch.randint(self.min_segment, self.max_segment + 1, size))

    def forward(
        self, x: torch.Tensor, frame_counts: torch.Tensor | None = None, draws: Draws | None = None
    ) -> torch.Tensor:
        """Resample a padded batch (:func:`resample`), by new draws unless given; in evaluation return it as it is."""
        if not self.training:
            return x
        return resample(x, draws or self.draw(*x.shape[:2]), frame_counts)


def resample(x: torch.Tensor, draws: Draws, frame_counts: torch.Tensor | None = None) -> torch.Tensor:
    """Resample by given draws; an utterance's result depends on its own frames and its own draws only.

    `x` is [batch, frames, channels]; what stands past an utterance's end (`frame_counts` [batch], None: all frames are
    its own) is not read. The result is 0 there, and where an utterance's pieces are shorter than it was.

    Example
    -------
    >>> x = torch.tensor([[[0.0], [1.0], [2.0], [3.0], [4.0]]])
    >>> twice_as_slow = Draws(torch.tensor([[2.0]]), torch.tensor([[3]]))
    >>> resample(x, twice_as_slow).flatten()  # the segment has three frames, thus two steps
    tensor([0.0000, 0.5000, 1.0000, 1.5000, 0.0000])
    """
    batch, frames, _ = x.shape
    counts = torch.full((batch,), frames) if frame_counts is None else frame_counts.cpu()
    # three numbers a frame, so on the CPU: a draw gives the same on every device
    left, share, filled = (part[:, :, None].to(x.device) for part in _reading(draws, counts, frames))
    right = (left + 1).clamp(max=frames - 1)
    share = share.to(x.dtype)
    y = (1 - share) * x.take_along_dim(left, dim=1) + share * x.take_along_dim(right, dim=1)
    return y.masked_fill(~filled, 0.0)


def _reading(draws: Draws, counts: torch.Tensor, frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each output frame's left neighbour, the share of the right one, and whether it reads at all [batch, frames]."""
    stretches, lengths = draws.stretches.cpu()[:, :, None], draws.segment_frames.cpu()[:, :, None]
    longest = int((stretches * (lengths - 1)).max()) + 1
    positions = torch.arange(longest) / stretches  # in the segment [batch, segments, output frames of a segment]
    left = positions.floor()
    starts = lengths.cumsum(dim=1) - lengths
    # both neighbours lie in the segment and in the utterance
    kept = ((left < lengths - 1) & (left + starts < counts[:, None, None] - 1)).flatten(1)
    place = kept.cumsum(dim=1) - 1  # of each kept position in the joined output
    place = place.masked_fill(~kept | (place >= frames), frames)  # the others share a place that is cut off
    joined = torch.zeros(2, len(counts), frames + 1)
    joined[0].scatter_(1, place, (left + starts).flatten(1))
    joined[1].scatter_(1, place, (positions - left).flatten(1))
    filled = frame_mask(torch.minimum(kept.sum(dim=1), counts), frames)
    return joined[0, :, :frames].long(), joined[1, :, :frames], filled


def span_mask(counts: np.ndarray, size: int, prob: float, length: int, min_spans: int = 0) -> np.ndarray:
    """Draw masked spans as wav2vec2's fine-tuning does, inside each utterance's own frames.

    The number of spans is `prob * count / length`, rounded up or down at random, at least `min_spans` and
    never more than fit side by side: an utterance shorter than a span stays unmasked. Spans may overlap, so
    `prob` is an upper bound of the masked share. Draws come from NumPy's global generator, whose state
    checkpoints hold.

    `counts` are own frames [batch], `size` those of the padded batch and of the mask [batch, size], `length` those of a
    span; `prob` is the share of frames to mask: at 0 nothing is drawn.
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


def _drawn(change: Callable, **ranges: tuple[float, float]) -> Callable:
    """A change whose strength is uniform between two ends."""

    def drawn(wav, rng, *others):
        return change(wav, rng, *others, **{name: rng.uniform(*ends) for name, ends in ranges.items()})

    return drawn


#: kind -> the changes that one is drawn of
WAYS: dict[str, Sequence[Callable]] = {
    "speed": [
        *(_drawn(change, factor=(0.9, 1.1)) for change in (p.speed, p.tempo)),
        _drawn(p.pitch, semitones=(-1.0, 1.0)),
    ],
    "room": [partial(p.room, **box) for box in p.BOXES.values()],
    "noise": [_drawn(p.white_noise, snr=(5, 30))],
    "babble": [_drawn(p.babble, snr=(5, 30))],
    "level": [_drawn(p.gain, db=(-20, 6)), _drawn(p.clipping, share=(0, 0.1)), _drawn(p.offset, share=(-0.1, 0.1))],
    "edges": [_drawn(p.silence, start=(0, 1), end=(0, 1)), _drawn(p.crop, start=(0, 0.25), end=(0, 0.25))],
    "line": [
        *(p.narrow, p.telephone, _drawn(p.lost, share=(0.01, 0.1))),
        *(partial(p.coded, form=form, level=level) for (form, _), level in p.CODECS.items()),
    ],
}


class WaveformAugmentation:
    """Utterances as they may come: another speed, rooms, noise, babble, levels, cut edges, lines; in training only.

    The changes are those that ``speechbrain-ser stress`` tests (:mod:`~speechbrain_ser.processing.perturbations`), of
    random strengths, one after the other as sound goes. What becomes of an utterance is a function of (seed, epoch, its
    ID): batches, processes and interruptions change nothing. Babble is made of the training part alone.

    Each argument is how probable a kind is, 0 to 1. Of ``speed``: speed or tempo of 0.9 to 1.1, or pitch by up to a
    semitone; of ``room``: one of :data:`~speechbrain_ser.processing.perturbations.BOXES`; of ``noise`` and ``babble``:
    5 to 30 dB below speech; of ``level``: a gain of -20 to +6 dB, clipping, or an offset; of ``edges``: up to 1 s of
    silence around, or up to 0.25 s cropped; of ``line``: 8 kHz, a telephone, a codec, or lost packets.

    Example
    -------
    >>> augment = WaveformAugmentation(room=0)
    >>> augment.listen(pd.DataFrame({"ID": ["a"], "speaker": "", "wav": ""}), seed=1)
    >>> first, again, later = (augment(torch.randn(16000), "a", turn).shape for turn in (1, 1, 2))
    >>> first == again, first == later
    (True, False)
    """

    def __init__(
        self,
        speed: float = 0.3,
        room: float = 0.3,
        noise: float = 0.3,
        babble: float = 0.3,
        level: float = 0.3,
        edges: float = 0.3,
        line: float = 0.3,
    ):
        found = {"speed": speed, "room": room, "noise": noise, "babble": babble}
        self.probable = found | {"level": level, "edges": edges, "line": line}
        for kind, share in self.probable.items():
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                raise UserError(f"augment: {kind}: expected a probability from 0 to 1, found {share!r}")
        if room and importlib.util.find_spec(p.ROOMS) is None:
            raise UserError(f"augment: {p.NO_ROOMS}, or leave them out: room: 0")

    def listen(self, rows: pd.DataFrame, seed: int) -> None:
        """Take a seed, and the training part's rows of a manifest: what babble is made of."""
        self.voices, self.seed = p.Voices(rows), seed

    @property
    def settings(self) -> dict:
        """What identifies the draws, beside the training part."""
        return {"augment": self.probable, "augment_version": p.VERSION, "augment_seed": self.seed}

    def _plan(self, name: str, turn: int) -> tuple[np.random.Generator, list[str], list[str]]:
        """The generator that goes on drawing, the kinds of changes, and the IDs of those who babble."""
        rng = p.generator(self.seed, turn, name)
        kinds = [kind for kind, share in self.probable.items() if rng.random() < share]
        return rng, kinds, self.voices.draw(name, rng) if "babble" in kinds else []

    def heard(self, name: str, turn: int) -> list[str]:
        """Return the IDs of the utterances that are heard behind an utterance in a turn (an epoch, or a copy)."""
        return self._plan(name, turn)[2]

    def __call__(self, wav: torch.Tensor, name: str, turn: int) -> torch.Tensor:
        """Return what becomes of an utterance [time] in a turn."""
        rng, kinds, voices = self._plan(name, turn)
        found = wav.numpy()
        for kind in kinds:
            way = WAYS[kind][rng.integers(len(WAYS[kind]))]
            if kind != "babble":
                found = way(found, rng).astype(np.float32)
            elif voices:
                found = way(found, rng, self.voices.read(voices)).astype(np.float32)
        shortest = min(len(wav), SHORTEST)  # what is cut or sped up is still long enough for a model
        found = np.pad(found, (0, max(0, shortest - len(found))))
        return torch.from_numpy(np.ascontiguousarray(found[: max(len(wav), LONGEST)]))

    def of_batch(self, sig: PaddedData, names: Sequence[str], turn: int) -> PaddedData:
        """Return what becomes of a padded batch [batch, time], on its device."""
        counts = absolute_lengths(sig.data, sig.lengths).tolist()
        own = [wav[:n] for wav, n in zip(sig.data.cpu(), counts, strict=True)]
        found = [self(wav, name, turn) for wav, name in zip(own, names, strict=True)]
        lengths = torch.tensor([len(wav) for wav in found], dtype=sig.lengths.dtype)
        return PaddedData(*(x.to(sig.data.device) for x in (pad_sequence(found, True), lengths / lengths.max())))
