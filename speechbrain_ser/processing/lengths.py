"""SpeechBrain's relative lengths as numbers of samples, and of frames."""

from collections.abc import Callable

import torch


def absolute_lengths(wavs: torch.Tensor, wav_lens: torch.Tensor | None = None) -> torch.LongTensor:
    """Samples of each utterance from SpeechBrain's relative lengths.

    Arguments
    ---------
    wavs : torch.Tensor
        Padded waveforms [batch, time].
    wav_lens : torch.Tensor, optional
        Relative lengths, above 0 and at most 1 [batch]; None when there is no padding.

    Returns
    -------
    torch.LongTensor
        [batch], on the waveforms' device.

    Raises
    ------
    ValueError
        When the shapes do not match.

    Example
    -------
    >>> absolute_lengths(torch.zeros(2, 48000), torch.tensor([1.0, 1 / 3]))
    tensor([48000, 16000])
    """
    if wavs.dim() != 2 or (wav_lens is not None and wav_lens.shape != wavs.shape[:1]):
        found = None if wav_lens is None else list(wav_lens.shape)
        raise ValueError(f"expected wavs [batch, time] and wav_lens [batch], found {list(wavs.shape)} and {found}")
    if wav_lens is None:
        return torch.full(wavs.shape[:1], wavs.shape[1], device=wavs.device)
    # float32 holds a length / time exactly enough to round back, as long as the product is not float32 as
    # well
    lengths = torch.round(wav_lens.to(wavs.device).double() * wavs.shape[1]).long()
    return lengths.clamp(max=wavs.shape[1])


def own_frames(
    x: torch.Tensor, lens: torch.Tensor | None, frame_counts: Callable[[torch.Tensor], torch.Tensor]
) -> torch.LongTensor:
    """Frames of each utterance of a batch of waveforms, or of features, which are frames already.

    Arguments
    ---------
    x : torch.Tensor
        Padded waveforms [batch, time] or features [batch, frames, …].
    lens : torch.Tensor, optional
        Relative lengths [batch]; None when there is no padding.
    frame_counts : callable
        Samples to frames, by the encoder's own formula.

    Returns
    -------
    torch.LongTensor
        [batch].

    Example
    -------
    >>> own_frames(torch.zeros(2, 800), torch.tensor([1.0, 0.5]), lambda samples: samples // 400).tolist()
    [2, 1]
    >>> own_frames(torch.zeros(2, 4, 8), torch.tensor([1.0, 0.5]), lambda samples: samples // 400).tolist()
    [4, 2]
    """
    if x.dim() == 2:
        return frame_counts(absolute_lengths(x, lens))
    return absolute_lengths(x.flatten(2)[:, :, 0], lens)
