"""Fundamental frequency as SpeechSplit's pitch encoder reads it: tracked, normalised per utterance, quantised.

As in the released program of SpeechSplit (Qian et al. 2020, "Unsupervised speech decomposition via triple information
bottleneck"), on which Hsu et al. 2023 build. Unvoiced frames are 0 in Hz, `UNVOICED` once normalised, and class 0 once
quantised. The order is extract_f0, normalize, random resampling where a model is trained, quantize, one_hot.
"""

import numpy as np
import torch
from torch.nn import functional

from ..errors import UserError, nearest
from .rapt import check_range, frame_count, rapt

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
