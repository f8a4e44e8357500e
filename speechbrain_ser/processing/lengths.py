"""SpeechBrain's relative lengths as samples, frames and masks; utterances cut or padded to one length."""

from collections.abc import Callable

import torch

ROUNDING = 1e-5  # of a relative length
PARTS = ("start", "centre", "random")  # of a longer utterance


def absolute_lengths(wavs: torch.Tensor, wav_lens: torch.Tensor | None = None) -> torch.LongTensor:
    """Return the samples of each utterance [batch] of padded waveforms [batch, time].

    `wav_lens` are SpeechBrain's relative lengths, above 0 and at most 1 [batch]; None when there is no padding. Others,
    such as lengths in samples, are a ValueError.

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
    relative = wav_lens.to(wavs.device).double()
    if wav_lens.device.type != "cpu":  # no look at the device: an utterance without a sample is refused further on
        relative = relative.masked_fill(relative > 1 + ROUNDING, 0.0)
    elif wav_lens.numel() and not torch.compiler.is_compiling():
        lowest, highest = (float(end) for end in wav_lens.aminmax())
        if not 0 <= lowest <= highest <= 1 + ROUNDING:
            found = f"found {lowest:g} to {highest:g}"
            raise ValueError(f"wav_lens: expected lengths relative to the longest, above 0 to 1, {found}")
    # float32 holds a length / time exactly enough to round back, as long as their product is not float32 as well
    return torch.round(relative * wavs.shape[1]).long().clamp(max=wavs.shape[1])


def own_frames(
    x: torch.Tensor, lens: torch.Tensor | None, frame_counts: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> torch.LongTensor:
    """Return the frames of each utterance [batch] of waveforms, or of features, which are frames already.

    `x` is [batch, time] or [batch, frames, …], `lens` its relative lengths [batch] (None: no padding), `frame_counts`
    the encoder's own formula, samples to frames, of waveforms.
    """
    if x.dim() == 2:
        return frame_counts(absolute_lengths(x, lens))
    return absolute_lengths(x.flatten(2)[:, :, 0], lens)


def frame_mask(frame_counts: torch.Tensor, max_frames: int) -> torch.BoolTensor:
    """Return True on an utterance's own frames, False on padding [batch, frames].

    Example
    -------
    >>> frame_mask(torch.tensor([1, 3]), 3)
    tensor([[ True, False, False],
            [ True,  True,  True]])
    """
    positions = torch.arange(max_frames, device=frame_counts.device)
    return positions[None, :] < frame_counts[:, None]  # [batch, frames]


def check_frame_counts(frame_counts: torch.Tensor, max_frames: int) -> int:
    """Refuse an utterance without a frame, or with more than its batch has; return the frames of the shortest.

    In a graph that is exported, which has no errors to raise, 0: it must expect padding.
    """
    if torch.compiler.is_exporting():
        return 0
    lowest, highest = torch.stack(frame_counts.aminmax()).tolist()  # one look at the device for both bounds
    if lowest < 1 or highest > max_frames:
        raise ValueError(f"frame_counts must lie in 1 to {max_frames}, found {lowest} to {highest}")
    return lowest


def fix_length(
    feats: torch.Tensor, counts: torch.LongTensor, length: int, where: str = "start", padding_value: float = -1.0
) -> torch.Tensor:
    """Cut longer utterances, pad shorter ones at their end (Fu et al. 2021, section 3.2: 256 frames, -1).

    Of `feats` [batch, frames, bands] what stands past an utterance's own frames, `counts` [batch], is not read. `where`
    is the part of a longer utterance to keep: `start` (the paper's), `centre`, or `random`, which draws one number an
    utterance from torch's global CPU generator, longer or not and on any device, so that checkpointed training repeats
    it.

    Example
    -------
    >>> feats = torch.arange(1.0, 6.0)[None, :, None].repeat(2, 1, 1)  # two utterances of up to five frames
    >>> fix_length(feats, torch.tensor([5, 2]), 3, where="centre")[:, :, 0]
    tensor([[ 2.,  3.,  4.],
            [ 1.,  2., -1.]])
    """
    if where not in PARTS:
        raise ValueError(f"where is {where!r}, expected one of {', '.join(PARTS)}")
    check_frame_counts(counts, feats.shape[1])
    counts = counts.to(feats.device)
    first = _first_frames((counts - length).clamp(min=0), where)  # [batch]
    places = torch.arange(length, device=feats.device)
    frames = (first[:, None] + places).clamp(max=feats.shape[1] - 1)  # [batch, length]
    kept = feats.gather(1, frames[:, :, None].expand(-1, -1, feats.shape[2]))
    return kept.masked_fill((places >= counts[:, None])[:, :, None], padding_value)


def _first_frames(spare: torch.LongTensor, where: str) -> torch.LongTensor:
    """The first frame to keep when so many are too many, both [batch]."""
    if where == "start":
        return torch.zeros_like(spare)
    if where == "centre":
        return spare // 2
    drawn = torch.rand(len(spare), dtype=torch.float64).to(spare.device)
    return (drawn * (spare + 1)).long()
