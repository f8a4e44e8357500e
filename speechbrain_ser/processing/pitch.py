"""F0 as SpeechSplit's pitch encoder reads it: tracked, normalised per utterance, quantised."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from speechbrain_ser.errors import UserError
from speechbrain_ser.processing.rapt import lags_of
from speechbrain_ser.processing.speech_split import MIN_SAMPLES, check_method, extract_f0, normalize, prepare

BINS = 256  # of voiced frames
GENDERS = ("M", "F")  # as manifests write them
VERSION = 1  # of the numbers that come out: raise it with every change of them, and caches start afresh


def quantize(f0_norm: torch.Tensor | np.ndarray, bins: int = BINS) -> torch.LongTensor:
    """Return classes of what :func:`normalize` gives, perhaps resampled [..., frames]: 0 unvoiced, else 1 to `bins`.

    As in SpeechSplit's program all that is not above 0 is unvoiced: what was interpolated with an unvoiced frame, and
    a voice more than four deviations below its mean.

    Example
    -------
    >>> quantize(np.array([-1e10, 0.0, 0.001, 0.5, 1.0])).tolist()
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
        check_method(method)
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
