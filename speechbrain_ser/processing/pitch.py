"""F0 as SpeechSplit's pitch encoder reads it: tracked, normalised per utterance, quantised."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.processing.rapt import HOP, frame_count, lags_of, rapt
from speechbrain_ser.processing.split_mel import MIN_SAMPLES, SAMPLE_RATE, prepare

METHODS = ("rapt", "pysptk")
UNVOICED = -1e10  # interpolated with any voiced frame it stays far below 0, hence unvoiced
BINS = 256  # of voiced frames
DEVIATIONS = 4.0  # standard deviations that fill the bins on either side of the mean
INT16 = 32768.0  # pysptk expects samples of this range
GENDERS = ("M", "F")  # as manifests write them
VERSION = 1  # of the numbers that come out: raise it with every change of them, and caches start afresh


def extract_f0(wav: np.ndarray, method: str = "rapt", f_min: float = 50.0, f_max: float = 600.0) -> np.ndarray:
    """Return the fundamental frequency in Hz, 0 where unvoiced, float32 [frame_count(time)]: 62.5 frames a second.

    `wav` is [time] at 16 kHz, of any level: it is scaled to peak 1 first. `method` is `rapt` (this project's) or
    `pysptk` (SPTK's program, what SpeechSplit used; the extra `rapt` installs it). `f_min` and `f_max` are in Hz:
    SpeechSplit has 50 to 250 for men and 100 to 600 for women, which loses a shouting man's voice.
    """
    _check(method)
    wav = np.asarray(wav)
    f0 = rapt(wav, f_min, f_max) if method == "rapt" else _pysptk(wav, f_min, f_max)
    return f0.astype(np.float32)


def _check(method: str) -> None:
    if method not in METHODS:
        raise UserError(f"F0: method is {method!r}, expected {' or '.join(METHODS)}{nearest(method, METHODS)}")


def _pysptk(wav, f_min, f_max):
    try:
        import pysptk
    except ImportError as error:
        raise UserError(
            f"F0: method is 'pysptk', but it cannot be imported ({error}). Install the extra: pip install "
            "'speechbrain-ser[rapt]' (it needs a C compiler and setuptools < 82), or use the method 'rapt'"
        ) from error
    lags_of(f_min, f_max)  # refuses what cannot be
    peak = np.abs(wav.astype(np.float64)).max(initial=0.0)
    if not peak or len(wav) < 2 * HOP + 0.0075 * SAMPLE_RATE:  # SPTK refuses shorter ones
        return np.zeros(frame_count(len(wav)))
    scaled = (wav / peak * INT16).astype(np.float32)
    if len(scaled) % HOP == 0:  # pysptk would give a frame less than the mel spectrogram
        scaled = np.append(scaled, np.float32(0.0))
    return pysptk.rapt(scaled, SAMPLE_RATE, HOP, min=f_min, max=f_max, otype="f0")


def normalize(f0: np.ndarray) -> np.ndarray:
    """Return pitch relative to the utterance's own: its mean becomes 0.5, four deviations below and above 0 and 1.

    From Hz, 0 where unvoiced [frames], to float32 in 0 to 1 where voiced, `UNVOICED` elsewhere. Mean and (population)
    deviation are those of log F0 over the voiced frames; a pitch that never changes is 0.5.

    Example
    -------
    >>> normalize(np.array([100.0, 0.0, 121.0, 110.0])).round(3)
    array([ 3.47e-01, -1.00e+10,  6.53e-01,  5.00e-01], dtype=float32)
    """
    f0 = np.asarray(f0, dtype=np.float64)
    voiced = f0 > 0
    normalized = np.full(f0.shape, UNVOICED, dtype=np.float32)
    if voiced.any():
        pitch = np.log(f0[voiced])
        pitch = pitch - pitch.mean()
        pitch = pitch / max(DEVIATIONS * pitch.std(), 1e-6)  # a steady pitch is its own mean
        normalized[voiced] = (pitch.clip(-1, 1) + 1) / 2
    return normalized


def quantize(f0_norm: torch.Tensor | np.ndarray, bins: int = BINS) -> torch.LongTensor:
    """Return classes of what :func:`normalize` gives, perhaps resampled [..., frames]: 0 unvoiced, else 1 to `bins`.

    As in SpeechSplit's program all that is not above 0 is unvoiced: what was interpolated with an unvoiced frame, and
    a voice more than four deviations below its mean.

    Example
    -------
    >>> quantize(np.array([UNVOICED, 0.0, 0.001, 0.5, 1.0])).tolist()
    [0, 0, 1, 129, 256]
    """
    f0_norm = torch.as_tensor(f0_norm)
    levels = torch.round(f0_norm * (bins - 1)) + 1
    return torch.where(f0_norm > 0, levels, 0.0).long()


class PitchTrack:
    """Waveform -> log F0, normalised per utterance, in 62.5 frames a second.

    Arguments
    ---------
    method : str
        `rapt`, or `pysptk` (see :func:`extract_f0`).
    f_range : sequence of float, or mapping of str to sequence of float
        Lowest and highest frequency in Hz, for everybody; or a range for each gender, as SpeechSplit's program has
        it: ``{M: [50, 250], F: [100, 600]}``, which needs a corpus that tells the gender.

    Example
    -------
    >>> PitchTrack().extract(torch.randn(16000)).shape
    torch.Size([63])
    >>> sorted(PitchTrack(f_range={"M": [50, 250], "F": [100, 600]}).by_gender)
    ['F', 'M']
    """

    min_samples = MIN_SAMPLES

    def __init__(self, method: str = "rapt", f_range: Sequence[float] | Mapping[str, Sequence[float]] = (50.0, 600.0)):
        _check(method)
        self.method = method
        self.by_gender: dict[str, PitchTrack] = {}  # stays empty where one range serves everybody
        if isinstance(f_range, Mapping):
            if set(f_range) != set(GENDERS):
                raise UserError(f"f0_range: expected [low, high], or a range for each of {GENDERS}, found {f_range}")
            self.by_gender = {gender: PitchTrack(method, of_gender) for gender, of_gender in f_range.items()}
            lows, highs = zip(*(each.f_range for each in self.by_gender.values()), strict=True)
            f_range = min(lows), max(highs)
        if not isinstance(f_range, Sequence) or len(f_range) != 2:
            raise UserError(f"f0_range: expected [low, high] in Hz, found {f_range!r}")
        self.f_range = tuple(map(float, f_range))
        lags_of(*self.f_range)  # refuses what cannot be
        self.settings = {"features": "pitch_track", "version": VERSION, "method": method, "f_range": [*self.f_range]}

    def extract_hz(self, wav: torch.Tensor) -> torch.Tensor:
        """Return F0 in Hz of a waveform [time], 16 kHz: float32, 0 where unvoiced, as many frames as SplitMel gives."""
        return torch.from_numpy(extract_f0(prepare(wav), self.method, *self.f_range))

    def extract(self, wav: torch.Tensor) -> torch.Tensor:
        """Return normalised log F0 (:func:`normalize`) of a waveform [time], 16 kHz, at any level."""
        return torch.from_numpy(normalize(self.extract_hz(wav).numpy()))
