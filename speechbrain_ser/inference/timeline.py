"""A recording of any length: windows, their posteriors and logits joined, segments and phrases made of them."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby, islice

import numpy as np
import soundfile
import soxr
import torch
from tqdm import tqdm

from speechbrain_ser.data.audio import UNREADABLE, BadAudioError, sound_name
from speechbrain_ser.data.batches import QUALITY, SAMPLE_RATE
from speechbrain_ser.data.text import WORD
from speechbrain_ser.errors import UserError


@dataclass(frozen=True)
class Segment:
    """A stretch of one emotion.

    Arguments
    ---------
    start, end : float
        Seconds.
    emotion : str, optional
        The likeliest class; None where the recogniser abstained.
    posteriors : dict of str to float
        By class, the mean over the stretch.
    """

    start: float
    end: float
    emotion: str | None
    posteriors: dict[str, float]


@dataclass(frozen=True)
class Phrase:
    """What was said between two pauses.

    Arguments
    ---------
    start, end : float
        Seconds.
    text : str
        Never empty.
    """

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Timeline:
    """Emotions and words of a recording over time, or why there are none.

    Arguments
    ---------
    path : str
        Of the recording.
    duration : float
        Seconds.
    window, step : float
        Seconds of the windows that were recognised, and of the steps of the posteriors.
    segments : list of Segment
        From 0 to `duration`, without gaps.
    phrases : list of Phrase, optional
        In order; None where the model does not transcribe.
    classes : list of str
        Emotion classes, in the order of the posteriors' columns.
    edges : numpy.ndarray
        [steps + 1] seconds at which steps begin, and at which the last one ends.
    posteriors : numpy.ndarray
        [steps, classes].
    envelope : numpy.ndarray
        [stretches, lowest and highest sample], of equal stretches of the waveform, for a picture.
    envelope_step : float
        Seconds of a stretch.
    error : str, optional
        What is wrong with the recording; None where all is well.

    Example
    -------
    >>> segments = [Segment(0.0, 4.0, "sad", {"sad": 0.9, "happy": 0.1}), Segment(4.0, 5.5, "happy", {})]
    >>> timeline = Timeline("a.wav", 5.5, segments=segments, phrases=[Phrase(0.2, 1.5, "NEIN"), Phrase(4.1, 5.0, "JA")])
    >>> timeline.transcript, [timeline.text_of(segment) for segment in segments]
    ('NEIN JA', ['NEIN', 'JA'])
    """

    path: str
    duration: float = 0.0
    window: float = 0.0
    step: float = 0.0
    segments: list[Segment] = field(default_factory=list)
    phrases: list[Phrase] | None = None
    classes: list[str] = field(default_factory=list)
    edges: np.ndarray = field(default_factory=lambda: np.zeros(1), repr=False, compare=False)
    posteriors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False, compare=False)
    envelope: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)), repr=False, compare=False)
    envelope_step: float = field(default=0.01, repr=False, compare=False)
    error: str | None = None

    @property
    def transcript(self) -> str | None:
        """All phrases; None where the model does not transcribe."""
        return None if self.phrases is None else " ".join(phrase.text for phrase in self.phrases)

    def text_of(self, segment: Segment) -> str:
        """The phrases whose middle lies in a segment: each phrase belongs to one."""
        middles = ((phrase.start + phrase.end) / 2 for phrase in self.phrases or [])
        inside = [segment.start <= middle < segment.end for middle in middles]
        return " ".join(phrase.text for phrase, here in zip(self.phrases or [], inside, strict=True) if here)

    def to_dict(self) -> dict:
        """Plain data: all but the envelope, posteriors rounded to six digits; ``phrases`` where there are any."""
        content = {"path": self.path, "duration": self.duration, "window": self.window, "step": self.step}
        content["segments"] = [
            {**asdict(segment), "posteriors": {c: round(p, 6) for c, p in segment.posteriors.items()}}
            for segment in self.segments
        ]
        if self.phrases is not None:
            content["phrases"] = [asdict(phrase) for phrase in self.phrases]
        columns = zip(self.classes, self.posteriors.T.round(6).tolist(), strict=True)
        content["steps"] = {"edges": self.edges.tolist(), "posteriors": dict(columns)}
        return content

    def to_json(self) -> str:
        """:meth:`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False)


def merge_steps(
    edges: np.ndarray,
    posteriors: np.ndarray,
    classes: Sequence[str],
    emotion_of: Callable[[np.ndarray], str | None],
) -> list[Segment]:
    """Neighbouring steps of the same emotion as segments.

    Arguments
    ---------
    edges : numpy.ndarray
        [steps + 1] seconds.
    posteriors : numpy.ndarray
        [steps, classes].
    classes : sequence of str
        In the order of the columns.
    emotion_of : callable
        A posterior [classes] to the emotion, or None.

    Returns
    -------
    list of Segment
        Their posteriors are means over time: a shorter last step counts for less.

    Example
    -------
    >>> posteriors = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]])
    >>> likeliest = lambda posterior: ["sad", "happy"][posterior.argmax()]
    >>> for segment in merge_steps(np.array([0.0, 2.0, 4.0, 5.5]), posteriors, ["sad", "happy"], likeliest):
    ...     print(segment.start, segment.end, segment.emotion, round(segment.posteriors["sad"], 6))
    0.0 4.0 sad 0.8
    4.0 5.5 happy 0.2
    """
    segments = []
    for emotion, steps in groupby(range(len(posteriors)), key=lambda k: emotion_of(posteriors[k])):
        first, *_, last = [*steps] * 2
        mean = np.average(posteriors[first : last + 1], axis=0, weights=np.diff(edges[first : last + 2]))
        by_class = dict(zip(classes, mean.tolist(), strict=True))
        segments.append(Segment(float(edges[first]), float(edges[last + 1]), emotion, by_class))
    return segments


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


BLOCK_SECONDS = 10.0


def stream_audio(path: str | os.PathLike, block_seconds: float = BLOCK_SECONDS) -> Iterator[torch.Tensor]:
    """Read a recording of any rate, format and channel count, a block at a time.

    Arguments
    ---------
    path : str or os.PathLike
        Anything soundfile reads.
    block_seconds : float
        Of the blocks that are read: no more is held, whatever the recording's length.

    Returns
    -------
    iterator of torch.Tensor
        [time] float32, 16 kHz, channels averaged; of about `block_seconds`, the last one shorter. Joined they equal
        :func:`speechbrain_ser.data.batches.load_audio`.

    Raises
    ------
    BadAudioError
        When the recording cannot be read (to its end).

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.wav"
    >>> soundfile.write(path, torch.zeros(8000 * 25, 2).numpy(), 8000)
    >>> sum(len(block) for block in stream_audio(path)) / SAMPLE_RATE
    25.0
    """
    try:
        with soundfile.SoundFile(sound_name(path)) as sound:
            blocks = sound.blocks(max(1, round(block_seconds * sound.samplerate)), dtype="float32", always_2d=True)
            mono = (torch.from_numpy(block).T.mean(0) for block in blocks)  # as load_audio has it: (channels, time)
            yield from mono if sound.samplerate == SAMPLE_RATE else resampled(mono, sound.samplerate)
    except (soundfile.SoundFileError, OSError) as error:
        raise BadAudioError(UNREADABLE, str(error)) from error


def resampled(blocks: Iterable[torch.Tensor], rate: int) -> Iterator[torch.Tensor]:
    """Blocks of a waveform at 16 kHz, the same samples as if they had been resampled in one piece.

    Arguments
    ---------
    blocks : iterable of torch.Tensor
        [time] float32, of any lengths.
    rate : int
        In Hz.

    Returns
    -------
    iterator of torch.Tensor
        [time] float32; the filter holds some back, so that the last one may be as long as the filter alone.
    """
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, num_channels=1, dtype="float32", quality=QUALITY)
    for block in blocks:
        yield torch.from_numpy(stream.resample_chunk(block.numpy()))
    yield torch.from_numpy(stream.resample_chunk(np.zeros(0, np.float32), last=True))


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


WORD_STARTS = "▁"  # of a SentencePiece token


class PhraseCutter:
    """Cuts at pauses: stretches of frames whose likeliest token is the blank or the mark between words.

    What goes on without a pause for too long is cut at a word's end, if there is one, else at its longest silence.

    Arguments
    ---------
    decode : Decoder
        Logits to text (:class:`speechbrain_ser.models.decoding.Decoder`); its ``tokens`` spell them.
    frame_seconds : float
        From frame to frame.
    min_pause : float
        Seconds of a pause. Within a phrase CTC is blank between letters too, for as long as a vowel lasts.
    max_phrase : float
        Seconds of a phrase at most.

    Example
    -------
    >>> from speechbrain_ser.models.decoding import Decoder
    >>> from speechbrain_ser.data.text import CharacterTokens
    >>> cutter = PhraseCutter(Decoder(CharacterTokens(["<blank>", "|", "A", "B"]), "greedy"), 0.1, min_pause=0.3)
    >>> logits = torch.nn.functional.one_hot(torch.tensor([0, 2, 1, 3, 0, 1, 0, 0, 0, 3, 3]), 4).float()
    >>> cutter.add(logits)
    >>> cutter.finish()
    [Phrase(start=0.1, end=0.4, text='A B'), Phrase(start=0.9, end=1.1, text='B')]
    """

    def __init__(self, decode: Callable, frame_seconds: float, min_pause: float = 0.5, max_phrase: float = 30.0):
        self.decode, self.frame_seconds = decode, frame_seconds
        self.min_pause, self.max_phrase = round(min_pause / frame_seconds), round(max_phrase / frame_seconds)
        labels = decode.tokens.labels
        self.silent = torch.tensor([t == decode.tokens.blank or label == WORD for t, label in enumerate(labels)])
        self.divides = torch.tensor([label == WORD or label.startswith(WORD_STARTS) for label in labels])
        self.phrases: list[Phrase] = []
        self.first = 0  # the frame with which what is held begins
        self.held: torch.Tensor | None = None  # [frames, tokens]
        self.said: int | None = None  # the token that was said last, as long as it may go on

    def add(self, logits: torch.Tensor) -> None:
        """Take in the row's next frames [frames, tokens]."""
        self.held = logits if self.held is None else torch.cat([self.held, logits])
        self._skip_said()
        while (stop := self._end_of_phrase()) is not None:
            self._say(stop)

    def finish(self) -> list[Phrase]:
        """All phrases, in order."""
        if self.held is not None and len(self.held):
            self._say(int((~self.silent[self.held.argmax(-1)]).nonzero()[-1]) + 1)
        return self.phrases

    def whole(self, logits: torch.Tensor) -> list[Phrase]:
        """All frames [frames, tokens] of a short recording as one phrase, decoded in one piece."""
        said = (~self.silent[logits.argmax(-1)]).nonzero().flatten().tolist() or [0, len(logits) - 1]
        self._append(said[0], said[-1] + 1, logits)
        return self.phrases

    def _end_of_phrase(self) -> int | None:
        """How many of the held frames, which begin with speech, make a phrase; None: that is yet to be seen."""
        best = self.held.argmax(-1)
        stretches = list(_stretches(self.silent[best]))
        for start, stop in stretches:
            if stop - start >= self.min_pause:
                return start
        if len(best) <= self.max_phrase:
            return None

        def rank(stretch: tuple[int, int]) -> tuple[bool, int, int]:
            start, stop = stretch
            return bool(self.divides[best[start : stop + 1]].any()), stop - start, start

        return max((s for s in stretches if s[0] <= self.max_phrase), key=rank, default=(self.max_phrase, 0))[0]

    def _say(self, stop: int) -> None:
        """Make a phrase of the first held frames, and let go of them."""
        self.said = int(self.held[stop - 1].argmax())
        self._append(self.first, self.first + stop, self.held[:stop])
        self._drop(stop)
        self._skip_said()

    def _append(self, first: int, stop: int, logits: torch.Tensor) -> None:
        (text,) = self.decode(logits[None], torch.tensor([len(logits)]))
        if text:
            start, end = round(first * self.frame_seconds, 3), round(stop * self.frame_seconds, 3)
            self.phrases.append(Phrase(start, end, text))

    def _skip_said(self) -> None:
        """Let go of the rest of a token in which a phrase was cut, then of silence."""
        if self.said is not None:
            self._drop(_first(self.held.argmax(-1) != self.said))
            self.said = None if len(self.held) else self.said
        self._drop(_first(~self.silent[self.held.argmax(-1)]))

    def _drop(self, frames: int) -> None:
        self.first, self.held = self.first + frames, self.held[frames:].clone()


def _first(mask: torch.Tensor) -> int:
    """Where the first True is; the length, where there is none."""
    where = mask.nonzero().flatten()
    return int(where[0]) if len(where) else len(mask)


def _stretches(mask: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Begin and end of each stretch of True.

    Example
    -------
    >>> list(_stretches(torch.tensor([False, True, True, False, True])))
    [(1, 3), (4, 5)]
    """
    padded = torch.nn.functional.pad(mask.int(), (1, 1))
    change = padded.diff().nonzero().flatten().tolist()
    return zip(change[::2], change[1::2], strict=True)


WINDOW = 4.0  # seconds, by default


LEAST_STEP = 0.1  # seconds


def plan_windows(recognizer, duration: float, step: float | None) -> WindowPlan:
    """Where the windows of a recogniser lie.

    Arguments
    ---------
    recognizer : EmotionRecognizer
        Its model gives the shortest window, its ``max_seconds`` the longest.
    duration : float
        Seconds of a window.
    step : float, optional
        Seconds from one to the next; None: half of `duration`.

    Returns
    -------
    WindowPlan

    Raises
    ------
    UserError
        For windows that are too short or too long, or a step that would leave gaps.
    """
    step = duration / 2 if step is None else step
    grid = _samples_a_frame(recognizer.model) if recognizer.decode else 1
    least = max(LEAST_STEP, (recognizer.model.min_samples + grid) / SAMPLE_RATE)
    if not least <= duration <= recognizer.max_seconds:
        most = f"max_seconds, {recognizer.max_seconds:g} s"
        raise UserError(f"window: expected {least:g} s to {most}, found {duration:g} s")
    if not LEAST_STEP <= step <= duration:
        raise UserError(f"step: expected {LEAST_STEP:g} s to the window's {duration:g} s, found {step:g} s")
    return WindowPlan(round(duration * SAMPLE_RATE), round(step * SAMPLE_RATE), grid)


def follow(
    recognizer, path: str | os.PathLike, seconds: float, plan: WindowPlan, batch_size: int, progress: bool
) -> Timeline:
    """The timeline of one recording.

    Held at a time are a block of the recording, a batch of windows and a phrase's logits; kept are posteriors a step,
    phrases and an outline of the waveform.

    Arguments
    ---------
    recognizer : EmotionRecognizer
        Recognises windows.
    path : str or os.PathLike
        The recording, which was found to be sound.
    seconds : float
        It lasts, as its header says: for the progress bar.
    plan : WindowPlan
        Where windows lie.
    batch_size : int
        Windows a batch.
    progress : bool
        Show on a terminal how many seconds are done.

    Returns
    -------
    Timeline

    Raises
    ------
    BadAudioError
        When the recording cannot be read to its end, or the model has no answer to it.
    """
    envelope, steps = Envelope(), StepPosteriors(plan.step)
    speech = _Speech(recognizer.decode, plan.grid) if recognizer.decode else None
    windows = plan.cut(_outlined(stream_audio(path), envelope))
    format_of_bar = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"
    bar = tqdm(None, "seconds", seconds, leave=False, disable=None if progress else True, bar_format=format_of_bar)
    with bar:
        for batch in _batches(windows, batch_size):
            posteriors, logits = recognizer.window_outputs([window.wav for window in batch])
            for k, window in enumerate(batch):
                steps.add(window.start, window.stop, posteriors[k])
                if speech:
                    speech.add(window, logits[k])
            bar.update(batch[-1].stop / SAMPLE_RATE - bar.n)
    edges, posteriors = steps.finish()
    edges = edges / SAMPLE_RATE
    return Timeline(
        path=os.fspath(path),
        duration=float(edges[-1]),
        window=plan.seconds[0],
        step=plan.seconds[1],
        segments=merge_steps(edges, posteriors, recognizer.classes, recognizer.emotion_of),
        phrases=speech.finish() if speech else None,
        classes=list(recognizer.classes),
        edges=edges,
        posteriors=posteriors,
        envelope=envelope.finish(),
        envelope_step=envelope.stretch / SAMPLE_RATE,
    )


class _Speech:
    """Phrases of windows' CTC logits."""

    def __init__(self, decode, samples_a_frame: int):
        self.samples_a_frame = samples_a_frame
        self.joiner = LogitJoiner(decode.tokens.blank)
        self.cutter = PhraseCutter(decode, samples_a_frame / SAMPLE_RATE)

    def add(self, window: Window, logits: torch.Tensor) -> None:
        self.cutter.add(self.joiner.add(window.start // self.samples_a_frame, logits))

    def finish(self) -> list[Phrase]:
        rest = self.joiner.finish()
        if self.joiner.windows == 1:  # it is decoded as any recording is
            return self.cutter.whole(rest)
        self.cutter.add(rest)
        return self.cutter.finish()


def _samples_a_frame(model) -> int:
    """From one frame of the encoder to the next: so many lengths give exactly one frame."""
    return int((model.frame_counts(torch.arange(SAMPLE_RATE)) == 1).sum())


def _outlined(blocks: Iterable[torch.Tensor], envelope: Envelope) -> Iterator[torch.Tensor]:
    for block in blocks:
        envelope.add(block)
        yield block


def _batches(windows: Iterator[Window], size: int) -> Iterator[list[Window]]:
    while batch := list(islice(windows, size)):
        yield batch
