"""From SpeechSplit's mel spectrogram back to a waveform, by Griffin and Lim 1984: to listen to, not to measure."""

import numpy as np
import torch
import torchaudio

from speechbrain_ser.processing.split_mel import BANDS, HOP, LEVEL, N_FFT, RANGE_DB, REFERENCE_DB, mel_filters

ITERATIONS = 60  # 200 bring speech 0.05 dB nearer
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
    if mel.ndim != 2 or not len(mel) or mel.shape[1] != BANDS["n_mels"]:
        raise ValueError(f"expected a spectrogram [frames, {BANDS['n_mels']}], found {list(mel.shape)}")
    if not np.isfinite(mel).all():
        raise ValueError("expected a spectrogram of finite values, found nan or inf")
    magnitudes = np.maximum(_expand(mel) @ np.linalg.pinv(mel_filters()), 0.0) / LEVEL  # [frames, bins]
    padding = max(0, MIN_FRAMES - len(mel))
    magnitudes = np.pad(magnitudes, [(0, padding), (0, 0)])
    wav = torchaudio.functional.griffinlim(
        torch.from_numpy(np.ascontiguousarray(magnitudes.T)),
        window=torch.hann_window(N_FFT, dtype=torch.float64),
        n_fft=N_FFT,
        hop_length=HOP,
        win_length=N_FFT,
        power=1.0,
        n_iter=iterations,
        momentum=0.99,
        length=_samples(len(magnitudes)),
        rand_init=False,
    )
    return wav[: _samples(len(mel))].float()


def _samples(frames: int) -> int:
    """The middle of all lengths that have so many frames."""
    return frames * HOP - HOP // 2


def _expand(mel: np.ndarray) -> np.ndarray:
    """Magnitudes of the bands: SplitMel's compression undone."""
    return 10 ** ((mel.clip(0.0, 1.0) * RANGE_DB - RANGE_DB + REFERENCE_DB) / 20)
