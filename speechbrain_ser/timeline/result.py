"""What was recognised in a long recording: segments of one emotion, phrases, posteriors step by step."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby

import numpy as np


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
