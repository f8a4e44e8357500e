"""SpeechBrain's relative lengths as numbers of samples."""

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
