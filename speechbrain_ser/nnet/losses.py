"""Losses that give one value an utterance, so that weighting by utterance is left to the caller."""

import itertools

import torch
import torch.nn.functional as F


def ctc_loss(logits: torch.Tensor, frames: torch.Tensor, targets: list[torch.Tensor], blank: int = 0) -> torch.Tensor:
    """CTC summed over an utterance's tokens, in float32 (Cai et al. 2021, eq. 1).

    Arguments
    ---------
    logits : torch.Tensor
        [batch, frames, tokens], before the softmax.
    frames : torch.Tensor
        [batch], valid frames of each utterance.
    targets : list of torch.Tensor
        A tensor of token indices for each utterance; may be empty.
    blank : int
        Index of the blank.

    Returns
    -------
    torch.Tensor
        [batch]; 0 where no path exists (more tokens than frames), which the caller reports beforehand.

    Example
    -------
    >>> logits = torch.zeros(2, 3, 2)
    >>> loss = ctc_loss(logits, torch.tensor([3, 2]), [torch.tensor([1]), torch.tensor([1])])
    >>> loss.exp().reciprocal()  # 6 of 8 and 3 of 4 paths spell the token
    tensor([0.7500, 0.7500])
    """
    lengths = torch.tensor([len(t) for t in targets], device=frames.device)
    return F.ctc_loss(
        logits.float().log_softmax(-1).transpose(0, 1),  # (frames, batch, tokens)
        torch.cat(targets).to(logits.device),
        frames,
        lengths,
        blank=blank,
        reduction="none",
        zero_infinity=True,
    )


def frames_needed(tokens: list[int]) -> int:
    """The fewest frames on which CTC can spell tokens: one each, and a blank between equal neighbours.

    Example
    -------
    >>> frames_needed([5, 5, 7])
    4
    """
    return len(tokens) + sum(a == b for a, b in itertools.pairwise(tokens))
