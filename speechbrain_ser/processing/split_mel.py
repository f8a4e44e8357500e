"""The mel spectrogram that SpeechSplit's encoders and decoder work on.

As the released program of Qian et al. 2020 computes it ("Unsupervised speech decomposition via triple information
bottleneck"); Hsu et al. 2023, section 2.1, take it from there.
"""

import zlib

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy import fft, signal
from transformers.audio_utils import mel_filter_bank

from speechbrain_ser.data.audio import SAMPLE_RATE
from speechbrain_ser.processing.rapt import HOP, frame_count

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
VERSION = 2  # of the numbers that come out: raise it with every change of them, and caches start afresh


class SplitMel:
    """Waveform -> SpeechSplit's mel spectrogram, 0 to 1, in 62.5 frames a second.

    High-passed (5th-order Butterworth at 30 Hz, forward and backward, so without delay), scaled by 0.96 and dithered;
    magnitudes of a Fourier transform of 1024 samples every 256, frames centred on multiples of the hop over a recording
    reflected at its ends; 80 mel bands of 90 to 7600 Hz of equal area; decibels from -84 (0) to 16 (1).

    The `dither` lifts digital silence a little (without it values close to 0 differ by up to 7e-4). The program draws
    it speaker by speaker in the order of its files; here it is seeded by the recording itself, which always gives the
    same spectrogram.

    Example
    -------
    >>> split_mel = SplitMel()
    >>> split_mel.extract(torch.randn(16000)).shape, split_mel.frame_counts(8000)
    (torch.Size([63, 80]), tensor(32))
    """

    output_size = N_MELS
    min_samples = MIN_SAMPLES
    hop_seconds = HOP / SAMPLE_RATE
    padding_value = 0.0  # what silence gives

    def __init__(self, dither: bool = True):
        self.dither = dither
        self.settings = {"features": "split_mel", "version": VERSION, "dither": dither}

    def frame_counts(self, n_samples: torch.LongTensor | int) -> torch.LongTensor:
        """Return the frames of so many samples, of any shape: one at each multiple of the hop, the end included."""
        n_samples = torch.as_tensor(n_samples).long()
        return frame_count(n_samples).masked_fill(n_samples < self.min_samples, 0)

    def extract(self, wav: torch.Tensor, noise: np.ndarray | None = None) -> torch.Tensor:
        """Return the spectrogram, float32 [frames, bands], of a waveform [time], 16 kHz; computed in double precision.

        `noise` is another dither, to repeat a computation of the program's; for what is refused see :func:`prepare`.
        """
        if noise is None and not self.dither:
            noise = np.zeros(1)
        reflected = np.pad(prepare(wav, noise), N_FFT // 2, mode="reflect")
        frames = sliding_window_view(reflected, N_FFT)[::HOP]  # [frames, samples]
        magnitudes = np.abs(fft.rfft(frames * signal.get_window("hann", N_FFT), axis=1))  # [frames, bins]
        decibels = 20 * np.log10(np.maximum(magnitudes @ mel_filters(), FLOOR)) - REFERENCE_DB
        return torch.from_numpy(np.clip((decibels + RANGE_DB) / RANGE_DB, 0.0, 1.0).astype(np.float32))


def prepare(wav: torch.Tensor | np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
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


def mel_filters() -> np.ndarray:
    """Return Slaney's mel bands, each of area 1, float64 [bins, bands]."""
    slaney = {"norm": "slaney", "mel_scale": "slaney"}
    return mel_filter_bank(N_FFT // 2 + 1, N_MELS, F_MIN, F_MAX, SAMPLE_RATE, **slaney)
