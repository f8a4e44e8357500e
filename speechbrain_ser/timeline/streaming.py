"""A recording of any length as 16 kHz mono blocks; end to end they are what ``load_audio`` gives of the whole."""

import os
from collections.abc import Iterable, Iterator

import numpy as np
import soundfile
import soxr
import torch

from speechbrain_ser.corpora.audio import UNREADABLE, BadAudioError, sound_name
from speechbrain_ser.dataio import QUALITY, SAMPLE_RATE

BLOCK_SECONDS = 10.0


def stream_audio(path: str | os.PathLike, block_seconds: float = BLOCK_SECONDS) -> Iterator[torch.Tensor]:
    """Read a recording of any rate, format and channel count, a block at a time.

    Arguments
    ---------
    path : str or os.PathLike
        Anything soundfile reads.
    block_seconds : float
        Of the blocks that are read: no more is held, whatever the recording's length.

    Returns
    -------
    iterator of torch.Tensor
        [time] float32, 16 kHz, channels averaged; of about `block_seconds`, the last one shorter. Joined they equal
        :func:`speechbrain_ser.dataio.load_audio`.

    Raises
    ------
    BadAudioError
        When the recording cannot be read (to its end).

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.wav"
    >>> soundfile.write(path, torch.zeros(8000 * 25, 2).numpy(), 8000)
    >>> sum(len(block) for block in stream_audio(path)) / SAMPLE_RATE
    25.0
    """
    try:
        with soundfile.SoundFile(sound_name(path)) as sound:
            blocks = sound.blocks(max(1, round(block_seconds * sound.samplerate)), dtype="float32", always_2d=True)
            mono = (torch.from_numpy(block).T.mean(0) for block in blocks)  # as load_audio has it: (channels, time)
            yield from mono if sound.samplerate == SAMPLE_RATE else resampled(mono, sound.samplerate)
    except (soundfile.SoundFileError, OSError) as error:
        raise BadAudioError(UNREADABLE, str(error)) from error


def resampled(blocks: Iterable[torch.Tensor], rate: int) -> Iterator[torch.Tensor]:
    """Blocks of a waveform at 16 kHz, the same samples as if they had been resampled in one piece.

    Arguments
    ---------
    blocks : iterable of torch.Tensor
        [time] float32, of any lengths.
    rate : int
        In Hz.

    Returns
    -------
    iterator of torch.Tensor
        [time] float32; the filter holds some back, so that the last one may be as long as the filter alone.
    """
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, num_channels=1, dtype="float32", quality=QUALITY)
    for block in blocks:
        yield torch.from_numpy(stream.resample_chunk(block.numpy()))
    yield torch.from_numpy(stream.resample_chunk(np.zeros(0, np.float32), last=True))
