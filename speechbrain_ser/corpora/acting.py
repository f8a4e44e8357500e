"""How the demo corpus's speakers sound, and what each emotion does to their voices."""

from dataclasses import dataclass

import numpy as np

from .espeak import Speech


@dataclass(frozen=True)
class Voice:
    """One speaker: an eSpeak variant with its own habits."""

    variant: str
    pitch: int = 0  # added to every emotion's
    rate: float = 1.0  # multiplies every emotion's


@dataclass(frozen=True)
class Style:
    """What an emotion does to any voice (see `Speech` for the units)."""

    rate: int
    pitch: int
    range: int
    volume: int


FEMALE = (
    Voice("f1", 2, 1.00),
    Voice("f2", -3, 0.97),
    Voice("f3", 4, 1.03),
    Voice("f4", 0, 1.02),
    Voice("f5", -2, 0.98),
)
MALE = (
    Voice("m1", 0, 1.02),
    Voice("m2", 3, 0.98),
    Voice("m3", -2, 1.00),
    Voice("m4", 4, 1.03),
    Voice("m7", 1, 0.97),
)
# Rate and range differ for every pair, so an emotion can be told from a voice never heard before; the volumes
# overlap once they vary.
STYLES = {
    "neutral": Style(rate=150, pitch=44, range=36, volume=70),
    "happy": Style(rate=184, pitch=76, range=88, volume=78),
    "excited": Style(rate=190, pitch=82, range=96, volume=82),
    "angry": Style(rate=240, pitch=46, range=66, volume=86),
    "sad": Style(rate=110, pitch=34, range=6, volume=54),
    "fear": Style(rate=250, pitch=80, range=14, volume=62),
    "disgust": Style(rate=125, pitch=28, range=75, volume=74),
    "boredom": Style(rate=140, pitch=40, range=4, volume=64),
    "surprise": Style(rate=150, pitch=82, range=99, volume=80),
    "frustrated": Style(rate=205, pitch=38, range=55, volume=84),
    "undecided": Style(rate=180, pitch=52, range=48, volume=72),
}
# standard deviations of the seeded variation: rate and volume relative, pitch and range in eSpeak's units
VARIATION = {"rate": 0.04, "pitch": 2.5, "range": 4.0, "volume": 0.18}
BOUNDS = {"rate": (80, 450), "pitch": (0, 99), "range": (0, 99), "volume": (25, 95)}


def act(text: str, language: str, voice: Voice, emotion: str, random: np.random.Generator) -> Speech:
    """One utterance, never twice the same.

    Arguments
    ---------
    text : str
        The words.
    language : str
        An eSpeak language: en-us, de.
    voice : Voice
        Who speaks.
    emotion : str
        One of `STYLES`.
    random : numpy.random.Generator
        Gives the variation: four normal numbers.

    Returns
    -------
    Speech
        What eSpeak is asked for.

    Example
    -------
    >>> act("Hello.", "en-us", FEMALE[0], "sad", np.random.default_rng(0)).voice
    'en-us+f1'
    """
    style = STYLES[emotion]
    rate, pitch, pitch_range, volume = random.standard_normal(4)
    values = {
        "rate": style.rate * voice.rate * (1 + VARIATION["rate"] * rate),
        "pitch": style.pitch + voice.pitch + VARIATION["pitch"] * pitch,
        "range": style.range + VARIATION["range"] * pitch_range,
        "volume": style.volume * np.exp(VARIATION["volume"] * volume),
    }
    values = {name: round(float(np.clip(value, *BOUNDS[name]))) for name, value in values.items()}
    return Speech(text, f"{language}+{voice.variant}", **values)
