"""Utterances cut or padded to one number of frames, for models that read a fixed window."""

import torch

from speechbrain_ser.nnet.pooling import check_frame_counts

PARTS = ("start", "centre", "random")


def fix_length(
    feats: torch.Tensor,
    counts: torch.LongTensor,
    length: int,
    where: str = "start",
    padding_value: float = -1.0,
) -> torch.Tensor:
    """Cut longer utterances, pad shorter ones at their end (Fu et al. 2021, section 3.2: 256 frames, -1).

    Arguments
    ---------
    feats : torch.Tensor
        Features [batch, frames, bands]; what stands past an utterance's end is not read.
    counts : torch.LongTensor
        Own frames of each utterance [batch], 1 to frames.
    length : int
        Frames wanted.
    where : str
        The part of a longer utterance to keep: `start` (the paper's), `centre`, or `random`, which draws one
        number an utterance from torch's global CPU generator, longer or not and on any device, so that
        checkpointed training repeats it.
    padding_value : float
        What fills up shorter utterances.

    Returns
    -------
    torch.Tensor
        [batch, length, bands].

    Raises
    ------
    ValueError
        When the shapes do not match, a count or the length is out of range, or the part is unknown.

    Example
    -------
    >>> feats = torch.arange(1.0, 6.0)[None, :, None].repeat(2, 1, 1)  # two utterances of up to five frames
    >>> fix_length(feats, torch.tensor([5, 2]), 3, where="centre")[:, :, 0]
    tensor([[ 2.,  3.,  4.],
            [ 1.,  2., -1.]])
    """
    _check(feats, counts, length, where)
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


def _check(feats: torch.Tensor, counts: torch.LongTensor, length: int, where: str) -> None:
    if where not in PARTS:
        raise ValueError(f"where is {where!r}, expected one of {', '.join(PARTS)}")
    if length != int(length) or length < 1:
        raise ValueError(f"length is {length}, expected a whole number above 0")
    if feats.dim() != 3 or counts.shape != feats.shape[:1]:
        raise ValueError(
            f"expected feats [batch, frames, bands] and counts [batch], found {list(feats.shape)} "
            f"and {list(counts.shape)}"
        )
    check_frame_counts(counts, feats.shape[1])
