"""One recording, from its file to what the page and the API say of it."""

from dataclasses import dataclass, field
from pathlib import Path

import soundfile

from speechbrain_ser.corpora.audio import BadAudioError, duration_of, sound_name
from speechbrain_ser.errors import UserError
from speechbrain_ser.inference import EmotionRecognizer

DENSEST = 8 * 48_000  # samples a second of recording, all channels together: few bytes can decode to a full memory


@dataclass(frozen=True)
class Answer:
    """What was recognised.

    Arguments
    ---------
    name : str
        The recording's file name.
    seconds : float
        Its duration.
    emotion : str or None
        The likeliest class; None: none is likely enough.
    posteriors : dict of str to float
        By class, calibrated, of the whole recording.
    transcript : str, optional
        Where the model has an ASR head.
    segments : list of dict
        start, end (s), emotion and posteriors of each stretch of one emotion.
    phrases : list of dict
        start, end (s) and text, where the model has an ASR head.
    textgrid : str, optional
        The timeline for Praat.
    picture : bytes, optional
        The timeline as PNG.
    """

    name: str
    seconds: float
    emotion: str | None
    posteriors: dict[str, float]
    transcript: str | None = None
    segments: list[dict] = field(default_factory=list)
    phrases: list[dict] = field(default_factory=list)
    textgrid: str | None = None
    picture: bytes | None = None

    def to_json(self) -> dict:
        """What the API gives."""
        return {
            "recording": self.name,
            "duration": round(self.seconds, 3),
            "emotion": self.emotion,
            "posteriors": {c: round(p, 6) for c, p in self.posteriors.items()},
            "transcript": self.transcript,
            "segments": self.segments,
            "phrases": self.phrases,
        }


def recognise(recognizer: EmotionRecognizer, path: Path, window: float, step: float, max_seconds: float) -> Answer:
    """Recognise one recording.

    Raises
    ------
    UserError
        What is wrong with it, without its folder.
    """
    seconds = _checked(path, max_seconds)
    found = next(iter(recognizer.classify_files([path])))
    if found.error is not None:
        raise UserError(found.error)
    return Answer(path.name, seconds, found.emotion, found.posteriors, found.transcript)


def _checked(path: Path, max_seconds: float) -> float:
    """The duration, by the header first: what is too long is not decoded."""
    try:
        header = soundfile.info(sound_name(path))
        seconds = header.frames / header.samplerate
        if seconds > max_seconds:
            raise UserError(f"too long: {seconds:.1f} s (expected at most {max_seconds:g} s)")
        if header.samplerate * header.channels > DENSEST:
            found = f"{header.channels} channels at {header.samplerate} Hz"
            raise UserError(f"too dense: {found} (expected at most 8 channels at 48000 Hz, or as much)")
    except (soundfile.SoundFileError, OSError):
        pass  # said in words below
    try:
        return duration_of(path)
    except BadAudioError as defect:
        raise UserError(defect.words) from defect
