"""A recording of any length as 16 kHz mono blocks; end to end they are what ``load_audio`` gives of the whole."""

import math
import os
from collections.abc import Iterable, Iterator

import soundfile
import torch
from torchaudio.transforms import Resample

from speechbrain_ser.corpora.audio import UNREADABLE, BadAudioError, sound_name
from speechbrain_ser.dataio import SAMPLE_RATE

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
    """Blocks of a waveform at 16 kHz, as if they had been resampled in one piece.

    The filter is the same for every `rate / gcd(rate, 16000)` samples. So that a block's first sample meets the same
    filter as in the whole, blocks begin at multiples of that; so that its ends hear the same samples, they are
    resampled with a margin of what comes before and after them.

    Arguments
    ---------
    blocks : iterable of torch.Tensor
        [time] float32, of any lengths.
    rate : int
        In Hz.

    Returns
    -------
    iterator of torch.Tensor
        [time] float32.
    """
    common = math.gcd(rate, SAMPLE_RATE)
    old, new = rate // common, SAMPLE_RATE // common
    resample = Resample(rate, SAMPLE_RATE, dtype=torch.float32)  # the filter in load_audio's own precision
    margin = -(-(resample.width + old) // old) * old
    held = torch.zeros(margin)  # the margin before what is to come; silence stands before the beginning
    for block in blocks:
        held = torch.cat([held, block])
        ready = max(0, len(held) - 2 * margin) // old * old
        if ready:
            piece = resample(held[: margin + ready + margin])
            yield piece[margin // old * new :][: ready // old * new]
            held = held[ready:].clone()
    rest = len(held) - margin
    piece = resample(torch.cat([held, torch.zeros(margin)]))
    yield piece[margin // old * new :][: -(-rest * new // old)]
