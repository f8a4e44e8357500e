"""F0 as SpeechSplit's pitch encoder reads it: tracked, normalised per utterance, quantised."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional

from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.processing.rapt import check_range, frame_count, rapt
from speechbrain_ser.processing.split_mel import (
    HOP,
    MIN_SAMPLES,
    SAMPLE_RATE,
    prepare,
)

UNVOICED = -1e10  # interpolated with any voiced frame it stays far below 0, hence unvoiced


BINS = 256  # of voiced frames


CLASSES = BINS + 1  # class 0 is unvoiced


DEVIATIONS = 4.0  # standard deviations that fill the bins on either side of the mean


INT16 = 32768.0  # pysptk expects samples of this range


def extract_f0(
    wav: np.ndarray,
    method: str = "rapt",
    f_min: float = 50.0,
    f_max: float = 600.0,
    sample_rate: int = 16_000,
    hop: int = 256,
) -> np.ndarray:
    """Fundamental frequency of a recording, at whatever level it was made.

    Arguments
    ---------
    wav : np.ndarray
        Samples [time], at any level: they are scaled to peak 1 first.
    method : str
        `rapt` (this project's) or `pysptk` (SPTK's program, what SpeechSplit used; the extra `rapt` installs it).
    f_min, f_max : float
        Lowest and highest frequency, in Hz. SpeechSplit has 50 to 250 for men and 100 to 600 for women, which loses a
        shouting man's voice.
    sample_rate : int
        In Hz.
    hop : int
        Samples from frame to frame: 256 at 16 kHz are 62.5 frames a second, as in the mel spectrogram.

    Returns
    -------
    np.ndarray
        float32 [frame_count(time, hop)], in Hz, 0 where unvoiced.

    Raises
    ------
    UserError
        An unknown method, pysptk not installed, or frequencies that do not fit the sample rate.

    Example
    -------
    >>> pulses = np.zeros(16_000)
    >>> pulses[::160] = 1.0
    >>> extract_f0(pulses)[30].round(2)
    np.float32(100.0)
    """
    if method not in METHODS:
        known = ", ".join(METHODS)
        raise UserError(f"F0: method is {method!r}, expected one of {known}{nearest(method, METHODS)}")
    return METHODS[method](np.asarray(wav), f_min, f_max, sample_rate, hop).astype(np.float32)


def _with_rapt(wav, f_min, f_max, sample_rate, hop):
    return rapt(wav, sample_rate, hop, f_min, f_max)


def _with_pysptk(wav, f_min, f_max, sample_rate, hop):
    try:
        import pysptk
    except ImportError as error:
        raise UserError(
            f"F0: method is 'pysptk', but it cannot be imported ({error}). Install the extra: pip install "
            "'speechbrain-ser[rapt]' (it needs a C compiler and setuptools < 82), or use the method 'rapt'"
        ) from error
    check_range(sample_rate, f_min, f_max)
    frames = frame_count(len(wav), hop)
    peak = np.abs(wav.astype(np.float64)).max(initial=0.0)
    if not peak or len(wav) < 2 * hop + 0.0075 * sample_rate:  # SPTK refuses shorter ones
        return np.zeros(frames)
    scaled = (wav / peak * INT16).astype(np.float32)
    if len(scaled) % hop == 0:  # pysptk would give a frame less than the mel spectrogram
        scaled = np.append(scaled, np.float32(0.0))
    return pysptk.rapt(scaled, sample_rate, hop, min=f_min, max=f_max, otype="f0")


METHODS = {"rapt": _with_rapt, "pysptk": _with_pysptk}


def log_f0(f0: np.ndarray) -> np.ndarray:
    """Natural logarithm of voiced frames.

    Arguments
    ---------
    f0 : np.ndarray
        [frames], in Hz, 0 where unvoiced.

    Returns
    -------
    np.ndarray
        float64 [frames], `UNVOICED` where unvoiced.

    Example
    -------
    >>> log_f0(np.array([100.0, 0.0])).round(3).tolist()
    [4.605, -10000000000.0]
    """
    f0 = np.asarray(f0, dtype=np.float64)
    return np.log(f0, out=np.full_like(f0, UNVOICED), where=f0 > 0)


def normalize(f0: np.ndarray) -> np.ndarray:
    """Pitch relative to the utterance's own: its mean becomes 0.5, four standard deviations below and above 0 and 1.

    Arguments
    ---------
    f0 : np.ndarray
        [frames], in Hz, 0 where unvoiced.

    Returns
    -------
    np.ndarray
        float32 [frames], in 0 to 1 where voiced, `UNVOICED` elsewhere. Mean and (population) deviation are those of
        log F0 over the voiced frames; a pitch that never changes is 0.5.

    Example
    -------
    >>> normalize(np.array([100.0, 0.0, 121.0, 110.0])).round(3)
    array([ 3.47e-01, -1.00e+10,  6.53e-01,  5.00e-01], dtype=float32)
    """
    logs = log_f0(f0)
    voiced = logs > UNVOICED
    normalized = np.full(logs.shape, UNVOICED, dtype=np.float32)
    if voiced.any():
        pitch = logs[voiced] - logs[voiced].mean()
        pitch = pitch / max(DEVIATIONS * pitch.std(), 1e-6)  # a steady pitch is its own mean
        normalized[voiced] = (pitch.clip(-1, 1) + 1) / 2
    return normalized


def quantize(f0_norm: torch.Tensor | np.ndarray, bins: int = BINS) -> torch.Tensor:
    """Classes of normalised pitch.

    Arguments
    ---------
    f0_norm : torch.Tensor or np.ndarray
        What `normalize` gives, perhaps resampled [..., frames].
    bins : int
        Classes of voiced frames.

    Returns
    -------
    torch.LongTensor
        [..., frames], 0 where unvoiced, else 1 to `bins`. As in SpeechSplit's program all that is not above 0 is
        unvoiced: what was interpolated with an unvoiced frame, and a voice more than four deviations below its mean.

    Example
    -------
    >>> quantize(np.array([UNVOICED, 0.0, 0.001, 0.5, 1.0])).tolist()
    [0, 0, 1, 129, 256]
    """
    f0_norm = torch.as_tensor(f0_norm)
    levels = torch.round(f0_norm * (bins - 1)) + 1
    return torch.where(f0_norm > 0, levels, 0.0).long()


def one_hot(classes: torch.Tensor) -> torch.Tensor:
    """Input of the pitch encoder.

    Arguments
    ---------
    classes : torch.LongTensor
        What `quantize` gives [..., frames].

    Returns
    -------
    torch.Tensor
        float32 [..., frames, 257].

    Example
    -------
    >>> one_hot(torch.tensor([0, 256])).argmax(-1)
    tensor([  0, 256])
    """
    return functional.one_hot(classes, CLASSES).float()


GENDERS = ("M", "F")  # as manifests write them


VERSION = 1  # of the numbers that come out: raise it with every change of them, and caches start afresh


class PitchTrack:
    """Waveform -> log F0, normalised per utterance, in 62.5 frames a second.

    Arguments
    ---------
    method : str
        `rapt`, or `pysptk` (see :func:`speechbrain_ser.processing.pitch.extract_f0`).
    f_range : sequence of float, or mapping of str to sequence of float
        Lowest and highest frequency in Hz, for everybody; or a range for each gender, as SpeechSplit's program has
        it: ``{M: [50, 250], F: [100, 600]}``, which needs a corpus that tells the gender.

    Attributes
    ----------
    by_gender : dict of str to PitchTrack
        Who extracts for whom; empty where one range serves everybody.
    settings : dict
        Everything that identifies the output, for a cache's key.

    Raises
    ------
    UserError
        When the method is unknown or a range cannot be.

    Example
    -------
    >>> track = PitchTrack()
    >>> wav = torch.sin(torch.arange(16000) * 2 * torch.pi * 200 / 16000)
    >>> track.extract(wav).shape
    torch.Size([63])
    >>> sorted(PitchTrack(f_range={"M": [50, 250], "F": [100, 600]}).by_gender)
    ['F', 'M']
    """

    def __init__(self, method: str = "rapt", f_range: Sequence[float] | Mapping[str, Sequence[float]] = (50.0, 600.0)):
        if method not in METHODS:
            raise UserError(f"F0: method is {method!r}, expected {' or '.join(METHODS)}{nearest(method, METHODS)}")
        self.method = method
        self.by_gender: dict[str, PitchTrack] = {}
        if isinstance(f_range, Mapping):
            if set(f_range) != set(GENDERS):
                raise UserError(f"f0_range: expected [low, high], or a range for each of {GENDERS}, found {f_range}")
            self.by_gender = {gender: PitchTrack(method, of_gender) for gender, of_gender in f_range.items()}
            f_range = [pick(each.f_range[k] for each in self.by_gender.values()) for k, pick in enumerate((min, max))]
        if not isinstance(f_range, Sequence) or len(f_range) != 2:
            raise UserError(f"f0_range: expected [low, high] in Hz, found {f_range!r}")
        self.f_range = tuple(map(float, f_range))
        check_range(SAMPLE_RATE, *self.f_range)
        self.min_samples = MIN_SAMPLES
        self.settings = {"features": "pitch_track", "version": VERSION, "method": method, "f_range": [*self.f_range]}

    def extract_hz(self, wav: torch.Tensor) -> torch.Tensor:
        """F0 in Hz.

        Arguments
        ---------
        wav : torch.Tensor
            Waveform [time], 16 kHz, at any level.

        Returns
        -------
        torch.Tensor
            float32 [frames], 0 where unvoiced; as many frames as the mel spectrogram has.
        """
        low, high = self.f_range
        return torch.from_numpy(extract_f0(prepare(wav), self.method, low, high, SAMPLE_RATE, HOP))

    def extract(self, wav: torch.Tensor) -> torch.Tensor:
        """Log F0, normalised per utterance (:func:`speechbrain_ser.processing.pitch.normalize`).

        Arguments
        ---------
        wav : torch.Tensor
            Waveform [time], 16 kHz, at any level.

        Returns
        -------
        torch.Tensor
            float32 [frames], 0 to 1 where voiced, far below 0 elsewhere.
        """
        return torch.from_numpy(normalize(self.extract_hz(wav).numpy()))
