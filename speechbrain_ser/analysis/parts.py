"""What a decomposition reads of a recording: SpeechSplit's mel spectrogram, and F0 in Hz and normalised."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from speechbrain_ser.corpora.audio import BadAudioError, duration_of
from speechbrain_ser.dataio import load_audio
from speechbrain_ser.errors import UserError
from speechbrain_ser.processing.f0 import normalize
from speechbrain_ser.processing.pitch_track import PitchTrack
from speechbrain_ser.processing.split_mel import SplitMel

SILENT = 0.01  # of the range of the mel spectrogram: -83 dB, where only the dither is


@dataclass(frozen=True)
class Parts:
    """A recording as encoders read it, and a name for pictures and files.

    Arguments
    ---------
    name : str
        Of the recording.
    mel : np.ndarray
        SpeechSplit's mel spectrogram, float32 [frames, bands], 0 to 1.
    f0_hz : np.ndarray, optional
        float32 [frames], in Hz, 0 where unvoiced; None where no encoder reads F0.
    f0 : np.ndarray, optional
        Normalised, float32 [frames]; None where no encoder reads F0.
    hop_seconds : float
        From frame to frame.
    """

    name: str
    mel: np.ndarray
    f0_hz: np.ndarray | None
    f0: np.ndarray | None
    hop_seconds: float

    @property
    def remark(self) -> str:
        """What a reader of a picture should know: `silent`, `entirely unvoiced`, or nothing.

        Example
        -------
        >>> Parts("a01", np.ones((3, 80)), np.zeros(3), np.full(3, -1e10), 0.016).remark
        'entirely unvoiced'
        """
        if self.mel.max() < SILENT:
            return "silent"
        return "entirely unvoiced" if self.f0_hz is not None and not self.f0_hz.any() else ""

    @property
    def title(self) -> str:
        """Name and remark."""
        return f"{self.name} ({self.remark})" if self.remark else self.name


def read_parts(path: str | os.PathLike, mel: SplitMel, f0: PitchTrack | None = None, name: str | None = None) -> Parts:
    """The parts of a recording; one without any voice, or silent, has them too.

    Arguments
    ---------
    path : str or os.PathLike
        Anything soundfile reads.
    mel : SplitMel
        The extractor of the run.
    f0 : PitchTrack, optional
        That of the run; None leaves F0 out.
    name : str, optional
        Of the recording; its file's without the suffix by default.

    Returns
    -------
    Parts

    Raises
    ------
    UserError
        When the file is missing, unreadable, empty, truncated, not finite, or too short for a frame.
    """
    path = Path(path)
    return parts_of(_load(path, mel), name or path.stem, mel, f0)


def parts_of(wav: torch.Tensor, name: str, mel: SplitMel, f0: PitchTrack | None = None) -> Parts:
    """The parts of a waveform.

    Arguments
    ---------
    wav : torch.Tensor
        [time], 16 kHz.
    name : str
        Of the recording.
    mel : SplitMel
        The extractor of the run.
    f0 : PitchTrack, optional
        That of the run; None leaves F0 out.

    Returns
    -------
    Parts

    Example
    -------
    >>> parts = parts_of(torch.zeros(16000), "silence", SplitMel())
    >>> parts.mel.shape, parts.f0, parts.title
    ((63, 80), None, 'silence (silent)')
    """
    hz = None if f0 is None else f0.extract_hz(wav).numpy()
    return Parts(
        name=name,
        mel=mel.extract(wav).numpy(),
        f0_hz=hz,
        f0=None if hz is None else normalize(hz),
        hop_seconds=mel.hop_seconds,
    )


def _load(path: Path, mel: SplitMel) -> torch.Tensor:
    try:
        duration_of(path)
    except BadAudioError as defect:
        raise UserError(f"{path}: {defect.words}") from defect
    wav = load_audio(path)
    if len(wav) < mel.min_samples:
        raise UserError(
            f"{path}: expected a recording of at least {mel.min_samples} samples at 16 kHz, which make a frame, "
            f"found {len(wav)}"
        )
    return wav
