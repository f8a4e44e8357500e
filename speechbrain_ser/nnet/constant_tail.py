"""Frames that need no computing: an utterance's padding and all but the first of its last equal frames."""

import torch


def constant_tail_start(features: torch.Tensor) -> torch.Tensor:
    """Where each utterance's last run of equal frames begins, such as the padding with one value.

    Arguments
    ---------
    features : torch.Tensor
        [batch, frames, bands].

    Returns
    -------
    torch.LongTensor
        [batch], from 0 (all frames are equal) to frames - 1 (the last frame differs from the one before).

    Example
    -------
    >>> constant_tail_start(torch.tensor([[[5.0], [2.0], [-1.0], [-1.0]], [[5.0], [-1.0], [-1.0], [2.0]]]))
    tensor([2, 3])
    """
    changes = (features[:, 1:] != features[:, :-1]).any(dim=-1)  # [batch, frames - 1], frame t to t + 1
    positions = torch.arange(1, features.shape[1], device=features.device)
    return torch.where(changes, positions, 0).amax(dim=1)
