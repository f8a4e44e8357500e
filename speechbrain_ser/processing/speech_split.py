"""SpeechSplit's features, mel spectrogram and F0, by NumPy and SciPy alone: who computes an ONNX graph needs no torch.

As the released program of Qian et al. 2020 computes them ("Unsupervised speech decomposition via triple information
bottleneck"); Hsu et al. 2023, section 2.1, take them from there.
"""

import zlib
from collections.abc import Mapping

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import fft, signal

from speechbrain_ser.data.audio import SAMPLE_RATE
from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.processing.rapt import HOP, frame_count, lags_of, rapt

HIGH_PASS = {"N": 5, "Wn": 30.0}  # order, Hz
LEVEL = 0.96
DITHER = 1e-6  # from peak to peak
N_FFT = 1024
N_MELS = 80
F_MIN, F_MAX = 90.0, 7600.0  # Hz
FLOOR = 1e-5  # magnitude of a band: -100 dB
REFERENCE_DB = 16.0
RANGE_DB = 100.0
MIN_SAMPLES = 19  # more than the zero-phase filter extends a recording by at either end

METHODS = ("rapt", "pysptk")
UNVOICED = -1e10  # interpolated with any voiced frame it stays far below 0, hence unvoiced
DEVIATIONS = 4.0  # standard deviations that fill the bins on either side of the mean
INT16 = 32768.0  # pysptk expects samples of this range


def graph_inputs(wav: np.ndarray, onnx: Mapping) -> dict[str, np.ndarray]:
    """Return what a package's ``model.onnx`` reads beside waveforms: ``mel`` [1, frames, bands], ``f0`` [1, frames].

    `wav` is [time] at 16 kHz, `onnx` the part of that name of the package's config.json: ``inputs``, of which these are
    made, and the settings ``dither``, ``method`` and ``f_range``.
    """
    prepared, found = prepare(wav), {}
    if "mel" in onnx["inputs"]:
        found["mel"] = spectrogram(prepared if onnx["dither"] else prepare(wav, np.zeros(1)))
    if "f0" in onnx["inputs"]:
        found["f0"] = normalize(extract_f0(prepared, onnx["method"], *onnx["f_range"]))
    return {name: values[None] for name, values in found.items()}


def prepare(wav: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
    """High-pass, scale and dither a waveform [time], 16 kHz, as SpeechSplit does before it takes spectrogram and F0.

    Return float64 [time], one sample longer where the hop divides the recording's length. Fewer than 19 samples, or any
    that is not finite, are a ValueError. `noise` is the dither, of the result's length (or one value for all); None
    draws it, seeded by the recording.

    Example
    -------
    >>> hum = np.sin(np.arange(16000) * 2 * np.pi * 5 / 16000)  # 5 Hz
    >>> bool(np.abs(prepare(hum)[4000:12000]).max() < 1e-4)
    True
    """
    samples = np.asarray(wav, dtype=np.float64)
    if samples.ndim != 1 or len(samples) < MIN_SAMPLES:
        raise ValueError(f"expected a waveform [time] of at least {MIN_SAMPLES} samples, found {list(samples.shape)}")
    if not np.isfinite(samples).all():
        raise ValueError("expected a waveform of finite samples, found nan or inf")
    if len(samples) % HOP == 0:  # as the program does, to have as many frames of F0 as of the spectrogram
        samples = np.append(samples, 1e-6)
    if noise is None:
        seed = zlib.crc32(samples.astype("<f4").tobytes())
        noise = (np.random.default_rng(seed).random(len(samples)) - 0.5) * DITHER
    b, a = signal.butter(**HIGH_PASS, btype="highpass", fs=SAMPLE_RATE)
    return signal.filtfilt(b, a, samples) * LEVEL + noise


def spectrogram(prepared: np.ndarray) -> np.ndarray:
    """Return the mel spectrogram, float32 [frames, bands], of what :func:`prepare` gives, in double precision."""
    reflected = np.pad(prepared, N_FFT // 2, mode="reflect")
    frames = sliding_window_view(reflected, N_FFT)[::HOP]  # [frames, samples]
    magnitudes = np.abs(fft.rfft(frames * signal.get_window("hann", N_FFT), axis=1))  # [frames, bins]
    decibels = 20 * np.log10(np.maximum(magnitudes @ mel_filters(), FLOOR)) - REFERENCE_DB
    return np.clip((decibels + RANGE_DB) / RANGE_DB, 0.0, 1.0).astype(np.float32)


def mel_filters() -> np.ndarray:
    """Return Slaney's mel bands, each of area 1, float64 [bins, bands]; bit for bit those of transformers.

    On his scale 200 / 3 Hz are a step up to 1 kHz, and from there on 27 steps a factor of 6.4.
    """
    log_step = np.log(6.4) / 27
    ends = 3 * F_MIN / 200, 15 + np.log(F_MAX / 1000) * (27 / np.log(6.4))
    mels = np.linspace(*ends, N_MELS + 2)
    edges = np.where(mels < 15, 200 * mels / 3, 1000 * np.exp(log_step * (mels - 15)))  # Hz
    slopes = edges - np.linspace(0, SAMPLE_RATE // 2, N_FFT // 2 + 1)[:, None]  # [bins, edges]
    widths = np.diff(edges)
    triangles = np.maximum(0, np.minimum(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]))
    return triangles * (2.0 / (edges[2:] - edges[:-2]))


def extract_f0(wav: np.ndarray, method: str = "rapt", f_min: float = 50.0, f_max: float = 600.0) -> np.ndarray:
    """Return the fundamental frequency in Hz, 0 where unvoiced, float32 [frame_count(time)]: 62.5 frames a second.

    `wav` is [time] at 16 kHz, of any level: it is scaled to peak 1 first. `method` is `rapt` (this project's) or
    `pysptk` (SPTK's program, what SpeechSplit used; the extra `rapt` installs it). `f_min` and `f_max` are in Hz:
    SpeechSplit has 50 to 250 for men and 100 to 600 for women, which loses a shouting man's voice.
    """
    check_method(method)
    wav = np.asarray(wav)
    f0 = rapt(wav, f_min, f_max) if method == "rapt" else _pysptk(wav, f_min, f_max)
    return f0.astype(np.float32)


def check_method(method: str) -> None:
    """Refuse a way to track F0 that is not known."""
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
