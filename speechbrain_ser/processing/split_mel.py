"""The mel spectrogram that SpeechSplit's encoders and decoder work on, as features of a model."""

import numpy as np
import torch

from speechbrain_ser.data.audio import SAMPLE_RATE
from speechbrain_ser.processing.rapt import HOP, frame_count
from speechbrain_ser.processing.speech_split import MIN_SAMPLES, N_MELS, prepare, spectrogram

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
        return torch.from_numpy(spectrogram(prepare(wav, noise)))
