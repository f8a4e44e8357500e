"""One recording, from its file to what the page and the API say of it."""

import io
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from speechbrain_ser.corpora.audio import sound_name
from speechbrain_ser.errors import UserError
from speechbrain_ser.inference import EmotionRecognizer, Recognition
from speechbrain_ser.timeline import Phrase, Segment, Timeline
from speechbrain_ser.timeline.picture import plot_timeline
from speechbrain_ser.timeline.textgrid import write_textgrid

WHOLE = 15.0  # seconds up to which a recording is taken for one utterance: what models are trained and tested on
DENSEST = 8 * 48_000  # samples a second of recording, all channels together: few bytes can decode to a full memory
DPI = 150


@dataclass(frozen=True)
class Answer:
    """What was recognised in a recording.

    Arguments
    ---------
    name : str
        The recording's file name.
    duration : float
        Seconds.
    emotion : str or None
        The likeliest class of the whole recording; None where the recogniser abstained.
    posteriors : dict of str to float
        By class, of the whole recording.
    is_whole : bool
        Whether these were recognised in one piece; else they are the timeline's.
    transcript : str, optional
        Where the model has an ASR head.
    segments : list of Segment
        Stretches of one emotion.
    phrases : list of Phrase
        What was said when, where the model has an ASR head.
    textgrid : str, optional
        The timeline for Praat.
    picture : bytes, optional
        The timeline as PNG.
    """

    name: str
    duration: float
    emotion: str | None
    posteriors: dict[str, float]
    is_whole: bool = True
    transcript: str | None = None
    segments: list[Segment] = field(default_factory=list)
    phrases: list[Phrase] = field(default_factory=list)
    textgrid: str | None = None
    picture: bytes | None = None

    def to_dict(self) -> dict:
        """What the API gives.

        Example
        -------
        >>> Answer("a.wav", 1.5, "sad", {"sad": 1.0}, True, "NO", [Segment(0.0, 1.5, "sad", {"sad": 1.0})]).to_dict()
        {'recording': 'a.wav', 'duration': 1.5, 'emotion': 'sad', 'posteriors': {'sad': 1.0}, 'whole': True,
         'transcript': 'NO',
         'segments': [{'start': 0.0, 'end': 1.5, 'emotion': 'sad', 'posteriors': {'sad': 1.0}}], 'phrases': []}
        """
        plain = {"recording": self.name, "duration": self.duration, "emotion": self.emotion}
        plain |= {"posteriors": self.posteriors, "whole": self.is_whole, "transcript": self.transcript}
        plain |= {"segments": [asdict(s) for s in self.segments], "phrases": [asdict(p) for p in self.phrases]}
        return _rounded(plain)


def recognise(
    recognizer: EmotionRecognizer,
    path: Path,
    window: float = 4.0,
    step: float | None = None,
    max_seconds: float = 600.0,
) -> Answer:
    """Recognise one recording as a whole and over time.

    A recording of at most :data:`WHOLE` seconds is recognised as one utterance, as `predict` does, beside its timeline;
    of a longer one the posteriors are the timeline's mean, and the words the timeline's.

    Arguments
    ---------
    recognizer : EmotionRecognizer
        The model.
    path : pathlib.Path
        The recording.
    window, step : float
        Of the timeline, in seconds (:meth:`EmotionRecognizer.timeline`).
    max_seconds : float
        The longest recording that is taken.

    Returns
    -------
    Answer

    Raises
    ------
    UserError
        What is wrong with the recording, without its folder.
    """
    _check_header(path, max_seconds)
    timeline = _sound(recognizer.timelines([path], window, step))
    is_whole = timeline.duration <= min(WHOLE, recognizer.max_seconds)
    found = _sound(recognizer.classify_files([path])) if is_whole else _mean(recognizer, timeline)
    return Answer(
        path.name,
        timeline.duration,
        found.emotion,
        found.posteriors,
        is_whole,
        found.transcript,
        timeline.segments,
        timeline.phrases or [],
        _textgrid(timeline, path.parent),
        _picture(timeline),
    )


def _check_header(path: Path, max_seconds: float) -> None:
    """What is too long is not decoded; what is no recording says so when it is."""
    try:
        header = soundfile.info(sound_name(path))
    except (soundfile.SoundFileError, OSError):
        return
    seconds = header.frames / header.samplerate
    if seconds > max_seconds:
        raise UserError(f"too long: {seconds:.1f} s (expected at most {max_seconds:g} s)")
    if header.samplerate * header.channels > DENSEST:
        found = f"{header.channels} channels at {header.samplerate} Hz"
        raise UserError(f"too dense: {found} (expected at most 8 channels at 48000 Hz, or as much)")


def _sound(results: Iterable[Timeline | Recognition]) -> Timeline | Recognition:
    """The only one of some results, which has no error."""
    (found,) = results
    if found.error is not None:
        raise UserError(found.error)
    return found


def _mean(recognizer: EmotionRecognizer, timeline: Timeline) -> Recognition:
    posterior = np.average(timeline.posteriors, axis=0, weights=np.diff(timeline.edges))
    posteriors = dict(zip(timeline.classes, posterior.tolist(), strict=True))
    return Recognition(None, recognizer.emotion_of(posterior), posteriors, timeline.transcript)


def _textgrid(timeline: Timeline, folder: Path) -> str:
    """By way of a file, which lies with the recording and is deleted at once."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        return write_textgrid(timeline, Path(temporary, "timeline.TextGrid")).read_text(encoding="utf-8")


def _picture(timeline: Timeline) -> bytes:
    content = io.BytesIO()
    plot_timeline(timeline).savefig(content, format="png", dpi=DPI)
    return content.getvalue()


def _rounded(content):
    """Plain data, floats with six digits behind the point."""
    if isinstance(content, dict):
        return {name: _rounded(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_rounded(value) for value in content]
    return round(content, 6) if isinstance(content, float) else content
