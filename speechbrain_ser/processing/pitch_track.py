"""F0 as the pitch encoder reads it, from the same waveform and on the same frames as SpeechSplit's mel spectrogram."""

from collections.abc import Mapping, Sequence

import torch

from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.processing.f0 import METHODS, extract_f0, normalize
from speechbrain_ser.processing.rapt import check_range
from speechbrain_ser.processing.split_mel import HOP, MIN_SAMPLES, SAMPLE_RATE, prepare

GENDERS = ("M", "F")  # as manifests write them
VERSION = 1  # of the numbers that come out: raise it with every change of them, and caches start afresh


class PitchTrack:
    """Waveform -> log F0, normalised per utterance, in 62.5 frames a second.

    Arguments
    ---------
    method : str
        `rapt`, or `pysptk` (see :func:`speechbrain_ser.processing.f0.extract_f0`).
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
        """Log F0, normalised per utterance (:func:`speechbrain_ser.processing.f0.normalize`).

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
