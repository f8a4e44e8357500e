"""From SpeechSplit's mel spectrogram back to a waveform, by Griffin and Lim 1984: to listen to, not to measure."""

import numpy as np
import torch

from speechbrain_ser.processing.split_mel import HOP, LEVEL, N_FFT, N_MELS, RANGE_DB, REFERENCE_DB, mel_filters

ITERATIONS = 60  # 200 bring speech 0.05 dB nearer
MOMENTUM = 0.99 / 1.99  # of the fast variant (Perraudin, Balazs and Sondergaard 2013), as librosa has it
MIN_FRAMES = 4  # the Fourier transform reflects half a window at either end


def invert_mel(mel: torch.Tensor | np.ndarray, iterations: int = ITERATIONS) -> torch.Tensor:
    """The waveform whose mel spectrogram is close to this one: the inverse of :class:`SplitMel`.

    Decibels become the magnitudes of the bands, these the magnitudes of the spectrum (the smallest that have such
    bands; what is then below 0 is 0), and Griffin and Lim's iteration finds phases that fit them. Nothing is random:
    all phases are 0 at first. What SplitMel removes (below 30 Hz) or never sees (below 90 and above 7600 Hz) stays
    away. Four recordings of EMO-DB came back to 1.5 to 2.4 dB (root mean square over bands and frames).

    Arguments
    ---------
    mel : torch.Tensor or np.ndarray
        [frames, bands], 0 (-84 dB) to 1 (16 dB); values beyond, as a decoder may give, count as 0 and 1.
    iterations : int
        Of Griffin and Lim's.

    Returns
    -------
    torch.Tensor
        float32 [frames * 256 - 128], 16 kHz: within half a hop of any recording of so many frames. It may exceed
        -1 to 1.

    Raises
    ------
    ValueError
        When `mel` is not [frames, bands] or not finite.

    Example
    -------
    >>> from speechbrain_ser.processing.split_mel import SplitMel
    >>> split_mel = SplitMel()
    >>> wav = torch.sin(torch.arange(16000) * 2 * torch.pi * 440 / 16000)
    >>> mel = split_mel.extract(wav)
    >>> again = invert_mel(mel)
    >>> again.shape, bool((split_mel.extract(again) - mel).square().mean().sqrt() < 0.06)  # a pure tone is hardest
    (torch.Size([16000]), True)
    """
    mel = np.asarray(mel, dtype=np.float64)
    if mel.ndim != 2 or not len(mel) or mel.shape[1] != N_MELS:
        raise ValueError(f"expected a spectrogram [frames, {N_MELS}], found {list(mel.shape)}")
    if not np.isfinite(mel).all():
        raise ValueError("expected a spectrogram of finite values, found nan or inf")
    magnitudes = np.maximum(_expand(mel) @ np.linalg.pinv(mel_filters()), 0.0) / LEVEL  # [frames, bins]
    padding = max(0, MIN_FRAMES - len(mel))
    magnitudes = np.pad(magnitudes, [(0, padding), (0, 0)])
    wav = _griffin_lim(torch.from_numpy(np.ascontiguousarray(magnitudes.T)), iterations)
    return wav[: _samples(len(mel))].float()


def _griffin_lim(magnitudes: torch.Tensor, iterations: int) -> torch.Tensor:
    """The waveform of magnitudes [bins, frames] and of the phases that waveforms near it have."""
    window = torch.hann_window(N_FFT, dtype=magnitudes.dtype)
    length = _samples(magnitudes.shape[1])
    phases, previous = torch.ones_like(magnitudes, dtype=torch.complex128), 0.0
    for _ in range(iterations):
        wav = torch.istft(magnitudes * phases, N_FFT, HOP, window=window, length=length)
        rebuilt = torch.stft(wav, N_FFT, HOP, window=window, return_complex=True)
        phases = rebuilt - MOMENTUM * previous
        phases, previous = phases / (phases.abs() + 1e-16), rebuilt
    return torch.istft(magnitudes * phases, N_FFT, HOP, window=window, length=length)


def _samples(frames: int) -> int:
    """The middle of all lengths that have so many frames."""
    return frames * HOP - HOP // 2


def _expand(mel: np.ndarray) -> np.ndarray:
    """Magnitudes of the bands: SplitMel's compression undone."""
    return 10 ** ((mel.clip(0.0, 1.0) * RANGE_DB - RANGE_DB + REFERENCE_DB) / 20)
