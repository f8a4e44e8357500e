"""A recording of any length: windows, their posteriors and logits joined, segments and phrases made of them."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, groupby, islice, pairwise, repeat

import numpy as np
import soxr
import torch
from tqdm import tqdm

from speechbrain_ser.data.audio import opened
from speechbrain_ser.data.batches import QUALITY, SAMPLE_RATE, mono
from speechbrain_ser.data.text import WORD
from speechbrain_ser.errors import UserError
from speechbrain_ser.processing.voice_activity import VoiceActivity

WINDOW = 4.0  # seconds, by default
LEAST_STEP = 0.1  # seconds
MIN_SPEECH = 0.1  # share of the time: EMO-DB's recordings have 0.5 and more, noise, hum and music none
MOST_STRETCHES = 32_768  # of a waveform in a picture
WORD_STARTS = "▁"  # of a SentencePiece token
ASIDE = {"repr": False, "compare": False}


@dataclass(frozen=True)
class Segment:
    """A stretch of one emotion: seconds, the likeliest class (None where the recogniser abstained), mean posteriors."""

    start: float
    end: float
    emotion: str | None
    posteriors: dict[str, float]
    speech: float | None = None  # share of the time, 0 to 1; None: not looked for
    speaker: str | None = None  # "" where nobody told; None: segments are not by speaker
    text: str | None = None  # what is said in it, where it was recognised, or told, for it alone


@dataclass(frozen=True)
class Phrase:
    """What was said between two pauses: seconds, and words, of which there is at least one."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Timeline:
    """Emotions and words of a recording over time, or why there are none. Times are in seconds."""

    path: str
    duration: float = 0.0
    window: float = 0.0  # of what was recognised at a time
    step: float = 0.0  # of the posteriors
    segments: list[Segment] = field(default_factory=list)  # from 0 to `duration`, without gaps
    phrases: list[Phrase] | None = None  # in order; None where the model does not transcribe
    classes: list[str] = field(default_factory=list)  # in the order of the posteriors' columns
    edges: np.ndarray = field(default_factory=lambda: np.zeros(1), **ASIDE)  # [steps + 1], of steps
    posteriors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), **ASIDE)  # [steps, classes]
    speech_steps: np.ndarray | None = field(default=None, **ASIDE)  # shares of speech [steps]; None: not looked for
    envelope: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)), **ASIDE)  # for a picture: [stretches, 2],
    envelope_step: float = field(default=0.01, **ASIDE)  # lowest and highest sample of stretches that last so long
    error: str | None = None  # None where all is well
    by: str | None = None  # what made the segments, which then have a speaker and gaps, and no steps; None: windows

    @property
    def speech(self) -> float | None:
        """The share of the whole time in which somebody speaks."""
        return None if self.speech_steps is None else float(np.average(self.speech_steps, weights=np.diff(self.edges)))

    @property
    def transcript(self) -> str | None:
        """All phrases; None where the model does not transcribe."""
        return None if self.phrases is None else " ".join(phrase.text for phrase in self.phrases)

    def text_of(self, segment: Segment) -> str:
        """Return a segment's own text, or the phrases whose middle lies in it: each phrase belongs to one."""
        if segment.text is not None:
            return segment.text
        return " ".join(p.text for p in self.phrases or [] if segment.start <= (p.start + p.end) / 2 < segment.end)

    def to_dict(self) -> dict:
        """Return plain data: all but the envelope, posteriors rounded to six digits; words where there are any."""
        has_speech = any(segment.speech is not None for segment in self.segments)

        def plain(segment: Segment) -> dict:
            words = {} if self.phrases is None and self.by is None else {"transcript": self.text_of(segment)}
            told = segment.posteriors or dict.fromkeys(self.classes)  # each segment has the same columns
            numbers = {"posteriors": {c: None if p is None else round(p, 6) for c, p in told.items()}}
            if has_speech:
                numbers["speech"] = None if segment.speech is None else round(segment.speech, 6)
            places = {"start": segment.start, "end": segment.end}
            who = {} if segment.speaker is None else {"speaker": segment.speaker}
            return {**places, **who, "emotion": segment.emotion, **numbers, **words}

        content = {"path": self.path, "duration": self.duration, "window": self.window, "step": self.step}
        content |= {} if self.speech is None else {"speech": round(self.speech, 6)}
        content["segments"] = [plain(segment) for segment in self.segments]
        if self.phrases is not None:
            content["phrases"] = [asdict(phrase) for phrase in self.phrases]
        if self.by is not None:
            plain_segments = {"segments_by": self.by, "segments": content["segments"]}
            return {"path": self.path, "duration": self.duration} | plain_segments
        columns = zip(self.classes, self.posteriors.T.round(6).tolist(), strict=True)
        content["steps"] = {"edges": self.edges.tolist(), "posteriors": dict(columns)}
        content["steps"] |= {} if self.speech is None else {"speech": self.speech_steps.round(6).tolist()}
        return content


# ------------------------------------------------------------------ the waveform


def stream_audio(path: str | os.PathLike, block_seconds: float = 10.0) -> Iterator[torch.Tensor]:
    """Read a recording of any rate, format and channel count in blocks [time]: float32, 16 kHz, channels averaged.

    No more than a block of `block_seconds` is held. Joined they equal :func:`speechbrain_ser.data.batches.load_audio`.
    A recording that cannot be read to its end is a BadAudioError.
    """
    with opened(path) as recording:
        rate = recording.samplerate
        blocks = map(mono, recording.samples(round(block_seconds * rate)))
        yield from blocks if rate == SAMPLE_RATE else _resampled(blocks, rate)


def _resampled(blocks: Iterable[torch.Tensor], rate: int) -> Iterator[torch.Tensor]:
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, num_channels=1, dtype="float32", quality=QUALITY)
    for block in blocks:
        yield torch.from_numpy(stream.resample_chunk(block.numpy()))
    yield torch.from_numpy(stream.resample_chunk(np.zeros(0, np.float32), last=True))


def stretch_of(seconds: float) -> int:
    """Return how many samples are drawn as one: 10 ms, or more of a recording that lasts minutes."""
    stretch = 160
    while seconds * SAMPLE_RATE >= stretch * MOST_STRETCHES:
        stretch *= 2
    return stretch


def outlined(blocks: Iterable[torch.Tensor], stretch: int, ends: list[np.ndarray]) -> Iterator[torch.Tensor]:
    """Pass on blocks [time]; the lowest and the highest sample of every `stretch` samples go to `ends`."""

    def keep(stretches: np.ndarray) -> None:
        ends.append(np.stack([stretches.min(1), stretches.max(1)], 1))

    rest = np.zeros(0, np.float32)
    for block in blocks:
        samples = np.concatenate([rest, block.numpy()])
        whole = len(samples) // stretch * stretch
        keep(samples[:whole].reshape(-1, stretch))
        rest = samples[whole:].copy()
        yield block
    if len(rest):
        keep(rest[None])


# ------------------------------------------------------------------ windows


@dataclass(frozen=True)
class WindowPlan:
    """Where windows lie. None is longer than `duration`.

    The last one is shifted, not shortened, so that it ends with the recording: a model that was trained on whole
    utterances hears no scrap of one. A recording of at most `duration` is one window.

    Windows start at multiples of `grid`: the frames of all of them then stand in one row. Starts are rounded down; that
    of the last window up, which makes it shorter by less than `grid`.

    Example
    -------
    >>> plan = WindowPlan(duration=40, step=20, grid=8)
    >>> [(start, start + len(wav)) for start, wav in plan.cut([torch.zeros(70), torch.zeros(20)])]
    [(0, 40), (16, 56), (40, 80), (56, 90)]
    """

    duration: int  # samples
    step: int  # samples from one window's start to the next one's, at most `duration`
    grid: int = 1  # samples

    @property
    def seconds(self) -> tuple[float, float]:
        return self.duration / SAMPLE_RATE, self.step / SAMPLE_RATE

    def cut(self, blocks: Iterable[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        """Cut blocks [time] into windows: first sample and [time] of each. No more than one and a block are held."""
        held, first, n = torch.zeros(0), 0, 0  # the waveform from sample `first`; how many windows were given
        for block in blocks:
            held = torch.cat([held, block])
            while self._start(n) + self.duration <= first + len(held):
                start = self._start(n)
                yield start, held[start - first :][: self.duration].clone()
                n += 1
            # what the next window needs, and what the last one may need
            drop = max(0, min(self._start(n), first + len(held) - self.duration) - first)
            held, first = held[drop:].clone(), first + drop
        stop = first + len(held)
        if n == 0 or self._start(n - 1) + self.duration < stop:
            start = max(0, -(-(stop - self.duration) // self.grid) * self.grid)
            yield start, held[start - first :]

    def _start(self, n: int) -> int:
        return n * self.step // self.grid * self.grid


def plan_windows(recognizer, duration: float, step: float | None) -> WindowPlan:
    """Return where a recogniser's windows of `duration` seconds lie, one every `step` seconds (half of it by default).

    Windows that its model or ``max_seconds`` does not allow are a UserError, as is a step that would leave gaps.
    """
    step = duration / 2 if step is None else step
    grid = 1
    if recognizer.decode:  # samples from frame to frame: so many lengths give exactly one
        grid = int((recognizer.model.frame_counts(torch.arange(SAMPLE_RATE)) == 1).sum())
    least = max(LEAST_STEP, (recognizer.model.min_samples + grid) / SAMPLE_RATE)
    if not least <= duration <= recognizer.max_seconds:
        most = f"max_seconds, {recognizer.max_seconds:g} s"
        raise UserError(f"window: expected {least:g} s to {most}, found {duration:g} s")
    if not LEAST_STEP <= step <= duration:
        raise UserError(f"step: expected {LEAST_STEP:g} s to the window's {duration:g} s, found {step:g} s")
    return WindowPlan(round(duration * SAMPLE_RATE), round(step * SAMPLE_RATE), grid)


# ------------------------------------------------------------------ emotions


def step_posteriors(
    spans: Sequence[tuple[int, int]], posteriors: Sequence[np.ndarray], step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Average the posteriors of windows over steps: each counts for as much of a step as its window covers.

    `spans` are the first sample of each window and the first one after it, `posteriors` [windows, classes]. Returned
    are the samples at which steps begin, and at which the last one ends [steps + 1], and posteriors [steps, classes].

    Example
    -------
    >>> edges, posteriors = step_posteriors([(0, 3), (2, 5)], [[1.0, 0.0], [0.0, 1.0]], 2)
    >>> edges.tolist(), posteriors.round(3).tolist()
    ([0, 2, 4, 5], [[1.0, 0.0], [0.333, 0.667], [0.0, 1.0]])
    """
    end = max(stop for _, stop in spans)
    steps = -(-end // step)
    sums, covered = np.zeros((steps, len(posteriors[0]))), np.zeros((steps, 1))
    for (start, stop), posterior in zip(spans, np.asarray(posteriors, np.float64), strict=True):
        for k in range(start // step, -(-stop // step)):
            samples = min(stop, (k + 1) * step) - max(start, k * step)
            sums[k] += samples * posterior
            covered[k] += samples
    return np.append(np.arange(steps) * step, end), sums / covered


def merge_steps(
    edges: np.ndarray,
    posteriors: np.ndarray,
    classes: Sequence[str],
    emotion_of: Callable[[np.ndarray, float | None], str | None],
    speech: np.ndarray | None = None,
) -> list[Segment]:
    """Merge neighbouring steps of the same emotion; posteriors and shares of speech are means over time.

    `edges` are [steps + 1] seconds, `posteriors` [steps, classes], `speech` [steps]; `emotion_of` gives the emotion of
    one [classes] and its share.

    Example
    -------
    >>> posteriors = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]])
    >>> likeliest = lambda posterior, speech: ["sad", "happy"][posterior.argmax()]
    >>> for segment in merge_steps(np.array([0.0, 2.0, 4.0, 5.5]), posteriors, ["sad", "happy"], likeliest):
    ...     print(segment.start, segment.end, segment.emotion, round(segment.posteriors["sad"], 6))
    0.0 4.0 sad 0.8
    4.0 5.5 happy 0.2
    """
    segments = []
    shares = repeat(None, len(posteriors)) if speech is None else speech
    emotions = map(emotion_of, posteriors, shares)
    for emotion, steps in groupby(enumerate(emotions), key=lambda step: step[1]):
        (first, _), *_, (last, _) = [*steps] * 2
        here, weights = slice(first, last + 1), np.diff(edges[first : last + 2])
        by_class = dict(zip(classes, np.average(posteriors[here], axis=0, weights=weights).tolist(), strict=True))
        share = None if speech is None else float(np.average(speech[here], weights=weights))
        segments.append(Segment(float(edges[first]), float(edges[last + 1]), emotion, by_class, share))
    return segments


# ------------------------------------------------------------------ words


def join_logits(windows: Iterable[tuple[int, torch.Tensor]], blank: int = 0) -> Iterator[torch.Tensor]:
    """Take each frame from the window in which it is most central; what is joined goes out at once.

    Half of an overlap is taken from the window before, half from the one after. Near its middle the joint is laid where
    both windows hear the blank: there no token is cut in two, and none is heard on both sides of the joint, or on
    neither, because the windows place it a frame apart.

    Of each window, `windows` has the first frame, counted from the recording's, and the logits [frames, tokens]. As
    many [frames, tokens] come out: the row's next frames.
    """
    done = 0  # frames that have gone out
    for (start, logits), following in pairwise(chain(windows, [None])):
        joint = _joint(start, logits, *following, blank) if following else start + len(logits)
        out = logits[done - start : joint - start]
        missing = joint - done - len(out)  # windows that do not overlap lack a frame: it is as the one before
        yield torch.cat([out, logits[-1:].expand(missing, -1)])
        done = joint


def _joint(start: int, logits: torch.Tensor, next_start: int, next_logits: torch.Tensor, blank: int) -> int:
    """The frame from which on the next window counts."""
    overlap = start + len(logits) - next_start
    if overlap <= 0:
        return next_start
    both = ((logits[-overlap:].argmax(-1) == blank) & (next_logits[:overlap].argmax(-1) == blank)).tolist()
    middle = overlap // 2
    for away in range(overlap // 4):
        for k in (middle - away, middle + away):
            if both[k - 1] and both[k]:
                return next_start + k
    return next_start + middle


class PhraseCutter:
    """Cuts at pauses: stretches of frames whose likeliest token is the blank or the mark between words.

    What goes on without a pause for more than `max_phrase` seconds is cut at a word's end, if there is one, else at its
    longest silence. A pause lasts `min_pause` seconds: within a phrase CTC is blank between letters too, for as long as
    a vowel lasts. `decode` is a :class:`speechbrain_ser.models.heads.Decoder`, `frame_seconds` from frame to frame.

    Example
    -------
    >>> from speechbrain_ser.models.heads import Decoder
    >>> from speechbrain_ser.data.text import CharacterTokens
    >>> cutter = PhraseCutter(Decoder(CharacterTokens(["<blank>", "|", "A", "B"]), "greedy"), 0.1, min_pause=0.3)
    >>> logits = torch.nn.functional.one_hot(torch.tensor([0, 2, 1, 3, 0, 1, 0, 0, 0, 3, 3]), 4).float()
    >>> list(cutter.cut(logits.split(6)))
    [Phrase(start=0.1, end=0.4, text='A B'), Phrase(start=0.9, end=1.1, text='B')]
    """

    def __init__(self, decode: Callable, frame_seconds: float, min_pause: float = 0.5, max_phrase: float = 30.0):
        self.decode, self.frame_seconds = decode, frame_seconds
        self.min_pause, self.max_phrase = round(min_pause / frame_seconds), round(max_phrase / frame_seconds)
        labels = decode.tokens.labels
        self.silent = torch.tensor([t == decode.tokens.blank or label == WORD for t, label in enumerate(labels)])
        self.divides = torch.tensor([label == WORD or label.startswith(WORD_STARTS) for label in labels])

    def cut(self, rows: Iterable[torch.Tensor]) -> Iterator[Phrase]:
        """Cut rows [frames, tokens], of which a single one is one phrase. No more than a row and a phrase are held."""
        rows = iter(rows)
        begin = list(islice(rows, 2))
        if len(begin) == 1:  # a recording of one window is decoded as any recording is
            yield from self._phrase(0, begin[0])
            return
        frame, held = 0, begin[0][:0]  # what is held begins with that frame
        said = -1  # the token in which a phrase was cut, as long as it may go on
        for row in chain(begin, rows):
            held, stop = torch.cat([held, row]), 0
            while stop is not None:
                frame, held = frame + stop, held[stop:]
                best = held.argmax(-1)
                skip = _first(best != said)
                said = said if skip == len(best) else -1
                skip += _first(~self.silent[best[skip:]])
                frame, held, best = frame + skip, held[skip:].clone(), best[skip:]
                if (stop := self._end_of_phrase(best)) is not None:
                    yield from self._phrase(frame, held[:stop])
                    said = int(best[stop - 1])
        if spoken := self._spoken(held):
            yield from self._phrase(frame, held[: spoken[-1] + 1])

    def _end_of_phrase(self, best: torch.Tensor) -> int | None:
        """How many of the likeliest tokens, the first of them speech, make a phrase; None: yet to be seen."""
        pauses = list(_stretches(self.silent[best]))
        if (end := next((start for start, stop in pauses if stop - start >= self.min_pause), None)) is not None:
            return end
        if len(best) <= self.max_phrase:
            return None

        def rank(pause: tuple[int, int]) -> tuple[bool, int, int]:
            start, stop = pause
            return bool(self.divides[best[start : stop + 1]].any()), stop - start, start

        return max((p for p in pauses if p[0] <= self.max_phrase), key=rank, default=(self.max_phrase, 0))[0]

    def _phrase(self, first: int, logits: torch.Tensor) -> list[Phrase]:
        """From their first speech to their last, when they spell any."""
        (text,) = self.decode(logits[None], torch.tensor([len(logits)]))
        spoken = self._spoken(logits) or [0, len(logits) - 1]
        start, end = ((first + frame) * self.frame_seconds for frame in (spoken[0], spoken[-1] + 1))
        return [Phrase(round(start, 3), round(end, 3), text)] if text else []

    def _spoken(self, logits: torch.Tensor) -> list[int]:
        return (~self.silent[logits.argmax(-1)]).nonzero().flatten().tolist()


def _first(mask: torch.Tensor) -> int:
    """Where the first True is; the length, where there is none."""
    return next(iter(mask.nonzero().flatten().tolist()), len(mask))


def _stretches(mask: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Begin and end of each stretch of True.

    >>> list(_stretches(torch.tensor([False, True, True, False, True])))
    [(1, 3), (4, 5)]
    """
    change = torch.nn.functional.pad(mask.int(), (1, 1)).diff().nonzero().flatten().tolist()
    return zip(change[::2], change[1::2], strict=True)


# ------------------------------------------------------------------ a recording


def follow(
    recognizer,
    path: str | os.PathLike,
    seconds: float,
    plan: WindowPlan,
    batch_size: int,
    progress: bool,
    blocks: Iterable[torch.Tensor] | None = None,
) -> Timeline:
    """Return the timeline of one recording, or of `blocks` [time] of it, so many `seconds` as its header says.

    Held at a time are a block of the recording, a batch of windows and a phrase's logits; kept are posteriors a step,
    phrases and an outline of the waveform. What cannot be read to its end, or has no answer, is a BadAudioError.
    """
    ends, spans, posteriors, stretch = [], [], [], stretch_of(seconds)
    blocks, activity = outlined(stream_audio(path) if blocks is None else blocks, stretch, ends), VoiceActivity()
    windows = plan.cut(activity.hear(blocks) if recognizer.speech_by else blocks)
    format_of_bar = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"
    bar = tqdm(None, "seconds", seconds, leave=False, disable=None if progress else True, bar_format=format_of_bar)

    def heard() -> Iterator[tuple[int, torch.Tensor | None]]:
        """Each window's first frame and CTC logits."""
        while batch := list(islice(windows, batch_size)):
            found, logits = recognizer.window_outputs([wav for _, wav in batch])
            posteriors.extend(found)
            spans.extend((start, start + len(wav)) for start, wav in batch)
            yield from zip((start // plan.grid for start, _ in batch), logits or repeat(None), strict=False)
            bar.update(spans[-1][1] / SAMPLE_RATE - bar.n)

    with bar:
        if recognizer.decode:
            cutter = PhraseCutter(recognizer.decode, plan.grid / SAMPLE_RATE)
            phrases = list(cutter.cut(join_logits(heard(), recognizer.decode.tokens.blank)))
        else:
            phrases = None
            deque(heard(), maxlen=0)
    edges, posteriors = step_posteriors(spans, posteriors, plan.step)
    speech = activity.shares(edges) if recognizer.speech_by else None
    edges = edges / SAMPLE_RATE
    segments = merge_steps(edges, posteriors, recognizer.classes, recognizer.emotion_of, speech)
    duration, (window, step), classes = float(edges[-1]), plan.seconds, list(recognizer.classes)
    outline = {"envelope": np.concatenate(ends), "envelope_step": stretch / SAMPLE_RATE, "speech_steps": speech}
    return Timeline(os.fspath(path), duration, window, step, segments, phrases, classes, edges, posteriors, **outline)
