"""What happens to speech on its way to a model: telephones, rooms, noise, codecs; one table, and random draws of it.

A change takes a waveform [time], float32 at 16 kHz, and a NumPy generator, from which alone it draws, and returns
another waveform. Nothing is downloaded: noise and rooms are computed, babble is made of other utterances.
Signal-to-noise ratios are of powers over the whole utterance, pauses included. Nothing is cut at full scale but by
mu-law and the codecs, which cannot hold more.
"""

import importlib.util
import io
import zlib
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import soundfile
import soxr
from scipy import signal

from speechbrain_ser.data.batches import QUALITY, SAMPLE_RATE, load_audio

VERSION = 1  # of what the changes do: raise it with every change, and changed copies are computed anew
SMALL, MODERATE, SEVERE = "small", "moderate", "severe"
ROOMS = "pyroomacoustics"  # the package that computes them
NO_ROOMS = f'rooms need {ROOMS}: pip install "speechbrain-ser[rooms]"'
TELEPHONE_RATE, TELEPHONE_BAND = 8_000, (300, 3_400)  # Hz
MU = 255  # of ITU-T G.711's mu-law
PACKET = SAMPLE_RATE // 50  # samples: 20 ms
VOICES = 5  # that babble at the same time
POSITIONS = 3  # of a speaker and a microphone, in a room


class Perturbation(NamedTuple):
    """A row of the table: what is done to a waveform, and how much one may ask of a model there."""

    name: str
    severity: str  # SMALL: hardly to be heard; MODERATE: as it comes every day; SEVERE
    change: Callable[..., np.ndarray]  # a partial of waveform, generator, and, of babble, other utterances' waveforms

    def __call__(self, wav: np.ndarray, rng: np.random.Generator, others: Sequence[np.ndarray] = ()) -> np.ndarray:
        return np.ascontiguousarray(self.change(wav, rng, *([others] if self.is_babble else [])), np.float32)

    @property
    def is_babble(self) -> bool:
        return self.change.func is babble

    @property
    def lacks(self) -> bool:
        """Whether the package that it needs is not installed."""
        return self.change.func is room and importlib.util.find_spec(ROOMS) is None


def generator(*keys: int | str) -> np.random.Generator:
    """Return the generator of some keys, such as a seed, an utterance's ID and the name of a change."""
    return np.random.default_rng([key if isinstance(key, int) else zlib.crc32(key.encode()) for key in keys])


# ------------------------------------------------------------------ levels


def gain(wav, rng, db: float):
    """Make it louder by so many dB; beyond full scale nothing is cut."""
    return wav * 10 ** (db / 20)


def offset(wav, rng, share: float):
    """Add a constant, as a cheap microphone does: a share of the utterance's own peak."""
    return wav + share * np.abs(wav).max()


def clipping(wav, rng, share: float):
    """Cut what is loudest, so large a share of the samples, as a recorder that is set too high."""
    limit = np.quantile(np.abs(wav), 1 - share)
    return wav.clip(-limit, limit)


# ------------------------------------------------------------------ telephones and codecs


def narrow(wav, rng):
    """Keep what a rate of 8 kHz can hold."""
    return _fit(soxr.resample(soxr.resample(wav, SAMPLE_RATE, 8_000, QUALITY), 8_000, SAMPLE_RATE, QUALITY), len(wav))


def telephone(wav, rng):
    """A fixed line: 8 kHz, 300 to 3,400 Hz (Butterworth, order 4), mu-law of 8 bits."""
    low = soxr.resample(wav, SAMPLE_RATE, TELEPHONE_RATE, QUALITY)
    band = signal.butter(4, TELEPHONE_BAND, "bandpass", fs=TELEPHONE_RATE, output="sos")
    low = mu_law(signal.sosfilt(band, low)).astype(np.float32)
    return _fit(soxr.resample(low, TELEPHONE_RATE, SAMPLE_RATE, QUALITY), len(wav))


def mu_law(wav: np.ndarray) -> np.ndarray:
    """Return samples as 256 logarithmic steps hold them: y = sgn(x) ln(1 + 255 |x|) / ln 256 (ITU-T G.711).

    >>> mu_law(np.array([0.0, 0.5, -2.0])).round(2).tolist()
    [0.0, 0.5, -1.0]
    """
    pressed = np.sign(wav) * np.log1p(MU * np.abs(wav.clip(-1, 1))) / np.log1p(MU)
    steps = np.round(pressed * 127) / 127
    return np.sign(steps) * np.expm1(np.abs(steps) * np.log1p(MU)) / MU


def coded(wav, rng, form: str, level: float):
    """Write and read it again by libsndfile: MP3 (constant rate) or OPUS, `level` from 0 to 1, the worst."""
    found = soundfile.read(encode(wav, form, level), dtype="float32")[0]
    if len(found) > len(wav):  # an MP3 whose first frame has no room for how much of its beginning is the coder's delay
        late = signal.correlate(found, wav, "valid", "fft").argmax()
        found = found[late:]
    return _fit(found, len(wav))


def encode(wav: np.ndarray, form: str, level: float) -> io.BytesIO:
    """Return a file in memory, at its beginning."""
    file, mp3 = io.BytesIO(), form == "MP3"
    options = {"format": form, "bitrate_mode": "CONSTANT"} if mp3 else {"format": "OGG", "subtype": form}
    soundfile.write(file, wav.clip(-1, 1), SAMPLE_RATE, compression_level=level, **options)
    file.seek(0)
    return file


def lost(wav, rng, share: float):
    """Lose so large a share of the packets of 20 ms, one at the least: silence is in their place."""
    n = -(-len(wav) // PACKET)
    gone = rng.choice(n, max(1, round(share * n)), replace=False)
    is_kept = np.ones(n, np.float32)
    is_kept[gone] = 0
    return wav * np.repeat(is_kept, PACKET)[: len(wav)]


# ------------------------------------------------------------------ noise


def white_noise(wav, rng, snr: float):
    """Add Gaussian white noise, so many dB below the utterance."""
    return _added(wav, rng.standard_normal(len(wav)), snr)


def babble(wav, rng, others, snr: float):
    """Add other utterances, equally loud, each looped from a random place on, all together so many dB below."""
    looped = [np.resize(np.roll(other, rng.integers(len(other))), len(wav)) / rms(other) for other in others]
    return _added(wav, np.sum(looped, 0), snr)


def rms(wav: np.ndarray) -> float:
    """Return the root of the mean power; of silence the least that can be divided by."""
    return float(max(np.sqrt(np.mean(np.square(wav, dtype=float))), 1e-9))


def _added(wav: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    return wav + noise * (rms(wav) / rms(noise) * 10 ** (-snr / 20))


# ------------------------------------------------------------------ rooms


def room(wav, rng, size: tuple[float, float, float], rt60: float, metres: float):
    """Speak in a room: the direct sound where it was, echoes after it, the level kept; what rings on is cut."""
    response = impulse_response(size, rt60, metres, int(rng.integers(POSITIONS)))
    wet = signal.fftconvolve(wav, response)[np.abs(response).argmax() :][: len(wav)]
    return _fit(wet * (rms(wav) / rms(wet)), len(wav))


@lru_cache(maxsize=64)
def impulse_response(size: tuple[float, float, float], rt60: float, metres: float, position: int) -> np.ndarray:
    """Return the response [time] of a box by the image source method, so many metres from speaker to microphone.

    `size` is in metres, `rt60` in seconds, by Sabine's formula; walls absorb all frequencies alike.
    """
    import pyroomacoustics

    rng, walls = np.random.default_rng(position), np.asarray(size)
    while True:
        speaker, way = rng.uniform(0.5, walls - 0.5), rng.standard_normal(3) * (1, 1, 0.2)
        microphone = speaker + metres * way / np.linalg.norm(way)
        if (microphone > 0.3).all() and (microphone < walls - 0.3).all():
            break
    absorption, order = pyroomacoustics.inverse_sabine(rt60, size)
    material = pyroomacoustics.Material(absorption)
    box = pyroomacoustics.ShoeBox(size, fs=SAMPLE_RATE, materials=material, max_order=order)
    box.add_source(speaker)
    box.add_microphone(microphone)
    box.compute_rir()
    return np.asarray(box.rir[0][0])


# ------------------------------------------------------------------ time


def speed(wav, rng, factor: float):
    """Play it faster, as a tape: tempo and pitch change, both by the factor."""
    return soxr.resample(wav, SAMPLE_RATE * factor, SAMPLE_RATE, QUALITY)


def tempo(wav, rng, factor: float):
    """Speak faster at the same pitch: waveform-similarity overlap-add (WSOLA, Verhelst and Roelands 1993).

    Frames of 32 ms, half overlapping, each taken where within 8 ms it best goes on from the one before.
    """
    size, reach = 512, 128
    hop, window = size // 2, signal.windows.hann(size, sym=False)
    padded = np.pad(wav, (reach + hop, 2 * (reach + size)))
    n = int(np.ceil(len(wav) / factor / hop)) + 1
    out, place = np.zeros((n + 1) * hop), reach
    for k in range(n):
        if k:
            wanted, start = padded[place + hop :][:size], int(k * hop * factor)
            around = padded[start : start + size + 2 * reach]
            if len(wanted) < size or len(around) < size + 2 * reach:
                break
            place = start + int(signal.correlate(around, wanted, "valid", "fft").argmax())
        out[k * hop :][:size] += window * padded[place:][:size]
    return _fit(out[hop:], round(len(wav) / factor))


def pitch(wav, rng, semitones: float):
    """Speak higher in the same time: slower by WSOLA, then faster by resampling, formants and all."""
    factor = 2 ** (semitones / 12)
    return _fit(speed(tempo(wav, rng, 1 / factor).astype(np.float32), rng, factor), len(wav))


def crop(wav, rng, start: float = 0, end: float = 0):
    """Begin or end some seconds too late or early; never is more than half cut."""
    most = len(wav) // 4
    first, last = (min(round(seconds * SAMPLE_RATE), most) for seconds in (start, end))
    return wav[first : len(wav) - last]


def silence(wav, rng, start: float = 0, end: float = 0):
    """Put seconds of digital silence before and after."""
    return np.pad(wav, [round(seconds * SAMPLE_RATE) for seconds in (start, end)])


def _fit(wav: np.ndarray, n: int) -> np.ndarray:
    """So many samples: cut, or zeros at the end."""
    return np.pad(wav[:n], (0, max(0, n - len(wav))))


# ------------------------------------------------------------------ the table


#: bedroom, office, hall: size in m, RT60 in s, metres from speaker to microphone
BOXES = {
    "0.2 s, 0.5 m": {"size": (3.0, 2.6, 2.4), "rt60": 0.2, "metres": 0.5},
    "0.4 s, 1 m": {"size": (4.0, 3.5, 3.0), "rt60": 0.4, "metres": 1.0},
    "0.8 s, 3 m": {"size": (8.0, 7.0, 6.0), "rt60": 0.8, "metres": 3.0},
}
#: format and kbit/s: libsndfile's compression level for one channel of 16 kHz (of Opus, whose rate varies, the aim)
CODECS = {("MP3", 24): 0.9, ("MP3", 8): 0.98, ("OPUS", 12): 0.976, ("OPUS", 8): 0.992}

TABLE: tuple[Perturbation, ...] = tuple(
    Perturbation(name, severity, partial(change, **options))
    for name, severity, change, options in (
        ("gain -20 dB", MODERATE, gain, {"db": -20}),
        ("gain -6 dB", SMALL, gain, {"db": -6}),
        ("gain +6 dB", SMALL, gain, {"db": 6}),
        ("offset 1 %", SMALL, offset, {"share": 0.01}),
        ("offset 10 %", MODERATE, offset, {"share": 0.1}),
        ("clipping 0.3 %", SMALL, clipping, {"share": 0.003}),
        ("clipping 3 %", MODERATE, clipping, {"share": 0.03}),
        ("clipping 20 %", SEVERE, clipping, {"share": 0.2}),
        ("8 kHz", MODERATE, narrow, {}),
        ("telephone", MODERATE, telephone, {}),
        *((f"{f} {n} kbit/s", MODERATE, coded, {"form": f, "level": level}) for (f, n), level in CODECS.items()),
        ("white noise 40 dB", SMALL, white_noise, {"snr": 40}),
        ("white noise 20 dB", MODERATE, white_noise, {"snr": 20}),
        ("white noise 10 dB", SEVERE, white_noise, {"snr": 10}),
        ("white noise 0 dB", SEVERE, white_noise, {"snr": 0}),
        ("babble 20 dB", MODERATE, babble, {"snr": 20}),
        ("babble 10 dB", SEVERE, babble, {"snr": 10}),
        ("babble 0 dB", SEVERE, babble, {"snr": 0}),
        *((f"room {name}", s, room, BOXES[name]) for name, s in zip(BOXES, (MODERATE, MODERATE, SEVERE), strict=True)),
        ("speed 90 %", MODERATE, speed, {"factor": 0.9}),
        ("speed 98 %", SMALL, speed, {"factor": 0.98}),
        ("speed 102 %", SMALL, speed, {"factor": 1.02}),
        ("speed 110 %", MODERATE, speed, {"factor": 1.1}),
        ("tempo 90 %", MODERATE, tempo, {"factor": 0.9}),
        ("tempo 110 %", MODERATE, tempo, {"factor": 1.1}),
        ("pitch -1 semitone", MODERATE, pitch, {"semitones": -1}),
        ("pitch +1 semitone", MODERATE, pitch, {"semitones": 1}),
        ("crop start 50 ms", SMALL, crop, {"start": 0.05}),
        ("crop end 50 ms", SMALL, crop, {"end": 0.05}),
        ("crop both 250 ms", MODERATE, crop, {"start": 0.25, "end": 0.25}),
        ("silence start 50 ms", SMALL, silence, {"start": 0.05}),
        ("silence end 50 ms", SMALL, silence, {"end": 0.05}),
        ("silence both 1 s", MODERATE, silence, {"start": 1.0, "end": 1.0}),
        ("lost packets 1 %", SMALL, lost, {"share": 0.01}),
        ("lost packets 5 %", MODERATE, lost, {"share": 0.05}),
        ("lost packets 10 %", SEVERE, lost, {"share": 0.1}),
    )
)


# ------------------------------------------------------------------ babble's voices


class Voices:
    """Utterances of a corpus that babble is made of, read as they are asked for.

    Arguments
    ---------
    rows : pandas.DataFrame
        Of a manifest: ID, wav, speaker. Where speakers are known, an utterance's babble is of other speakers.
    """

    def __init__(self, rows: pd.DataFrame):
        self.rows = rows.set_index("ID", drop=False)
        self._read = lru_cache(maxsize=512)(lambda path: load_audio(path).numpy())

    def draw(self, name: str, rng: np.random.Generator, n: int = VOICES) -> list[str]:
        """Return IDs of other utterances than one, of other speakers where they are known; none where nobody is."""
        who = self.rows["speaker"].get(name, "")
        others = self.rows.index[(self.rows.index != name) & ((self.rows["speaker"] != who) | (who == ""))]
        return list(others[rng.integers(len(others), size=n)]) if len(others) else []

    def read(self, names: Collection[str]) -> list[np.ndarray]:
        """Return their waveforms."""
        return [self._read(self.rows["wav"][name]) for name in names]
